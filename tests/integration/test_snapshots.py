"""Snapshots of credit on a real PostgreSQL: the events that are read, damage, and `verify`."""

import os
import subprocess
import sys
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from uuid import UUID, uuid4

import pytest
from sqlalchemy import Engine

from eventcore.command import Call, handle
from eventcore.snapshots import WRITER
from eventcore.store.port import Answer, Stream
from eventcore.store.postgres import Postgres
from tests.conftest import Databases
from user.credit import DECIDER, Credit, Reserve
from user.events import CreditReleased, CreditReserved

PRICE = Decimal("19.99")
EVENTS = 10_000


@pytest.fixture
def account(store: Postgres) -> UUID:
    """Credit with many orders, all released."""
    user, orders = uuid4(), [str(uuid4()) for _ in range(EVENTS // 2)]
    pairs = ((CreditReserved(id, PRICE), CreditReleased(id, PRICE)) for id in orders)
    events = [DECIDER.to_new_event(each, uuid4()) for pair in pairs for each in pair]
    for begin in range(0, EVENTS, 1000):
        store.append(Stream("credit", user), begin, events[begin : begin + 1000], {})
    return user


def reserve(store: Postgres, user: UUID, *, snapshots: bool = True) -> tuple[Decimal, int]:
    """Reserves credit for a new order: what is reserved then, and the version."""
    reached: list[tuple[Decimal, int]] = []

    def answer(credit: Credit, version: int) -> Answer:
        reached.append((credit.reserved, version))
        return Answer(200, {}, {})

    decider = DECIDER if snapshots else replace(DECIDER, snapshot_every=0)
    handle(store, decider, user, Reserve(str(uuid4()), PRICE, None), Call({}), answer)
    WRITER.flush()
    return reached[-1]


def test_a_reservation_on_ten_thousand_events_reads_those_after_the_snapshot(
    store: Postgres, account: UUID, reads: list[int]
) -> None:
    assert reserve(store, account) == (PRICE, EVENTS + 1)
    assert sum(reads) == EVENTS
    for number in range(2, DECIDER.snapshot_every + 5):
        reads.clear()
        assert reserve(store, account) == (number * PRICE, EVENTS + number)
        assert sum(reads) <= DECIDER.snapshot_every + 1
    assert reserve(store, account, snapshots=False) == ((number + 1) * PRICE, EVENTS + number + 1)


def verify(databases: Databases, status: int) -> str:
    server = databases("spare", "service")
    environ = {
        "SERVICE": "user",
        "PYTHONPATH": str(Path(__file__).parents[2] / "services"),
        "POSTGRES_HOST": server.host,
        "POSTGRES_PORT": str(server.port),
        "POSTGRES_DATABASE": server.name,
        "POSTGRES_USER": server.user,
        "POSTGRES_PASSWORD": server.password.read(),
    }
    done = subprocess.run(
        [sys.executable, "-m", "eventcore", "verify", "--snapshots", "--json"],
        env={**os.environ, **environ},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ("state = replace(state, '19.99', '19.98')", "damaged"),
        ("version = version + 1", "damaged"),
        ("event_id = gen_random_uuid()", "damaged"),
    ],
)
def test_a_damaged_row_changes_no_decision_and_is_found_by_verify(
    store: Postgres, spare_databases: Databases, owner: Engine, change: str, what: str
) -> None:
    user = uuid4()
    events = [DECIDER.to_new_event(CreditReserved(str(n), PRICE), uuid4()) for n in range(60)]
    store.append(Stream("credit", user), 0, events, {})
    assert reserve(store, user) == (61 * PRICE, 61)
    assert '"wrong": 0' in verify(spare_databases, 0)
    with owner.connect() as connection:
        where = "where aggregate_id = %s::uuid"
        connection.exec_driver_sql(f"update snapshots set {change} {where}", (str(user),))
    said = verify(spare_databases, 1)
    assert f'{{"stream": "credit {user}", "what": "{what}"}}' in said
    assert reserve(store, user) == (62 * PRICE, 62)
    assert '"wrong": 0' in verify(spare_databases, 0), "the command has replaced it"
