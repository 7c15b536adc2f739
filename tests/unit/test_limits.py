"""Limits on the requests of one process, and the check that it still answers, in one process."""

import socket
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from typing import Any

import pytest

from eventcore.errors import Misconfigured
from eventcore.observe.health import STUCK
from eventcore.observe.probes import listen
from eventcore.web import overload
from eventcore.web.overload import Overload
from eventcore.web.readiness import Liveness, is_answering
from tests.beside import beside


class App:
    """A WSGI application that answers when it is told to."""

    def __init__(self) -> None:
        self.may_answer = threading.Event()
        self.in_progress = threading.Semaphore(0)
        self.bodies: list[bytes] = []

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        self.in_progress.release()
        self.may_answer.wait(10)
        self.bodies.append(environ["wsgi.input"].read())
        start_response("200 OK", [])
        return [b"done"]


class Late(BytesIO):
    """A body of which no more comes within the time limit of its socket."""

    def read(self, size: int | None = -1) -> bytes:
        raise BlockingIOError


@pytest.fixture
def app() -> Iterator[App]:
    app = App()
    yield app
    app.may_answer.set()


def ask(behind: Callable[..., Iterable[bytes]], path: str = "/users", **more: Any) -> str:
    """The status line of an answer."""
    environ = {
        "REQUEST_METHOD": "POST",
        "PATH_INFO": path,
        "SERVER_PROTOCOL": "HTTP/1.1",
        "HTTP_HOST": "shop",
        "wsgi.input": BytesIO(),
        **more,
    }
    said: list[str] = []
    behind(environ, lambda status, _headers, _error=None: said.append(status))
    [status] = said
    return status


def test_a_request_beyond_the_permits_is_refused_after_a_moment(
    app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("eventcore.web.overload.PATIENCE", 0.01)
    overload = Overload(app, permits=2)
    with ThreadPoolExecutor(2) as callers:
        first = [callers.submit(ask, overload) for _ in range(2)]
        for _ in first:
            assert app.in_progress.acquire(timeout=10)
        assert ask(overload) == "503 Service Unavailable"
        app.may_answer.set()
        assert [each.result() for each in first] == ["200 OK"] * 2
    assert ask(overload) == "200 OK"


@pytest.mark.parametrize("path", overload.PROBES)
def test_a_probe_needs_no_permit(app: App, path: str) -> None:
    overload = Overload(app, permits=1)
    with ThreadPoolExecutor(2) as callers:
        first = callers.submit(ask, overload)
        assert app.in_progress.acquire(timeout=10)
        probe = callers.submit(ask, overload, path)
        assert app.in_progress.acquire(timeout=10)
        app.may_answer.set()
        assert [first.result(), probe.result()] == ["200 OK"] * 2


def test_the_body_is_read_before_a_permit_is_taken(app: App) -> None:
    app.may_answer.set()
    overload = Overload(app, permits=1)
    late: dict[str, Any] = {"wsgi.input": Late(), "CONTENT_LENGTH": "5"}
    assert ask(overload, **late) == "408 Request Timeout"
    assert app.bodies == []
    whole: dict[str, Any] = {"wsgi.input": BytesIO(b"hello"), "CONTENT_LENGTH": "5"}
    assert ask(overload, **whole) == "200 OK"
    assert app.bodies == [b"hello"]


def test_a_permit_is_free_again_before_the_answer_is_sent(app: App) -> None:
    app.may_answer.set()
    overload = Overload(app, permits=1)
    for _ in range(3):
        assert ask(overload) == "200 OK"  # nobody takes what was answered


# ── liveness ──────────────────────────────────────────────────────────────────────────────


class Clock:
    """A clock that is moved by hand."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_permits_that_nobody_gives_back_are_a_stuck_process(app: App, clock: Clock) -> None:
    overload = Overload(app, permits=1)
    liveness = Liveness(overload.makes_progress, clock=clock)
    assert not liveness.stuck()
    with ThreadPoolExecutor(1) as callers:
        for _ in range(3):
            first = callers.submit(ask, overload)
            assert app.in_progress.acquire(timeout=10)
            assert not liveness.stuck()  # one has ended since, or it has just begun to fail
            clock.now += STUCK + 1
            assert liveness.stuck()
            app.may_answer.set()
            first.result()
            assert not liveness.stuck()
            app.may_answer.clear()


def test_one_failed_check_after_a_long_silence_is_not_yet_a_stuck_process(clock: Clock) -> None:
    works = [True]
    liveness = Liveness(lambda: works[0], clock=clock)
    assert not liveness.stuck()
    clock.now += 10 * STUCK
    works[0] = False
    assert not liveness.stuck()
    clock.now += STUCK - 1
    assert not liveness.stuck()
    clock.now += 2
    assert liveness.stuck()
    works[0] = True
    assert not liveness.stuck()


class _Healthy(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/healthz" else 404)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Nothing is worth a line."""


def test_a_process_asks_itself_over_the_network() -> None:
    with beside(ThreadingHTTPServer(("127.0.0.1", 0), _Healthy)) as server:
        assert is_answering("127.0.0.1", server.server_port)


def test_a_listener_that_nobody_serves_does_not_answer() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        assert not is_answering(*listener.getsockname())


# ── listeners ─────────────────────────────────────────────────────────────────────────────


def reaches(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), timeout=5).close()
    except ConnectionRefusedError:
        return False
    return True


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="this machine has no IPv6")
@pytest.mark.parametrize(
    ("host", "hosts"),
    [
        ("", ["127.0.0.1", "::1"]),
        ("127.0.0.1", ["127.0.0.1"]),
        ("::1", ["::1"]),
        ("localhost", ["127.0.0.1", "::1"]),
    ],
)
def test_a_listener_is_there_for_the_addresses_that_are_asked_for(
    host: str, hosts: list[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = int(other.getsockname()[1])
    listeners = listen(host, port)
    try:
        assert [each for each in ("127.0.0.1", "::1") if reaches(each, port)] == hosts
    finally:
        for each in listeners:
            each.close()


def test_a_port_that_another_process_has_is_a_misconfiguration() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = int(other.getsockname()[1])
        with pytest.raises(Misconfigured, match=f"port {port}: Address already in use"):
            listen("localhost", port)


def test_no_port_is_no_listener() -> None:
    assert listen("", 0) == []
