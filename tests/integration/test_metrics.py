"""Metrics of the running system: what is behind shows, whoever is stopped; counts never go back."""

import json
import time
import urllib.request
from collections.abc import Callable
from contextlib import closing
from uuid import UUID, uuid4

import pika

from eventcore.model.event import NewEvent
from eventcore.store.port import Stream
from eventcore.store.postgres import Postgres
from local.servers import MongoDB, RabbitMQ
from local.shop import Shop
from tests.conftest import Databases
from tests.integration.scrape import metric, scrape

SOON = 5.0
"""Seconds within which a metric must show what has happened."""


def await_that(condition: Callable[[], bool], seconds: float) -> float:
    """Seconds it took."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < seconds, "it did not come about"
        time.sleep(0.05)
    return time.monotonic() - began


def post(shop: Shop, process: str, path: str, body: object) -> dict[str, str]:
    request = urllib.request.Request(
        shop.url(process) + path,
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=10) as answer:
        found: dict[str, str] = json.load(answer)
    return found


def new_user(shop: Shop) -> str:
    return post(shop, "user-service", "/users", {"name": "Ada", "email": "ada@example.com"})[
        "userId"
    ]


def test_lag_grows_while_a_projector_is_stopped_and_ends_afterwards(shop: Shop) -> None:
    seconds = metric(shop, "user-service", "projection_lag_seconds", "users")
    events = metric(shop, "user-service", "projection_lag_events", "users")
    stale = metric(shop, "user-service", "projection_staleness_seconds", "users")
    await_that(lambda: seconds() == 0, 20)
    shop.stop("user-projector")
    new_user(shop)
    await_that(lambda: seconds() > 0, 2 * SOON)
    first = seconds()
    assert events() >= 1
    await_that(lambda: seconds() > first + 4, 10)  # nothing more arrives, and it grows
    assert stale() >= seconds()
    shop.start("user-projector")
    await_that(lambda: (seconds(), events()) == (0, 0), 15)
    await_that(lambda: stale() < 8, 15)


def test_staleness_tells_of_a_projector_whose_events_are_another_services(shop: Shop) -> None:
    lag = metric(shop, "order-user-sync", "projection_lag_seconds", "known-users")
    await_that(lambda: lag() == 0, 20)
    stale = metric(shop, "order-service", "projection_staleness_seconds", "known-users")
    shop.stop("order-user-sync")
    before = stale()
    await_that(lambda: stale() > before + 4, 15)
    shop.start("order-user-sync")
    await_that(lambda: stale() < 8, 15)


def test_the_relays_lag_is_told_while_it_is_stopped(shop: Shop) -> None:
    lag = metric(shop, "user-service", "relay_lag_seconds", "user")
    shop.stop("user-relay")
    new_user(shop)
    await_that(lambda: lag() > 2, 10)
    first = lag()
    await_that(lambda: lag() > first + 2, 10)  # nothing more is appended, and it grows
    assert metric(shop, "user-service", "relay_lag_events", "user")() >= 1
    shop.start("user-relay")
    assert metric(shop, "user-relay", "relay_active", "user")() == 1
    await_that(lambda: lag() == 0, 10)


def test_a_dead_letter_shows_within_seconds(shop: Shop, rabbitmq: RabbitMQ) -> None:
    count = metric(shop, "user-projector", "projection_dead_letters_total", "users")
    before = max(0.0, count())
    address = rabbitmq.address
    parameters = pika.ConnectionParameters(
        address.host,
        address.port,
        address.name,
        pika.PlainCredentials(address.user, address.password.read()),
    )
    connection = pika.BlockingConnection(parameters)
    connection.channel().basic_publish("events", "user.made-up", b"no event")
    connection.close()
    await_that(lambda: count() == before + 1, SOON)


def test_pools_and_dependencies_show(shop: Shop) -> None:
    samples = scrape(shop, "user-service")
    assert samples["pool_connections_max", "PostgreSQL reads"] == 5
    assert samples["pool_connections_max", "PostgreSQL writes"] == 12
    assert samples["pool_connections_max", "MongoDB"] == 16
    assert 0 <= samples["pool_connections_in_use", "PostgreSQL reads"] <= 5
    assert 0 <= samples["pool_connections_in_use", "PostgreSQL writes"] <= 12
    await_that(lambda: metric(shop, "user-service", "dependency_up", "PostgreSQL")() == 1, 10)
    for process, server in (("user-relay", "RabbitMQ"), ("user-projector", "feed")):
        await_that(lambda p=process, s=server: scrape(shop, p)["dependency_up", s] == 1, 10)  # type: ignore[misc]
    build = [name for name in samples if name[0] == "eventcore_build_info"]
    assert build == [("eventcore_build_info", "serve", "unknown", "user", "unknown")]


def test_a_server_that_goes_away_shows(shop: Shop, mongodb: MongoDB) -> None:
    up = metric(shop, "user-service", "dependency_up", "MongoDB")
    await_that(lambda: up() == 1, 10)
    mongodb.stop()
    await_that(lambda: up() == 0, 2 * SOON)
    mongodb.start()
    await_that(lambda: up() == 1, 10)


def test_a_parked_stream_shows_within_seconds(shop: Shop, databases: Databases) -> None:
    user_id = new_user(shop)
    count = metric(shop, "user-service", "projection_parked_streams", "users")
    await_that(lambda: count() >= 0, 15)
    before = count()
    with closing(Postgres(databases("user", "service"), 1)) as store:
        event = NewEvent(uuid4(), "USER_MARRIED", 1, {})
        store.append(Stream("user", UUID(user_id)), 1, [event], {})
    await_that(lambda: count() == before + 1, SOON)
