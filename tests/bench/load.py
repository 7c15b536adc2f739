"""Load over HTTP: as much as goes (wrk), or at a fixed rate whatever the answers do (ours).

At a fixed rate a request's time counts from when it should have gone, so a server that falls
behind is not spared by a client that waits for it (coordinated omission).
"""

import asyncio
import re
import subprocess
import tempfile
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from local.packages import wrk_program

PATIENCE = 10.0
"""Seconds that a request at a fixed rate may take; what takes longer counts as unanswered."""

_KEYED = """
local count = 0
request = function()
  count = count + 1
  wrk.headers["Idempotency-Key"] = "%s-" .. count
  return wrk.format()
end
"""


@dataclass(frozen=True, slots=True)
class Peak:
    """The result of wrk: the number of answers, all good, and the seconds."""

    answers: int
    seconds: float

    @property
    def rate(self) -> float:
        return self.answers / self.seconds


def as_much_as_goes(
    url: str, seconds: float, connections: int, body: str = "", keys: str = ""
) -> Peak:
    """Ask all the time over so many connections; raises AssertionError for an answer that is none.

    With a `body` it is a POST; with `keys` each has an Idempotency-Key that begins so.
    """
    script = _KEYED % keys if keys else ""
    if body:
        script += f'wrk.method = "POST"\nwrk.body = [[{body}]]\n'
        script += 'wrk.headers["Content-Type"] = "application/json"\n'
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as file:
        file.write(script)
        file.flush()
        told = ["-t1", f"-c{connections}", f"-d{seconds:.0f}s", "--timeout", "10s", "-s", file.name]
        command = [str(wrk_program()), *told, url]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    refused = re.search(r"Non-2xx or 3xx responses: .*|Socket errors: .*", said)
    assert not refused, f"{url}: {refused and refused[0]}"
    answers = re.search(r"(\d+) requests in", said)
    rate = re.search(r"Requests/sec:\s+([0-9.]+)", said)
    assert answers, said
    assert rate, said
    return Peak(int(answers[1]), int(answers[1]) / max(float(rate[1]), 0.001))


@dataclass
class Outcome:
    """The result of requests at a fixed rate; `times` of the good answers, in seconds."""

    statuses: Counter[int] = field(default_factory=Counter)
    times: list[float] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def good(self) -> int:
        return self.statuses[200] + self.statuses[202]

    def percentile(self, share: float) -> float:
        """Of the good answers."""
        return percentile(self.times, share)


def percentile(values: list[float], share: float) -> float:
    """The value that this share of them does not exceed; 0 of none."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))] if ordered else 0.0


OnAnswer = Callable[[bytes], None]


def at_rate(
    url: str,
    rate: float,
    seconds: float,
    body: str,
    on_answer: OnAnswer = lambda _: None,
    connections: int = 64,
) -> Outcome:
    """POST `body` so many times a second, for so long; `on_answer` gets each good answer's body."""
    return asyncio.run(_Load(url, body, on_answer).run(rate, seconds, connections))


class _Load:
    """Requests that are due, and the connections that send them, in turn."""

    def __init__(self, url: str, body: str, on_answer: OnAnswer) -> None:
        self.place = place = urlsplit(url)
        self.request = (
            f"POST {place.path} HTTP/1.1\r\nHost: {place.netloc}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n{body}"
        ).encode()
        self._on_answer = on_answer
        self._due: deque[float] = deque()
        self._idle: deque[_Connection] = deque()
        self._busy: dict[_Connection, float] = {}
        self._all_said = asyncio.Event()
        self._outcome = Outcome()

    async def run(self, rate: float, seconds: float, connections: int) -> Outcome:
        self._idle.extend(_Connection(self) for _ in range(connections))
        watch = asyncio.create_task(self._end_what_takes_too_long())
        began = time.perf_counter()
        for number in range(int(rate * seconds)):
            begin = began + number / rate
            if (early := begin - time.perf_counter()) > 0:
                await asyncio.sleep(early)
            self._due.append(begin)
            self._send_what_is_due()
        while self._due or self._busy:
            self._all_said.clear()
            await self._all_said.wait()
        self._outcome.seconds = time.perf_counter() - began
        watch.cancel()
        for connection in self._idle:
            connection.close()
        return self._outcome

    def _send_what_is_due(self) -> None:
        while self._due and self._idle:
            connection = self._idle.popleft()
            if connection.is_lost:
                connection = _Connection(self)
            self._busy[connection] = time.perf_counter()
            connection.send(self._due.popleft())

    def note(self, connection: "_Connection", status: int, body: bytes, begin: float) -> None:
        """An answer came, or status 0: none did. The connection is free."""
        self._outcome.statuses[status] += 1
        if status in (200, 202):
            self._outcome.times.append(time.perf_counter() - begin)
            self._on_answer(body)
        del self._busy[connection]
        self._idle.append(connection)
        self._send_what_is_due()
        if not self._busy:
            self._all_said.set()

    async def _end_what_takes_too_long(self) -> None:
        while True:
            await asyncio.sleep(PATIENCE / 20)
            too_old = time.perf_counter() - PATIENCE
            for connection in [each for each, sent in self._busy.items() if sent < too_old]:
                connection.close()


class _Connection(asyncio.Protocol):
    """One connection, opened by its first request; a request at a time."""

    def __init__(self, load: _Load) -> None:
        self._load = load
        self._begin: float | None = None
        self._data = b""
        self._transport: asyncio.Transport | None = None
        self._opening: asyncio.Task[None] | None = None
        self.is_lost = False

    def send(self, begin: float) -> None:
        """Send a request that should have gone at `begin`."""
        self._begin = begin
        if self._transport:
            self._transport.write(self._load.request)
        else:
            self._opening = asyncio.create_task(self._open())

    def close(self) -> None:
        """End it; a request that it has in hand stays without an answer."""
        if self._transport:
            self._transport.abort()
        elif self._opening:
            self._opening.cancel()
        self.connection_lost(None)

    async def _open(self) -> None:
        place = self._load.place
        try:
            await asyncio.get_running_loop().create_connection(
                lambda: self, place.hostname or "", place.port or 80
            )
        except OSError as error:
            self.connection_lost(error)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio.Protocol."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.write(self._load.request)

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol."""
        self._data += data
        head, ended, body = self._data.partition(b"\r\n\r\n")
        told = _HEAD.match(head) if ended else None
        if not told or len(body) < int(told["length"]):
            return
        self._data = b""
        if b"connection: close" in head.lower():
            self.is_lost = True
            assert self._transport
            self._transport.close()
        self._answered(int(told["status"]), body)

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio.Protocol."""
        self.is_lost = True
        self._answered(0, b"")

    def _answered(self, status: int, body: bytes) -> None:
        begin, self._begin = self._begin, None
        if begin is not None:
            self._load.note(self, status, body, begin)


_HEAD = re.compile(
    rb"HTTP/1\.1 (?P<status>\d+).*?^content-length: (?P<length>\d+)", re.I | re.S | re.M
)
