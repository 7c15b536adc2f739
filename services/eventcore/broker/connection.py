"""A connection to RabbitMQ, whose I/O loop runs in a thread of its own.

So heartbeats are served while the caller works.
"""

import ssl
import threading
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import pika
from pika.adapters.select_connection import IOLoop, SelectConnection
from pika.adapters.utils.nbio_interface import AbstractStreamTransport
from pika.adapters.utils.selector_ioloop_adapter import SelectorIOServicesAdapter
from pika.exceptions import ChannelClosedByBroker

from eventcore.broker.topology import ChannelOperation, Topology
from eventcore.errors import BrokerUnavailable, Error, Misconfigured
from eventcore.model.message import Message
from eventcore.settings import Server

OPEN_TIMEOUT = 10.0
"""Seconds for a connection to open and its topology to be declared."""

CLOSE_TIMEOUT = 2.0
"""Seconds for the broker to answer a close before the connection is aborted."""

BLOCKED_TIMEOUT = 30.0
"""Seconds that a publisher waits while the broker blocks it or confirms nothing."""

KEEPALIVE = {"TCP_KEEPIDLE": 5, "TCP_KEEPINTVL": 2, "TCP_KEEPCNT": 3, "TCP_USER_TIMEOUT": 8000}
"""Options of the sockets: a dead peer is noticed within 8 to 11 seconds."""


def tls_options(server: Server) -> pika.SSLOptions:
    """Encrypted, with the server's certificate and name verified; raises Misconfigured."""
    try:
        context = ssl.create_default_context(cafile=server.ca_file or None)
    except OSError as error:
        raise Misconfigured(
            f"{server.ca_file} cannot be used as RABBITMQ_CA_FILE: {error}"
        ) from error
    return pika.SSLOptions(context, server.host)


class _IO(SelectorIOServicesAdapter):  # type: ignore[misc]
    """pika's I/O services on an IOLoop; keeps the transport, which alone can be aborted."""

    transport: AbstractStreamTransport | None = None

    def create_streaming_connection(
        self, protocol_factory: Any, sock: Any, on_done: ChannelOperation, *tls: Any, **more: Any
    ) -> Any:
        def done(result: Any) -> None:
            if not isinstance(result, BaseException):
                self.transport, _ = result
            on_done(result)

        return super().create_streaming_connection(protocol_factory, sock, done, *tls, **more)


