"""What a caller may make a process hold: little, and not for long, while others are answered."""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from eventcore.serving import READ_TIME
from local.shop import Shop
from tests.integration.wire import USER_DOORS, Wire, parse

GIGABYTE = 10**9
READ_AT_MOST = 16 * 1024 * 1024
"""Bytes that are gone before the refusal is seen; most of them into buffers of sockets."""

POST = b"POST /users HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
BLOCK = b"x" * 65536
DEEP = b'{"a":' * 100_000 + b"1" + b"}" * 100_000


def endless(begin: bytes, again: bytes) -> Callable[[], Iterator[bytes]]:
    """`begin`, and then `again` until a gigabyte is sent."""

    def parts() -> Iterator[bytes]:
        yield begin
        for _ in range(GIGABYTE // len(again)):
            yield again

    return parts


FLOODS: dict[str, Callable[[], Iterator[bytes]]] = {
    "a gigabyte, declared": endless(POST + b"Content-Length: %d\r\n\r\n" % GIGABYTE, BLOCK),
    "a gigabyte in chunks": endless(
        POST + b"Transfer-Encoding: chunked\r\n\r\n", b"10000\r\n" + BLOCK + b"\r\n"
    ),
    "a gigabyte of one chunk": endless(
        POST + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n" % GIGABYTE, BLOCK
    ),
    "a size of a chunk that never ends": endless(
        POST + b"Transfer-Encoding: chunked\r\n\r\n", b"0" * 65536
    ),
    "trailers that never end": endless(
        POST + b"Transfer-Encoding: chunked\r\n\r\n0\r\n", b"X-Filler: x\r\n" * 5000
    ),
    "headers that never end": endless(POST, b"X-Filler: x\r\n" * 5000),
    "a header that never ends": endless(POST + b"X-Filler: ", BLOCK),
    "an address that never ends": endless(b"GET /", BLOCK),
    "JSON that is 100,000 deep": lambda: iter(
        [POST + b"Content-Length: %d\r\n\r\n" % len(DEEP), DEEP]
    ),
    "10,000 headers": lambda: iter(
        [POST + b"".join(b"X-Filler-%d: x\r\n" % n for n in range(10_000)) + b"\r\n"]
    ),
}


@contextmanager
def others_answered(wire: Wire, user_id: str, at: str, within: float) -> Iterator[None]:
    """Meanwhile somebody else asks, again and again, and is answered each time."""
    stop = threading.Event()

    def ask() -> list[tuple[int, float]]:
        answers = []
        while not stop.is_set():
            began = time.monotonic()
            status = wire.send("GET", f"/users/{user_id}", at=at).status
            answers.append((status, time.monotonic() - began))
        return answers

    with ThreadPoolExecutor(1) as somebody:
        asked = somebody.submit(ask)
        try:
            yield
        finally:
            stop.set()
        answers = asked.result()
    assert {status for status, _ in answers} == {200}
    assert max(seconds for _, seconds in answers) < within


def flood(shop: Shop, at: str, parts: Iterator[bytes]) -> tuple[int, bytes]:
    """How many bytes were sent until it was hung up, or all were; and what was answered."""
    place, sent = urlsplit(shop.url(at)), 0
    with socket.create_connection((place.hostname, place.port), timeout=15) as connection:
        try:
            for part in parts:
                connection.sendall(part)
                sent += len(part)
        except ConnectionError:
            pass  # it was refused before all was sent
        answer = b""
        try:
            while some := connection.recv(65536):
                answer += some
        except ConnectionError:
            pass  # it had hung up on what was still coming
    return sent, answer


def memory(pid: int) -> int:
    """Bytes that a process and those it has started hold."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    status = Path(f"/proc/{pid}/status").read_text()
    own = int(status.partition("VmRSS:")[2].split()[0]) * 1024
    return own + sum(memory(int(child)) for child in children)


@pytest.mark.usefixtures("nothing_written", "nothing_unexpected")
@pytest.mark.parametrize("at", USER_DOORS)
def test_a_flood_is_refused_early_costs_no_memory_and_others_are_answered(
    shop: Shop, wire: Wire, user_id: str, at: str
) -> None:
    for _ in range(50):
        wire.send("GET", f"/users/{user_id}", at=at)
    before = memory(shop.pid(at))
    with others_answered(wire, user_id, at, within=10):
        for name, parts in FLOODS.items():
            sent, answer = flood(shop, at, parts())
            assert sent < READ_AT_MOST, name
            if answer:
                assert parse(at, answer).status in (400, 413, 414, 431), name
    assert memory(shop.pid(at)) < before * 1.1


@pytest.mark.usefixtures("nothing_written")
@pytest.mark.parametrize("at", USER_DOORS)
def test_a_body_that_is_too_large_is_refused_before_its_end_is_there(shop: Shop, at: str) -> None:
    place, began = urlsplit(shop.url(at)), time.monotonic()
    with socket.create_connection((place.hostname, place.port), timeout=15) as connection:
        connection.sendall(POST + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n" % GIGABYTE)
        connection.sendall(BLOCK * 2)
        assert parse(at, connection.recv(65536)).status == 413
    assert time.monotonic() - began < READ_TIME / 2


SLOW_REQUESTS = {
    "a body": POST + b"Content-Length: 1000\r\n\r\n",
    "a body in chunks": POST + b"Transfer-Encoding: chunked\r\n\r\n400\r\n",
    "headers": b"GET /healthz HTTP/1.1\r\nHost: x\r\nX-Filler: ",
    "an address": b"GET /",
}


@pytest.mark.usefixtures("nothing_written", "nothing_unexpected")
def test_who_sends_slowly_is_hung_up_on_and_keeps_nobody_from_being_answered(
    shop: Shop, wire: Wire, user_id: str
) -> None:
    """As many of them as there are threads, at each door."""

    def drip(at: str, begin: bytes) -> float:
        place, began = urlsplit(shop.url(at)), time.monotonic()
        with socket.create_connection((place.hostname, place.port), timeout=0.3) as connection:
            connection.sendall(begin)
            while time.monotonic() - began < 4 * READ_TIME:
                try:
                    connection.sendall(b"1")
                    if not connection.recv(65536):
                        break
                except TimeoutError:
                    continue
                except ConnectionError:
                    break
        return time.monotonic() - began

    slow = [(at, begin) for at in USER_DOORS for begin in SLOW_REQUESTS.values()] * 4
    with (
        ThreadPoolExecutor(len(slow)) as senders,
        others_answered(wire, user_id, "gateway", within=READ_TIME * 0.8),
        others_answered(wire, user_id, "user-service", within=READ_TIME * 0.8),
    ):
        lasted = list(senders.map(lambda each: drip(*each), slow))
    assert max(lasted) < 2 * READ_TIME
