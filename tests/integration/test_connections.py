"""Connections of a service: many, idle ones, several requests at once, and its end."""

import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from urllib.parse import urlsplit

import pytest

from eventcore.store.connection import connect
from local.shop import Shop
from tests.conftest import Databases
from tests.integration.trouble import transaction

PROBE = b"GET /healthz HTTP/1.1\r\nHost: shop\r\n\r\n"


@pytest.fixture
def connections(shop: Shop) -> Iterator[list[socket.socket]]:
    """Four times as many as the order service has permits."""
    shop.start()
    place = urlsplit(shop.url("order-service"))
    with ExitStack() as stack:
        yield [
            stack.enter_context(socket.create_connection((place.hostname, place.port), timeout=10))
            for _ in range(64)
        ]


def test_each_of_many_kept_connections_is_answered_again_and_again(
    connections: list[socket.socket],
) -> None:
    for _ in range(3):
        for connection in connections:
            connection.sendall(PROBE)
        for connection in connections:
            assert answers(connection, 1) == 1


def test_requests_one_behind_the_other_are_each_answered(connections: list[socket.socket]) -> None:
    connections[0].sendall(PROBE * 20)
    assert answers(connections[0], 20) == 20


def test_a_request_in_two_halves_is_answered_and_keeps_nobody_waiting(
    connections: list[socket.socket],
) -> None:
    first, second, *others = connections
    for connection in (first, second):
        connection.sendall(PROBE[:10])
    for connection in others:
        connection.sendall(PROBE)
    for connection in others:
        assert answers(connection, 1) == 1
    for connection in (first, second):
        connection.sendall(PROBE[10:])
        assert answers(connection, 1) == 1


def test_who_does_not_hang_up_keeps_nobody_waiting(connections: list[socket.socket]) -> None:
    for connection in connections[::2]:
        connection.sendall(PROBE.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
    for connection in connections[::2]:
        assert answers(connection, 1) == 1
    began = time.monotonic()
    for connection in connections[1::2]:
        connection.sendall(PROBE)
        assert answers(connection, 1) == 1
    with socket.create_connection(connections[0].getpeername(), timeout=10) as new:
        new.sendall(PROBE)
        assert answers(new, 1) == 1
    assert time.monotonic() - began < 1.5


def test_a_request_in_progress_is_answered_and_then_the_service_stops_soon(
    shop: Shop, databases: Databases, connections: list[socket.socket]
) -> None:
    body = b'{"name": "Ada", "email": "ada@example.com"}'
    post = b"POST /users HTTP/1.1\r\nHost: shop\r\nContent-Type: application/json\r\n"
    place = urlsplit(shop.url("user-service"))
    with (
        ThreadPoolExecutor(1) as pool,
        socket.create_connection((place.hostname, place.port), timeout=20) as connection,
    ):
        with transaction(connect(databases("user", "owner"))) as locked:
            locked.exec_driver_sql("lock table streams in exclusive mode")
            connection.sendall(post + b"Content-Length: %d\r\n\r\n%b" % (len(body), body))
            waiting = "select count(*) from pg_locks where not granted"
            while locked.exec_driver_sql(waiting).scalar_one() < 1:
                time.sleep(0.02)
            began = time.monotonic()
            stopped = pool.submit(shop.stop, "user-service")
            time.sleep(0.5)  # what is looked at is that the request is older than the end
        assert connection.recv(65536).startswith(b"HTTP/1.1 202")
        stopped.result()
        assert time.monotonic() - began < 8  # the caller keeps its connection
    shop.start("user-service")


def test_a_service_that_stops_closes_idle_connections_within_seconds(
    shop: Shop, connections: list[socket.socket]
) -> None:
    for connection in connections:
        connection.sendall(PROBE)
        assert answers(connection, 1) == 1
    began = time.monotonic()
    shop.stop("order-service")
    assert time.monotonic() - began < 5
    for connection in connections:
        assert connection.recv(1) == b""
    shop.start("order-service")


def answers(connection: socket.socket, wanted: int) -> int:
    """How many answers of 200 come, until there are as many as wanted or the connection ends."""
    came = b""
    while came.count(b'"status":"alive"') < wanted and (some := connection.recv(65536)):
        came += some
    return came.count(b"HTTP/1.1 200 OK")