class BrokerConnection:
    """A connection with one channel in confirm mode, and the thread that runs its I/O.

    Methods below the line "in the I/O thread" run there; that thread alone uses the
    connection. It notifies `_changed` once for all changes of one turn of its loop.
    """

    def __init__(self, parameters: pika.ConnectionParameters, topology: Topology) -> None:
        self._topology = topology
        self._changed = threading.Condition()
        self._is_open = False
        self._broken: Error | None = None
        self._notifying = False
        self._connection: Any = None
        self._channel: Any = None
        self._loop = IOLoop()
        self._io = _IO(self._loop)
        self._thread = threading.Thread(
            target=self._run, args=(parameters,), name="rabbitmq", daemon=True
        )
        self._thread.start()
        if not self._await(lambda: self._is_open, OPEN_TIMEOUT):
            error = self._broken or BrokerUnavailable(
                f"RabbitMQ did not answer for {OPEN_TIMEOUT:.0f} s"
            )
            self.close()
            raise error

    def close(self) -> None:
        """Closes the connection, within a few seconds whatever the broker does."""
        self._break(BrokerUnavailable("the connection to RabbitMQ was closed here"))
        self._loop.add_callback_threadsafe(self._close_or_abort)
        self._thread.join(CLOSE_TIMEOUT + 1)

    def _await(self, condition: Callable[[], bool], seconds: float) -> bool:
        """Waits for a condition, until the connection is lost, and for so long at most."""
        with self._changed:
            self._changed.wait_for(lambda: self._broken or condition(), seconds)
            return self._broken is None and condition()

    def _check(self) -> None:
        """Raises the error that ended the connection, if there is one."""
        if self._broken is not None:
            raise BrokerUnavailable(str(self._broken)) from self._broken

    def _submit(self, act: Callable[[], object]) -> None:
        """Runs `act` in the I/O thread soon; raises BrokerUnavailable if the connection is lost."""
        self._check()
        self._loop.add_callback_threadsafe(partial(self._guarded, act))

    # ── in the I/O thread ─────────────────────────────────────────────────────────────────

    def _extra_steps(self) -> Iterator[ChannelOperation]:
        """Steps on the channel after the topology is declared."""
        return iter(())

    def _on_confirm(self, tag: int, multiple: bool) -> None:
        """Called when the broker has taken a message, or all up to it."""

    def _on_return(self, message_id: str) -> None:
        """Called when a message could not be routed; its confirm comes next."""

    def _run(self, parameters: pika.ConnectionParameters) -> None:
        try:
            self._connection = SelectConnection(
                parameters,
                on_open_callback=lambda opened: opened.channel(on_open_callback=self._on_channel),
                on_open_error_callback=self._on_connection_gone,
                on_close_callback=self._on_connection_gone,
                custom_ioloop=self._io,
            )
            self._loop.start()
        except Exception as error:  # noqa: BLE001 - raised in the caller
            self._break(BrokerUnavailable(f"RabbitMQ cannot be used: {error!r}"))
        finally:
            self._loop.close()

    def _on_channel(self, channel: Any) -> None:
        self._channel = channel
        channel.add_on_close_callback(self._on_channel_closed)
        channel.add_on_return_callback(
            lambda _channel, _method, properties, _body: self._on_return(properties.message_id)
        )
        self._in_turn(self._opening())

    def _opening(self) -> Iterator[ChannelOperation]:
        yield from self._topology.steps(self._channel)
        yield partial(self._channel.confirm_delivery, self._on_answer)
        yield from self._extra_steps()
        self._is_open = True
        self._notify()

    def _in_turn(self, steps: Iterator[ChannelOperation]) -> None:
        """Takes each step when the one before it has been answered."""
        if step := next(steps, None):
            step(callback=lambda *_: self._in_turn(steps))

    def _publish(
        self, exchange: str, key: str, message: Message, headers: Mapping[str, str]
    ) -> None:
        properties = to_properties(message.id, headers)
        self._channel.basic_publish(exchange, key, message.body, properties, mandatory=True)

    def _on_answer(self, frame: Any) -> None:
        method = frame.method
        if method.NAME == "Basic.Nack":
            self._break(BrokerUnavailable("RabbitMQ refused a message (nack)"))
        else:
            self._on_confirm(method.delivery_tag, method.multiple)
            self._notify_soon()

    def _on_connection_gone(self, _connection: Any, reason: BaseException) -> None:
        self._break(BrokerUnavailable(f"RabbitMQ cannot be reached: {cause_of(reason)}"))
        self._loop.stop()

    def _on_channel_closed(self, _channel: Any, reason: BaseException) -> None:
        if not isinstance(reason, ChannelClosedByBroker):
            return  # the connection closes as well, and that callback has the reason
        if reason.reply_code == 406 and not self._is_open and self._topology.accept():
            self._connection.channel(on_open_callback=self._on_channel)
        else:
            self._break(BrokerUnavailable(f"RabbitMQ closed the channel: {reason.reply_text}"))

    def _guarded(self, act: Callable[[], object]) -> None:
        """Runs `act`; a failure ends the connection, not the loop."""
        try:
            act()
        except Exception as error:  # noqa: BLE001 - raised in the caller
            self._break(BrokerUnavailable(f"RabbitMQ cannot be reached: {error!r}"))

    def _later(self, delay: float, act: Callable[[], object]) -> None:
        """Runs `act` after `delay` seconds."""
        self._loop.call_later(delay, partial(self._guarded, act))

    def _notify_soon(self) -> None:
        """Notifies after this turn of the loop: threads that wake each other often are slow."""
        if not self._notifying:
            self._notifying = True
            self._loop.call_later(0, self._notify)

    def _notify(self) -> None:
        self._notifying = False
        with self._changed:
            self._changed.notify_all()

    def _break(self, error: Error) -> None:
        """Makes every later call raise this error; the first error counts. For either thread."""
        with self._changed:
            self._broken = self._broken or error
            self._changed.notify_all()

    def _close_or_abort(self) -> None:
        """Closes the connection; aborts it where the broker does not answer."""
        if not (self._connection.is_closing or self._connection.is_closed):
            self._connection.close()
        self._later(CLOSE_TIMEOUT, self._abort)

    def _abort(self) -> None:
        """Without it, thread and socket would stay until heartbeats fail, for 20 seconds."""
        if self._io.transport:
            self._io.transport.abort()


def to_properties(message_id: str, headers: Mapping[str, str]) -> pika.BasicProperties:
    """Properties of each message: persistent JSON."""
    return pika.BasicProperties(
        message_id=message_id,
        headers=dict(headers),
        content_type="application/json",
        delivery_mode=2,
    )


def cause_of(error: BaseException) -> str:
    """The text of the innermost of pika's nested errors."""
    inner = getattr(error, "exceptions", None) or [getattr(error, "exception", None), *error.args]
    nested = [each for each in inner if isinstance(each, BaseException)]
    return cause_of(nested[-1]) if nested else str(error) or type(error).__name__
