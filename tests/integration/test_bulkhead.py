"""The gateway while one service hangs: calls to the other service are answered as usual."""

import http.client
import random
import statistics
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from eventcore.settings import Secret, Server
from local.processes import Servers, processes
from local.servers import free_port
from local.shop import Shop
from tests.beside import beside

CALLERS = 64
"""Callers of the service that hangs: four for each thread of the gateway."""

NOISE = 0.05
"""Seconds that a call may take on a busy machine, whatever the gateway does."""


class Service(ThreadingHTTPServer):
    """Answers everything, unless it hangs."""

    daemon_threads = True
    request_queue_size = 1000

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.go = threading.Event()
        self.go.set()

    def handle_error(self, request: object, client_address: object) -> None:
        """The gateway no longer waits for an answer."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Service

    def do_GET(self) -> None:
        self.server.go.wait()
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, format: str, *args: object) -> None:
        """Logs nothing."""


@pytest.fixture
def user_service() -> Iterator[Service]:
    with beside(Service()) as service:
        yield service


@pytest.fixture
def order_service() -> Iterator[Service]:
    with beside(Service()) as service:
        yield service
        service.go.set()


@pytest.fixture
def gateway(user_service: Service, order_service: Service, tmp_path: Path) -> Iterator[Shop]:
    """A gateway before these two."""
    nowhere = Server("127.0.0.1", 1, "", "", Secret())
    [process, *_] = processes(
        Servers(nowhere, nowhere, {"user": nowhere, "order": nowhere}),
        tmp_path,
        ports={
            "gateway": free_port(),
            "user-service": user_service.server_port,
            "order-service": order_service.server_port,
        },
        free_port=free_port,
    )
    gateway = Shop([process], tmp_path)
    gateway.start()
    yield gateway
    gateway.stop()


def connect(gateway: Shop) -> http.client.HTTPConnection:
    return http.client.HTTPConnection(urlsplit(gateway.url("gateway")).netloc, timeout=30)


def ask(connection: http.client.HTTPConnection, path: str) -> tuple[int, float]:
    """Status, and seconds that the answer took."""
    began = time.monotonic()
    connection.request("GET", path)
    answer = connection.getresponse()
    answer.read()
    return answer.status, time.monotonic() - began


@contextmanager
def calling_orders(gateway: Shop) -> Iterator[list[tuple[int, float]]]:
    """Callers who call again a second or two after each answer; yields the answers."""
    stop = threading.Event()
    answers: list[tuple[int, float]] = []

    def call() -> None:
        while not stop.wait(random.uniform(1, 2)):
            with closing(connect(gateway)) as connection:
                answers.append(ask(connection, "/orders"))

    threads = [threading.Thread(target=call) for _ in range(CALLERS)]
    for thread in threads:
        thread.start()
    yield answers
    stop.set()
    for thread in threads:
        thread.join()


def p99_of_users(gateway: Shop, seconds: float) -> float:
    took: list[float] = []
    until = time.monotonic() + seconds
    with closing(connect(gateway)) as connection:
        while time.monotonic() < until:
            status, each = ask(connection, "/users/x")
            assert status == 200
            took.append(each)
            time.sleep(0.005)
    return statistics.quantiles(took, n=100)[98]


def test_while_one_service_hangs_the_other_is_served_as_usual(
    gateway: Shop, order_service: Service
) -> None:
    with calling_orders(gateway) as answers:
        usual = p99_of_users(gateway, 8)
        assert {status for status, _ in answers} == {200}
        order_service.go.clear()
        time.sleep(1)  # all permits are taken
        answers.clear()
        meanwhile = p99_of_users(gateway, 15)
        for probe in ("/readyz", "/healthz"):
            with closing(connect(gateway)) as connection:
                status, seconds = ask(connection, probe)
            assert (status, seconds < 1) == (200, True)
        known = list(answers)
        order_service.go.set()
    assert meanwhile <= 2 * max(usual, NOISE), (usual, meanwhile)
    assert {status for status, _ in known} == {503, 504}
    assert max(seconds for _, seconds in known) < 12
    assert statistics.median(seconds for status, seconds in known if status == 503) < 0.3
