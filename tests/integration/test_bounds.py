"""Limits on what a caller can make a process hold, while others are answered."""

import http.client
import os
import re
import resource
import signal
import socket
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from eventcore.web.sockets import SOCKET_TIME
from local.shop import Shop
from tests.integration.wire import USER_DOORS, Wire, parse

pytestmark = pytest.mark.timeout(240)  # the first test waits until all processes have started

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
    """Another caller asks meanwhile, again and again: each answer comes, and 19 of 20 within
    so many seconds.
    """
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
    times = [seconds for _, seconds in answers]
    assert statistics.quantiles(times, n=20)[-1] < within, times
    assert max(times) < max(within, SOCKET_TIME / 2), times


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
    assert time.monotonic() - began < SOCKET_TIME / 2


# ── callers that hold connections ─────────────────────────────────────────────────────────

CALLERS = 64
"""Callers of one kind; four times as many as there are permits."""

SILENT = 1000
BODY = POST + b"Content-Length: 1000\r\n\r\n"
CHUNKS = POST + b"Transfer-Encoding: chunked\r\n\r\n400\r\n"
HEADERS = b"GET /healthz HTTP/1.1\r\nHost: x\r\nX-Filler: "
UNFINISHED = (BODY, CHUNKS, HEADERS, b"GET /")

Hold = Callable[[Shop, str, ExitStack], list[socket.socket]]


def connect(shop: Shop, at: str, held: ExitStack, window: int = 0) -> socket.socket:
    """A connection whose receive buffer has `window` bytes, if that is given."""
    place = urlsplit(shop.url(at))
    connection = held.enter_context(socket.socket())
    if window:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, window)
    connection.settimeout(15)
    connection.connect((place.hostname, place.port))
    return connection


def never_read(shop: Shop, at: str, held: ExitStack) -> list[socket.socket]:
    page = Wire(shop).send("GET", "/docs", at=at).body.decode()
    bundle = re.findall(r'src="([^"]*bundle[^"]*)"', page)[0].removeprefix("/")
    ask = f"GET /{bundle} HTTP/1.1\r\nHost: x\r\n\r\n".encode()
    connections = [connect(shop, at, held, window=2048) for _ in range(CALLERS)]
    for connection in connections:
        connection.sendall(ask * 8)
    return connections


def never_finish(shop: Shop, at: str, held: ExitStack) -> list[socket.socket]:
    connections = [connect(shop, at, held) for _ in range(CALLERS)]
    for number, connection in enumerate(connections):
        connection.sendall(UNFINISHED[number % len(UNFINISHED)])
    return connections


def trickle(shop: Shop, at: str, held: ExitStack) -> list[socket.socket]:
    connections = never_finish(shop, at, held)
    stop = threading.Event()

    def drip() -> None:
        while not stop.wait(2):
            for connection in connections:
                connection.sendall(b"1")

    thread = threading.Thread(target=drip)
    thread.start()
    held.callback(thread.join)
    held.callback(stop.set)
    return connections


def stay_silent(shop: Shop, at: str, held: ExitStack) -> list[socket.socket]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = max(soft, min(hard, 2 * SILENT))
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return [connect(shop, at, held) for _ in range(SILENT)]


def await_cut(shop: Shop, at: str, connections: list[socket.socket]) -> None:
    """Return when the server holds none of these any more."""
    ours = {connection.getsockname()[1] for connection in connections}
    deadline = time.monotonic() + 3 * SOCKET_TIME
    while ours & accepted(urlsplit(shop.url(at)).port or 0):
        assert time.monotonic() < deadline, "a connection is still held"
        time.sleep(0.1)


def accepted(port: int) -> set[int]:
    """The ports of the peers whose connections the process behind `port` has not closed."""
    lines = [
        line.split()
        for table in ("/proc/net/tcp", "/proc/net/tcp6")
        for line in Path(table).read_text().splitlines()[1:]
    ]
    here = f":{port:04X}"
    held = [fields[2] for fields in lines if fields[1].endswith(here) and fields[3] in ("01", "08")]
    return {int(peer.rpartition(":")[2], 16) for peer in held}


@pytest.mark.usefixtures("nothing_written", "nothing_unexpected")
@pytest.mark.parametrize("at", USER_DOORS)
@pytest.mark.parametrize(
    ("hold", "are_cut"),
    [(never_read, True), (never_finish, True), (trickle, False), (stay_silent, False)],
)
def test_callers_that_hold_connections_leave_all_others_their_answers(
    shop: Shop, wire: Wire, user_id: str, at: str, hold: Hold, are_cut: bool
) -> None:
    shop.start()
    with ExitStack() as held, others_answered(wire, user_id, at, within=1):
        connections = hold(shop, at, held)
        time.sleep(SOCKET_TIME + 3)  # past each time limit of the server
        assert metrics_port(shop, at, "/livez") == 200
        assert metrics_port(shop, at, "/readyz") == 200
        if are_cut:
            await_cut(shop, at, connections)


# ── probes ────────────────────────────────────────────────────────────────────────────────


def metrics_port(shop: Shop, at: str, path: str, host: str = "127.0.0.1") -> int:
    """The status of an answer on a process's metrics port."""
    port = int(shop.environment(at)["METRICS_PORT"])
    connection = http.client.HTTPConnection(host, port, timeout=5)
    try:
        connection.request("GET", path)
        return connection.getresponse().status
    finally:
        connection.close()


def worker(shop: Shop, at: str) -> int:
    """The process that answers requests."""
    master = shop.pid(at)
    [only] = Path(f"/proc/{master}/task/{master}/children").read_text().split()
    return int(only)


@pytest.mark.parametrize("at", USER_DOORS)
def test_a_process_that_answers_nobody_does_not_say_that_it_lives(shop: Shop, at: str) -> None:
    shop.start()
    os.kill(serving := worker(shop, at), signal.SIGSTOP)
    try:
        with pytest.raises(TimeoutError):
            metrics_port(shop, at, "/livez")
    finally:
        os.kill(serving, signal.SIGCONT)
    assert metrics_port(shop, at, "/livez") == 200


@pytest.mark.parametrize("at", USER_DOORS)
def test_no_thread_runs_in_the_process_that_forks(shop: Shop, wire: Wire, at: str) -> None:
    shop.start()
    assert wire.send("GET", "/healthz", at=at).status == 200
    assert metrics_port(shop, at, "/metrics") == 200
    assert len(list(Path(f"/proc/{shop.pid(at)}/task").iterdir())) == 1


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="this machine has no IPv6")
@pytest.mark.parametrize("at", [*USER_DOORS, "user-relay"])
def test_a_process_listens_on_both_families(shop: Shop, at: str) -> None:
    shop.start()
    for host in ("127.0.0.1", "::1"):
        assert metrics_port(shop, at, "/healthz", host) == 200
        if at in USER_DOORS:
            place = (host, urlsplit(shop.url(at)).port)
            with socket.create_connection(place, timeout=5) as connection:
                connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
                assert connection.recv(65536).startswith(b"HTTP/1.1 200")
