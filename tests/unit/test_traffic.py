"""Calls at a steady rate, to a gateway that answers or does not."""

import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Thread
from time import monotonic
from typing import Any

import pytest

from gateway.traffic import Traffic, journey


class Gateway(ThreadingHTTPServer):
    """Answers every call with ids, or with `status`; sets `enough` after `most` calls."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answering)
        self.calls: list[tuple[str, str]] = []
        self.times: list[float] = []
        self.status, self.most, self.enough = 200, 1000, Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Answering(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Gateway

    def do_GET(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.calls.append((self.command, self.path))
        self.server.times.append(monotonic())
        body = json.dumps({"userId": "u1", "orderId": "o1"}).encode()
        self.send_response(self.server.status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
        if len(self.server.calls) >= self.server.most:
            self.server.enough.set()

    do_POST = do_PUT = do_GET

    def log_message(self, format: str, *args: object) -> None:
        """A line for each call would say nothing."""


@pytest.fixture
def gateway() -> Iterator[Gateway]:
    with Gateway() as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def run(gateway: Gateway, rate: float, most: int) -> list[str]:
    said: list[str] = []
    gateway.most = most
    Traffic(gateway.url, rate, said.append).run(gateway.enough)
    return said


def test_a_user_orders_reads_and_takes_another_name(gateway: Gateway) -> None:
    run(gateway, 10_000, 10)
    order = [("POST", "/orders"), ("GET", "/queries/orders/o1")]
    assert gateway.calls[:10] == [
        ("POST", "/users"),
        ("GET", "/users/u1"),
        *order * 3,
        ("PUT", "/users/u1"),
        ("GET", "/queries/orders?userId=u1"),
    ]


def test_no_more_calls_are_sent_than_the_rate_allows(gateway: Gateway) -> None:
    run(gateway, 50, 11)
    # 0.2 s, less what the first may arrive later than it was sent
    assert gateway.times[10] - gateway.times[0] >= 0.1


def test_a_failure_is_said_once_and_the_next_user_begins(gateway: Gateway) -> None:
    gateway.status = 503
    said = run(gateway, 10_000, 5)
    assert gateway.calls[:5] == [("POST", "/users")] * 5
    assert said == ["POST /users failed: 503\n"]


def test_every_user_has_an_address_of_its_own() -> None:
    def email() -> Any:
        _, _, body = next(journey(1))
        assert body
        return body["email"]

    assert email() != email()
