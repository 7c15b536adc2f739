"""A rebuild of a view of many events, on real servers, while orders go on.

VIEW_EVENTS=100000 fills the log with so many orders, which takes a few minutes.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from decimal import Decimal
from itertools import count
from pathlib import Path
from threading import Event as Stop
from threading import Thread
from uuid import UUID, uuid4

import pytest

from eventcore.model.event import Event, Json, NewEvent
from eventcore.model.view import fold
from eventcore.operate.rebuilding import begin
from eventcore.project.parts import open_parts
from eventcore.project.view_projector import PartSweep, ViewSweep
from eventcore.readmodel.mongo import Mongo
from eventcore.readmodel.records import generation_of
from eventcore.store.connection import connect
from eventcore.store.feed import SWEEP_RANGE, StoreFeed
from eventcore.store.port import Stream
from eventcore.store.postgres import Postgres
from local.processes import prepare_stores, store_login
from local.servers import MongoDB, PostgreSQL
from order.projections import customers

EVENTS = int(os.environ.get("VIEW_EVENTS", "20000"))
PEOPLE = 200
AT_ONCE = 2_000
"""Events of one transaction that fills the log."""

VIEW = replace(customers.VIEW, name="rebuilt", collection="rebuilt")

_USERS = """
select append_events('user', lpad(n::text, 32, '0')::uuid, 0, array[gen_random_uuid()],
                     array['USER_CREATED'], array[1],
                     array[format('{"name": "user %%s", "email": "a@b"}', n)], '{}')
  from generate_series(1, %s) n
"""

_ORDERS = """
select append_events('order', gen_random_uuid(), 0, array[gen_random_uuid()],
                     array['ORDER_PLACED'], array[1],
                     array[format('{"userId": "%%s", "item": "x", "price": %%s}',
                                  lpad((1 + mod(n, %s))::text, 32, '0')::uuid,
                                  round(mod(n, 9973) / 100.0, 2))], '{}')
  from generate_series(%s, %s) n
"""


@pytest.fixture
def stores(postgres: PostgreSQL, data_folder: Path) -> Iterator[Mapping[str, Postgres]]:
    """Event stores of their own: some users, and EVENTS orders of theirs."""
    secrets, names = data_folder / "secrets", {"user": "viewuser", "order": "vieworder"}
    prepare_stores(postgres.address, secrets, names.values())
    owners = {
        store: connect(store_login(postgres.address, name, "owner", secrets))
        for store, name in names.items()
    }
    with owners["user"].connect() as connection:
        connection.exec_driver_sql(_USERS, (PEOPLE,))
    with owners["order"].connect() as connection:
        for first in range(1, EVENTS, AT_ONCE):
            connection.exec_driver_sql(_ORDERS, (PEOPLE, first, first + AT_ONCE - 1))
    opened = {
        store: Postgres(store_login(postgres.address, name, "service", secrets), 4)
        for store, name in names.items()
    }
    yield opened
    for each in opened.values():
        each.close()


@pytest.fixture
def readmodel(mongodb: MongoDB) -> Iterator[Mongo]:
    opened = Mongo(mongodb.login("view_rebuild"))
    yield opened
    opened.close()


@pytest.mark.timeout(900)
def test_a_view_rebuilt_while_orders_go_on_is_the_fold_of_both_logs(
    stores: Mapping[str, Postgres], readmodel: Mongo
) -> None:
    feeds = {store: StoreFeed(log, store) for store, log in stores.items()}
    sweep = ViewSweep(
        [PartSweep(part, "serving", 30) for part in open_parts(VIEW, readmodel, feeds)]
    )
    while sweep.run():
        pass
    stop, failed = Stop(), list[BaseException]()
    working = [
        Thread(target=_until_stopped, args=(stop, failed, act))
        for act in (lambda: _order(stores["order"], stop), lambda: sweep.run() or stop.wait(0.02))
    ]
    for each in working:
        each.start()
    try:
        before = stores["order"].settled()
        build = begin(VIEW, readmodel, feeds, "rebuilder", stop.wait)
        build.fold(lambda *_: None)
        build.catch_up()
        parity = build.compare()
        after = stores["order"].settled()
        build.switch()
    finally:
        stop.set()
        for each in working:
            each.join()
    assert failed == []
    assert parity.agrees
    assert parity.alike == PEOPLE
    assert after > before >= EVENTS, "orders went on"
    while sweep.run():
        pass
    generation = generation_of(VIEW, readmodel.generations(VIEW.name).serving)
    assert generation.number == build.generation.number == 2
    wanted = fold(VIEW, _events(feeds))
    assert len(wanted) == PEOPLE
    assert readmodel.find(generation.collection, wanted) == wanted


def _until_stopped(stop: Stop, failed: list[BaseException], act: Callable[[], object]) -> None:
    try:
        while not stop.is_set():
            act()
    except BaseException as error:  # noqa: BLE001 - asserted in the test
        failed.append(error)


_numbers = count(1)


def _order(store: Postgres, stop: Stop) -> None:
    """Places an order, some twenty times a second."""
    number = next(_numbers)
    user = UUID(f"{1 + number % PEOPLE:032}")
    data: dict[str, Json] = {"userId": str(user), "item": "x", "price": Decimal("0.10")}
    store.append(Stream("order", uuid4()), 0, [NewEvent(uuid4(), "ORDER_PLACED", 1, data)], {})
    stop.wait(0.05)


def _events(feeds: Mapping[str, StoreFeed]) -> list[Event]:
    found: list[Event] = []
    for feed in feeds.values():
        position, until = 0, feed.progress().settled
        while position < until:
            found += feed.between(position, min(position + SWEEP_RANGE, until))
            position += SWEEP_RANGE
    return found
