"""Calls to a service behind the gateway: kept connections, time limits, bulkhead, circuit."""

import select
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException, HTTPMessage, HTTPSConnection
from threading import BoundedSemaphore
from time import monotonic
from urllib.parse import urlsplit

from eventcore.errors import Overloaded, Unavailable
from eventcore.observe.tracing import calling, note_status
from eventcore.retry import CircuitBreaker
from eventcore.web.caller import SAFE

CONNECT_TIME = 1.0
"""Seconds within which a connection must be established."""

ANSWER_TIME = 10.0
"""Seconds within which a service must answer, repeated calls included."""

IDLE_TIME = 1.0
"""Seconds after which a kept connection is not used again. A service that stops still answers on
its connections for two seconds, so a request does not meet one that is being closed."""

PATIENCE = 1.0
"""Seconds that a call waits for a permit, while the service answers others."""


class UpstreamUnavailable(Unavailable):
    """A service did not answer. `status` 503: nothing was sent; 502, 504: it may have been done."""

    code = "upstream-away"

    def __init__(self, reason: str, status: int = 503) -> None:
        super().__init__(reason)
        self.status = status
        self.unreachable = status != 502


@dataclass(frozen=True, slots=True)
class Answer:
    """A service's answer, read to its end."""

    status: int
    headers: HTTPMessage
    body: bytes


class Upstream:
    """One service. At most `calls` requests are with it at a time, so that the gateway's other
    threads stay free when it hangs; while it cannot be reached, calls to it fail at once.
    """

    def __init__(self, url: str, calls: int) -> None:
        self.url = url
        parts = urlsplit(url)
        self._kind = HTTPSConnection if parts.scheme == "https" else HTTPConnection
        self._host, self._port = parts.hostname or "", parts.port
        self._idle = deque[tuple[HTTPConnection, float]]()
        self._permits = BoundedSemaphore(calls)
        self._moved_at = monotonic()
        self._answers = True
        self._circuit = CircuitBreaker()

    def call(
        self, method: str, target: str, body: bytes = b"", headers: Mapping[str, str] | None = None
    ) -> Answer:
        """Sends a request and reads the answer; raises UpstreamUnavailable, Overloaded.

        A request whose connection was lost is sent again, once, if it is safe or carries an
        Idempotency-Key, which every command honours.
        """
        given = headers or {}
        deadline = monotonic() + ANSWER_TIME
        with self._circuit.call(), self._permit(), calling(method, self.url + target) as context:
            for is_last in (False, True):
                try:
                    connection = self._kept() or self._connect()
                except OSError as error:
                    if is_last:
                        raise UpstreamUnavailable(f"not reached: {error}") from error
                    continue
                try:
                    return self._send(
                        connection, method, target, body, {**given, **context}, deadline
                    )
                except TimeoutError as error:
                    raise UpstreamUnavailable(f"no answer within {ANSWER_TIME:g} s", 504) from error
                except (OSError, HTTPException) as error:
                    is_repeatable = method in SAFE or "Idempotency-Key" in given
                    if is_last or not is_repeatable or not isinstance(error, ConnectionError):
                        raise UpstreamUnavailable(f"no answer: {error!r}", 502) from error
            raise AssertionError("the last try returns or raises")

    @contextmanager
    def _permit(self) -> Iterator[None]:
        """Raises Overloaded if all permits are taken and the service is slow to answer.

        A healthy service under load gives permits back all the time, so calls wait for one, unless
        none was taken or given back for PATIENCE, or the last call was not answered.
        """
        patience = self._moved_at + PATIENCE - monotonic() if self._answers else 0.0
        if not self._permits.acquire(timeout=max(0.0, patience)):
            raise Overloaded("The service is slow to answer. Nothing was sent to it; try again.")
        try:
            self._moved_at = monotonic()
            yield
            self._moved_at = monotonic()
            self._answers = True
        except UpstreamUnavailable:
            self._answers = False
            raise
        finally:
            self._permits.release()

    def _kept(self) -> HTTPConnection | None:
        """A connection that was used a moment ago and that the service has not closed."""
        while True:
            try:
                connection, used_at = self._idle.pop()
            except IndexError:
                return None
            poll = select.poll()
            poll.register(connection.sock, select.POLLIN)
            if monotonic() - used_at < IDLE_TIME and not poll.poll(0):
                return connection
            connection.close()

    def _connect(self) -> HTTPConnection:
        connection = self._kind(self._host, self._port, timeout=CONNECT_TIME)
        connection.connect()
        return connection

    def _send(
        self,
        connection: HTTPConnection,
        method: str,
        target: str,
        body: bytes,
        headers: Mapping[str, str],
        deadline: float,
    ) -> Answer:
        connection.sock.settimeout(max(0.001, deadline - monotonic()))
        try:
            connection.request(method, target, body or None, headers)
            received = connection.getresponse()
            answer = Answer(received.status, received.headers, received.read())
            note_status(answer.status)
        except BaseException:
            connection.close()
            raise
        if connection.sock is not None:  # the service keeps it open
            self._idle.append((connection, monotonic()))
        return answer

    def close(self) -> None:
        """Closes the kept connections."""
        while self._idle:
            self._idle.pop()[0].close()
