"""The credit saga on the real servers: its journey, its read model, and an event of it that no code
knows.
"""

import shutil
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from threading import Event
from typing import Any
from uuid import UUID, uuid4

import pytest
import urllib3

from eventcore import jsontext
from eventcore.model.event import NewEvent
from eventcore.reactor import Reactor
from eventcore.readmodel.records import Parked, Write
from eventcore.store.port import Stream
from local.shop import Shop
from order.credit_saga import REACTOR as SAGA
from tests.credit_judge import read_log, unended, wrong
from tests.integration.test_consistency import Caller
from tests.integration.test_operate import Tool
from tests.integration.test_shop import SERVICES, Truth, truth, until
from tests.integration.trouble import stopped
from user.credit_reactor import REACTOR as CREDIT
from user.projections.credit import PROJECTION as CREDITS

__all__ = ["truth"]

PATIENCE = 90
"""Seconds within which something must come about that the machine alone delays."""


class Customer(Caller):
    """A client of the gateway that repeats a call, under one key, until it has its answer."""

    def ask(self, method: str, path: str, body: object = None) -> tuple[int, Any]:
        """The status and the JSON of the first answer that says what became of the call."""
        headers = {"Idempotency-Key": str(uuid4())} if method != "GET" else {}
        deadline = time.monotonic() + PATIENCE
        said = "nothing"
        while time.monotonic() < deadline:
            with suppress(urllib3.exceptions.HTTPError):
                answer = self.call(method, path, body, **headers)
                found, said = jsontext.parse(answer.data), str(answer.data)
                if answer.status < 500 and found.get("code") != "conflict":
                    return answer.status, found
            time.sleep(0.1)
        raise AssertionError(f"{method} {path} was not answered: {said}")

    def limit(self, user_id: str, limit: object) -> None:
        status, answer = self.ask("PUT", f"/users/{user_id}/credit-limit", {"limit": limit})
        assert (status, answer) == (200, {"userId": user_id, "limit": limit})

    def place(self, user_id: str, price: object) -> str:
        body = {"userId": user_id, "item": "Pen", "price": price}
        status, answer = self.ask("POST", "/orders", body)
        assert status == 200, answer
        return str(answer["orderId"])

    def cancel(self, order_id: str) -> tuple[int, str]:
        status, answer = self.ask("POST", f"/orders/{order_id}/cancel")
        return status, answer["status"]

    def shown(self, order_id: str) -> str:
        """The status of an order."""
        status, answer = self.ask("GET", f"/queries/orders/{order_id}")
        assert status == 200, answer
        return str(answer["status"])

    def ended(self, order_id: str) -> str:
        """The first status of an order that is not pending.

        A query may then show it as pending again: the view may be behind an answer from the stream.
        """
        statuses = list[str]()

        def has_ended() -> bool:
            statuses.append(self.shown(order_id))
            return statuses[-1] != "pending"

        until(has_ended, PATIENCE)
        return statuses[-1]

    def credit(self, user_id: str) -> tuple[Any, Any, Any]:
        """The limit, what is reserved, and what is available."""
        status, answer = self.ask("GET", f"/users/{user_id}/credit")
        assert status == 200, answer
        return answer["limit"], answer["reserved"], answer["available"]


@pytest.fixture
def customer(shop: Shop) -> Iterator[Customer]:
    customer = Customer(shop)
    yield customer
    customer.close()


def judge(users: Sequence[str], truth: Truth) -> None:
    """Every saga ends, and nothing is wrong with the credit of these users."""
    until(lambda: not unended(users, read_log(truth.stores["order"])), PATIENCE)
    logs = [read_log(truth.stores[name]) for name in ("order", "user")]
    assert list(wrong(users, *logs)) == []


# ── the journey ───────────────────────────────────────────────────────────────────────────


def test_orders_are_confirmed_within_the_limit_and_their_credit_is_released(
    shop: Shop, customer: Customer, truth: Truth
) -> None:
    user = customer.create_user()
    customer.limit(user, 10)
    within, beyond, last = (customer.place(user, price) for price in (6, 6, 4))
    statuses = [customer.ended(each) for each in (within, beyond, last)]
    assert statuses == ["confirmed", "rejected", "confirmed"]
    until(lambda: customer.credit(user) == (10, 10, 0))

    assert customer.cancel(within) == (200, "cancelled")
    until(lambda: customer.credit(user) == (10, 4, 6))
    with stopped({shop.pid("order-saga")}):
        pending = customer.place(user, 5)
        assert customer.shown(pending) == "pending"
        assert customer.cancel(pending) == (202, "pending")
    assert customer.ended(pending) == "cancelled"
    until(lambda: customer.credit(user) == (10, 4, 6))

    customer.limit(user, 1)
    until(lambda: customer.credit(user) == (1, 4, 0))
    assert customer.ended(customer.place(user, 1)) == "rejected"
    customer.limit(user, None)
    free = customer.place(user, 1000)
    assert customer.shown(free) == "confirmed"
    until(lambda: customer.credit(user) == (None, 4, None))
    judge([user], truth)
    truth.converges()


# ── the read model of credit ──────────────────────────────────────────────────────────────


