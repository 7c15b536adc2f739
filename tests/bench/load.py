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
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from local.packages import wrk_program

CONNECTIONS = 64
"""Of the client with a fixed rate; more would only wait in the server."""


def as_much_as_goes(
    url: str, seconds: float, connections: int, body: str = "", headers: Mapping[str, str] = {}
) -> float:
    """Good answers a second; raises AssertionError if there was any other."""
    lines = [f'wrk.headers["{name}"] = "{value}"' for name, value in headers.items()]
    if body:
        lines += ['wrk.method = "POST"', f"wrk.body = [[{body}]]"]
        lines += ['wrk.headers["Content-Type"] = "application/json"']
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
        script.write("\n".join(lines))
        script.flush()
        told = ["-t1", f"-c{connections}", f"-d{seconds:.0f}s", "-s", script.name, url]
        said = subprocess.run(
            [str(wrk_program()), *told], capture_output=True, text=True, check=True
        ).stdout
    refused = re.search(r"Non-2xx or 3xx responses: .*|Socket errors: .*", said)
    assert not refused, refused
    return float(re.search(r"Requests/sec:\s+([0-9.]+)", said)[1])  # type: ignore[index]


@dataclass
class Outcome:
    """What became of requests at a fixed rate; times in seconds."""

    seconds: float
    statuses: Counter[int] = field(default_factory=Counter)
    times: list[float] = field(default_factory=list)

    @property
    def good(self) -> int:
        return self.statuses[200] + self.statuses[202]

    def percentile(self, share: float) -> float:
        """Of the good answers."""
        ordered = sorted(self.times)
        return ordered[min(len(ordered) - 1, int(len(ordered) * share))] if ordered else 0.0


def at_rate(url: str, rate: float, seconds: float, body: str) -> Outcome:
    """POST `body` so many times a second, for so long."""
    return asyncio.run(_at_rate(url, rate, seconds, body))


async def _at_rate(url: str, rate: float, seconds: float, body: str) -> Outcome:
    place = urlsplit(url)
    request = (
        f"POST {place.path} HTTP/1.1\r\nHost: {place.netloc}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n{body}"
    ).encode()
    due: asyncio.Queue[float | None] = asyncio.Queue()
    outcome = Outcome(seconds)

    async def connection() -> None:
        reader = writer = None
        while (begin := await due.get()) is not None:
            try:
                if writer is None or writer.is_closing():
                    reader, writer = await asyncio.open_connection(place.hostname, place.port)
                assert reader
                writer.write(request)
                status, closes = await _answer(reader)
                if closes:
                    writer.close()
            except (OSError, asyncio.IncompleteReadError):
                status = 0
                if writer:
                    writer.close()
            outcome.statuses[status] += 1
            if status in (200, 202):
                outcome.times.append(time.perf_counter() - begin)
        if writer:
            writer.close()

    clients = [asyncio.create_task(connection()) for _ in range(CONNECTIONS)]
    began = time.perf_counter()
    for number in range(int(rate * seconds)):
        begin = began + number / rate
        await asyncio.sleep(max(0.0, begin - time.perf_counter()))
        due.put_nowait(begin)
    for _ in clients:
        due.put_nowait(None)
    await asyncio.gather(*clients)
    return outcome


async def _answer(reader: asyncio.StreamReader) -> tuple[int, bool]:
    """The status, and whether the connection ends with it."""
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    length = re.search(rb"content-length: (\d+)", head)
    if length:
        await reader.readexactly(int(length[1]))
    return int(head.split(b" ", 2)[1]), b"connection: close" in head


def pid_and_children(pid: int) -> list[int]:
    """A process and all below it."""
    found, todo = [], [pid]
    while todo:
        each = todo.pop()
        found.append(each)
        for task in Path(f"/proc/{each}/task").glob("*/children"):
            todo += [int(child) for child in task.read_text().split()]
    return found
