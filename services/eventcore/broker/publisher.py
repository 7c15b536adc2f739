"""Publishing with confirms, in order.

Source: RabbitMQ's guide on publisher confirms. Confirms may arrive out of order, and for many
messages at once; an unroutable mandatory message is returned before it is confirmed.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import takewhile
from time import monotonic

import pika

from eventcore.broker.connection import BrokerConnection
from eventcore.broker.topology import EXCHANGE, ChannelOperation, Topology
from eventcore.errors import BrokerUnavailable
from eventcore.model.message import Message

log = logging.getLogger(__name__)

REPUBLISH_AFTER = (0.1, 0.5, 2.0)
"""Seconds before each retry of a message that could not be routed."""


class ConfirmedPublisher(BrokerConnection):
    """A Publisher. Messages are counted by their place: 0 for the first one."""

    def __init__(
        self,
        parameters: pika.ConnectionParameters,
        topology: Topology,
        window: int,
        timer: Callable[[], float] = monotonic,
    ) -> None:
        self._timer = timer
        self._window = window
        self._silence = parameters.blocked_connection_timeout
        self._submitted = 0
        self._confirmed_prefix = 0
        self._advanced_at = self._timer()
        self._confirmed_places: set[int] = set()
        self._tags = 0
        self._unconfirmed: dict[int, _Sent] = {}
        self._returned_ids: set[str] = set()
        self._awaiting_retry: list[list[_Sent]] = [[] for _ in REPUBLISH_AFTER]
        self.returned = 0
        super().__init__(parameters, topology)

    def publish(self, messages: Sequence[Message]) -> None:
        start = 0
        while start < len(messages):
            count = self._wait_for_room(len(messages) - start)
            batch = messages[start : start + count]
            if self._submitted == self._confirmed_prefix:
                self._advanced_at = self._timer()
            self._submit(partial(self._send_all, batch, self._submitted))
            self._submitted += count
            start += count

    def confirmed(self) -> int:
        self._check()
        return self._confirmed_prefix

    def wait(self, more_than: int, timeout: float) -> int:
        self._await(lambda: self._confirmed_prefix > more_than, timeout)
        return self.confirmed()

    def _wait_for_room(self, wanted: int) -> int:
        """Waits until the window has room for a good part of `wanted`; returns how much."""
        enough = min(wanted, max(1, self._window // 2))
        most = self._window - self._submitted
        while not self._await(lambda: most + self._confirmed_prefix >= enough, 1):
            self._check()
        return min(wanted, most + self._confirmed_prefix)

    def _check(self) -> None:
        """Raises the connection's error, or BrokerUnavailable if confirms take too long."""
        super()._check()
        waiting = self._submitted > self._confirmed_prefix
        if waiting and self._timer() - self._advanced_at > self._silence:
            raise BrokerUnavailable(f"RabbitMQ has confirmed nothing for {self._silence:.0f} s")

    # ── in the I/O thread ─────────────────────────────────────────────────────────────────

    def _send_all(self, messages: Sequence[Message], first: int) -> None:
        for place, message in enumerate(messages, first):
            self._send(_Sent(place, message))

    def _send(self, sent: "_Sent") -> None:
        self._tags += 1
        self._unconfirmed[self._tags] = sent
        message = sent.message
        self._publish(EXCHANGE, message.routing_key, message, message.headers)

    def _on_return(self, message_id: str) -> None:
        """Notes that the confirm that follows does not count for this message."""
        self._returned_ids.add(message_id)

    def _on_confirm(self, tag: int, multiple: bool) -> None:
        sent_before = takewhile(lambda each: each <= tag, self._unconfirmed)  # in order of sending
        for each in list(sent_before) if multiple else (tag,):
            sent = self._unconfirmed.pop(each)
            if sent.message.id in self._returned_ids:
                self._returned_ids.remove(sent.message.id)
                self._republish_later(sent)
            else:
                self._confirmed_places.add(sent.place)
        self._advance_prefix()

    def _advance_prefix(self) -> None:
        before = prefix = self._confirmed_prefix
        while prefix in self._confirmed_places:
            self._confirmed_places.remove(prefix)
            prefix += 1
        if prefix > before:
            self._advanced_at = self._timer()
            self._confirmed_prefix = prefix

    def _republish_later(self, sent: "_Sent") -> None:
        """Retries an unroutable message in a batch with others of the same attempt."""
        self.returned += sent.tries == 0
        if sent.tries == len(REPUBLISH_AFTER):
            log.warning("Not routable, left to the sweep", extra={"event_id": sent.message.id})
            self._confirmed_places.add(sent.place)
            return
        waiting = self._awaiting_retry[sent.tries]
        if not waiting:
            self._later(REPUBLISH_AFTER[sent.tries], partial(self._declare_and_send, waiting))
        waiting.append(sent)

    def _declare_and_send(self, waiting: list["_Sent"]) -> None:
        def steps() -> Iterator[ChannelOperation]:
            yield from self._topology.steps(self._channel)
            for sent in waiting:
                self._send(replace(sent, tries=sent.tries + 1))
            waiting.clear()

        self._in_turn(steps())


@dataclass(frozen=True, slots=True)
class _Sent:
    """A message, its place among those that were published, and how often it came back."""

    place: int
    message: Message
    tries: int = 0