def test_credit_is_rebuilt_while_orders_go_on_and_verify_finds_a_lie(
    shop: Shop, customer: Customer, truth: Truth
) -> None:
    tool, user = Tool(shop, "credit-projector"), customer.create_user()
    customer.limit(user, 1000)
    before = truth.models["user"].generations(CREDITS.name)
    with ordering(shop, user) as placed:
        until(lambda: len(placed) >= 3, PATIENCE)
        *said, last = tool.lines("rebuild", CREDITS.name)
        enough = len(placed) + 3
        until(lambda: len(placed) >= enough, PATIENCE)
    assert last == {"serves": f"credit.{before.newest + 1}"}
    [parity] = [line for line in said if "alike" in line]
    assert parity["alike"] >= 1
    assert parity["different"] == parity["missing"] == parity["added"] == 0
    judge([user], truth)
    confirmed = [customer.ended(each) for each in placed].count("confirmed")
    until(lambda: customer.credit(user) == (1000, confirmed, 1000 - confirmed), PATIENCE)
    assert tool.lines("verify", CREDITS.name, "--all")[-1]["wrong"] == 0

    document = truth.document(CREDITS, user, "user")
    assert document
    false = Write({**document, "reserved": document["reserved"] - 1}, document["version"])
    assert truth.models["user"].write(truth.serving(CREDITS, "user").collection, [false])
    [finding, told] = tool.lines("verify", CREDITS.name, "--all", status=1)
    assert (told["wrong"], finding["stream"]) == (1, user)
    assert finding["what"] == "the document differs from the log in reserved"
    assert "folded again" in tool("rebuild", CREDITS.name, "--stream", user)
    assert truth.document(CREDITS, user, "user") == document


@contextmanager
def ordering(shop: Shop, user_id: str) -> Iterator[list[str]]:
    """Places orders of a user, two a second, and cancels each third one; the list has their ids.

    A rebuild compares a document again for some seconds, until both generations have one version
    of it. A document that is never at rest meanwhile counts as different.
    """
    placed, stop = list[str](), Event()

    def order() -> None:
        with closing(Customer(shop)) as customer:
            while not stop.wait(0.5):
                placed.append(customer.place(user_id, 1))
                if len(placed) % 3 == 0:
                    customer.cancel(placed[-1])

    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(order)
        try:
            yield placed
        finally:
            stop.set()
        running.result(PATIENCE)


# ── an event that no code knows ───────────────────────────────────────────────────────────


def test_a_poisoned_saga_parks_its_user_alone_and_goes_on_with_mended_code(
    shop: Shop, customer: Customer, truth: Truth, tmp_path: Path
) -> None:
    user, other = customer.create_user(), customer.create_user()
    for each in (user, other):
        customer.limit(each, 100)
    usual = [time_to_confirm(customer, other) for _ in range(5)]
    with stopped({shop.pid("user-credit")}):
        order = customer.place(user, 5)
        poison = NewEvent(uuid4(), "SAGA_BLESSED", 1, {})
        truth.stores["order"].append(Stream("order_saga", UUID(order)), 2, [poison], {})
    until(lambda: order in parked(truth, CREDIT, "user"))
    until(lambda: user in parked(truth, SAGA, "order"))
    meanwhile = [time_to_confirm(customer, other) for _ in range(10)]
    assert statistics.median(meanwhile) <= max(0.2, 2 * statistics.median(usual))
    assert customer.shown(order) == "pending"
    assert other not in parked(truth, SAGA, "order")

    at_credit, at_saga = Tool(shop, "user-credit"), Tool(shop, "order-saga")
    assert "still parked" in at_saga("parked", "retry", SAGA.name, user, status=1)
    skip = ("parked", "skip", CREDIT.name, order, "--why", "It asks for nothing.", "--yes")
    assert f"{order}: released" in at_credit(*skip)
    mended = {"PYTHONPATH": str(mend(tmp_path / "services"))}
    assert f"{user}: released" in at_saga("parked", "retry", SAGA.name, user, env=mended)
    assert customer.ended(order) == "confirmed"
    time_to_confirm(customer, user)
    assert not {user, order} & {*parked(truth, CREDIT, "user"), *parked(truth, SAGA, "order")}
    judge([user, other], truth)


def time_to_confirm(customer: Customer, user_id: str) -> float:
    """Seconds until an order of a user is confirmed."""
    began = time.monotonic()
    assert customer.ended(customer.place(user_id, 1)) == "confirmed"
    return time.monotonic() - began


def parked(truth: Truth, reactor: Reactor, service: str) -> Mapping[str, Parked]:
    """The streams that are parked in a reactor of a service."""
    return truth.models[service].parked(truth.serving(reactor, service).name)


BLESSED = """
@dataclass(frozen=True, slots=True)
class SagaBlessed:
    pass


ORDER_SAGA"""


def mend(folder: Path) -> Path:
    """A copy of the code to which SAGA_BLESSED is known, and means nothing."""
    shutil.copytree(SERVICES, folder)
    for name, old, new in (
        ("eventcore/model/saga.py", "case StepDone() | DeadlinePassed():", "case _:"),
        ("order/events.py", "events=SagaEvent,", "events=SagaEvent | SagaBlessed,"),
        ("order/events.py", "ORDER_SAGA", BLESSED),
    ):
        text = (folder / name).read_text()
        assert text.count(old) == 1
        (folder / name).write_text(text.replace(old, new))
    return folder
