"""Load over HTTP: as much as goes (wrk), or at a fixed rate whatever the answers do (ours).

At a fixed rate a request's time counts from when it should have gone, so a server that falls
behind is not spared by a client that waits for it (coordinated omission).
"""

import asyncio
import re
import subprocess
import tempfile
import time
from collections import Counter
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
    """What wrk says: all answers, in so many seconds; every one was good."""

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
    """What became of requests at a fixed rate; `times` in seconds, of the good answers."""

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
    """Requests that are due, and the connections that send them."""

    def __init__(self, url: str, body: str, on_answer: OnAnswer) -> None:
        self._place = place = urlsplit(url)
        self._request = (
            f"POST {place.path} HTTP/1.1\r\nHost: {place.netloc}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n{body}"
        ).encode()
        self._on_answer = on_answer
        self._due: asyncio.Queue[float | None] = asyncio.Queue()
        self._outcome = Outcome()

    async def run(self, rate: float, seconds: float, connections: int) -> Outcome:
        clients = [asyncio.create_task(self._client()) for _ in range(connections)]
        began = time.perf_counter()
        for number in range(int(rate * seconds)):
            begin = began + number / rate
            if (early := begin - time.perf_counter()) > 0:
                await asyncio.sleep(early)
            self._due.put_nowait(begin)
        for _ in clients:
            self._due.put_nowait(None)
        await asyncio.gather(*clients)
        self._outcome.seconds = time.perf_counter() - began
        return self._outcome

    async def _client(self) -> None:
        connection: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        while (begin := await self._due.get()) is not None:
            status, body = 0, b""
            try:
                async with asyncio.timeout(PATIENCE):
                    if connection is None:
                        connection = await asyncio.open_connection(
                            self._place.hostname, self._place.port
                        )
                    reader, writer = connection
                    writer.write(self._request)
                    status, body, closes = await _answer(reader)
                if closes:
                    writer.close()
                    connection = None
            except (OSError, asyncio.IncompleteReadError):
                if connection:
                    connection[1].close()
                    connection = None
            self._note(status, body, begin)
        if connection:
            connection[1].close()

    def _note(self, status: int, body: bytes, begin: float) -> None:
        self._outcome.statuses[status] += 1
        if status in (200, 202):
            self._outcome.times.append(time.perf_counter() - begin)
            self._on_answer(body)


async def _answer(reader: asyncio.StreamReader) -> tuple[int, bytes, bool]:
    """The status, the body, and whether the connection ends with it."""
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    length = re.search(rb"content-length: (\d+)", head)
    body = await reader.readexactly(int(length[1])) if length else b""
    return int(head.split(b" ", 2)[1]), body, b"connection: close" in head
