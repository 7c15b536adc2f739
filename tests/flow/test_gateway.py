"""The gateway's connections: used again at once, not when they may be closing; what they read."""

import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from urllib3.exceptions import HTTPError

from gateway import api
from gateway.api import Upstreams
from tests.beside import beside


class Service(ThreadingHTTPServer):
    """Counts connections, and answers everything with nothing."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.connections = 0


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Service

    def setup(self) -> None:
        super().setup()
        self.server.connections += 1

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Nothing is worth a line."""


@pytest.fixture
def service() -> Iterator[Service]:
    with beside(Service()) as service:
        yield service


def test_a_connection_is_kept_for_a_moment_and_not_used_when_it_has_been_idle(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1000.0]
    monkeypatch.setattr(api, "monotonic", lambda: now[0])
    upstreams = Upstreams({"user": f"http://127.0.0.1:{service.server_port}"}, connections=1)

    def ask() -> int:
        assert upstreams.forward("user", "GET", "/users", b"", {}).status == 200
        return service.connections

    assert [ask(), ask()] == [1, 1]
    now[0] += api.IDLE - 0.1
    assert ask() == 1
    now[0] += api.IDLE + 0.1
    assert ask() == 2
    assert ask() == 2
    upstreams.close()


@contextmanager
def answering(parts: Sequence[bytes]) -> Iterator[Upstreams]:
    """A service that answers one request with these parts, each sent alone, and hangs up."""

    def answer() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            asked = b""
            while b"\r\n\r\n{}" not in asked:
                asked += connection.recv(1000)
            for part in parts:
                connection.sendall(part)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=answer)
        thread.start()
        upstreams = Upstreams({"user": f"http://127.0.0.1:{listener.getsockname()[1]}"}, 1)
        yield upstreams
        upstreams.close()
        thread.join()


def test_an_answer_in_parts_is_read_whole() -> None:
    parts = (b"HTTP/1.1 202 ACC", b'EPTED\r\nETag: "1"\r\nContent-', b"Length: 4\r\n\r\nab", b"cd")
    with answering(parts) as upstreams:
        answer = upstreams.forward("user", "POST", "/users", b"{}", {})
    assert (answer.status, answer.reason, answer.data) == (202, "ACCEPTED", b"abcd")
    assert answer.headers["etag"] == '"1"'


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\n\r\nab",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: two\r\n\r\nab",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nabc",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\na",
        b"HTTP/1.1 200 OK\r\nContent-Le",
        b"HTTP/1.1 200 OK\r\nX: " + b"x" * 2 * api.HEAD_LIMIT,
        b"hello\r\n\r\n",
        b"",
    ],
)
def test_what_is_no_whole_answer_is_an_error(answer: bytes) -> None:
    with answering((answer,)) as upstreams, pytest.raises(HTTPError):
        upstreams.forward("user", "POST", "/users", b"{}", {})


def test_a_header_with_a_line_break_is_not_sent(service: Service) -> None:
    upstreams = Upstreams({"user": f"http://127.0.0.1:{service.server_port}"}, 1)
    with pytest.raises(ValueError, match="line break"):
        upstreams.forward("user", "GET", "/users", b"", {"Accept": "a\r\nAuthorization: b"})
    upstreams.close()
