"""The gateway's kept connections: used again at once, and not when they may be closing."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from gateway import api
from gateway.api import Upstreams


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
    with Service() as service:
        thread = threading.Thread(target=service.serve_forever)
        thread.start()
        yield service
        service.shutdown()
        thread.join()


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
