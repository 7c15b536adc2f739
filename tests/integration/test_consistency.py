"""Reading your own writes on the real servers: what a call shows, and how long it waits."""

import statistics
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest
import urllib3

from eventcore.model.token import SEEN_HEADER
from gateway import journey as guide
from local.services import PROJECTORS
from local.shop import Shop
from tests.conftest import Databases
from tests.integration.conftest import AnotherShop
from tests.integration.test_operate import Tool
from tests.integration.test_restored_log import restore_to, sql
from tests.integration.test_shop import Truth, truth, until
from tests.integration.trouble import stopped

__all__ = ["truth"]

pytestmark = pytest.mark.timeout(400)

CAP = 0.25
"""CONSISTENCY_WAIT of the processes that the journeys go through, in seconds."""

CLIENTS = 8
"""Clients at once: no more than places for waits, so none is refused a place."""

PART = 250
"""Journeys while projectors run, while they are stopped, after a kill, and after a restore."""

FLOOD = 32
"""Calls that would wait, twice as many as the service has threads; half of the threads may."""

FREE = 8
"""Waits that a service has room for: half of its THREADS."""

NOISE = 0.05
"""Seconds that a call may take beyond its wait; twice the slowest call that does not wait where
that is more: the machine is slow then.
"""

FOLDED_FROM_ORDERS = {
    "order-projector": "orders",
    "order-customers": "customers",
    "user-credit": "user-credit",
}
"""The processes that apply the log of the order service, each with its projection."""

PATIENCE = 90
"""Seconds within which something must come about that the machine alone delays."""


class Caller:
    """A client of the gateway that passes the newest token on; `took` is its last call's time."""

    def __init__(self, shop: Shop) -> None:
        self._shop = shop
        self._pool = urllib3.PoolManager(timeout=30, retries=False)
        self.token = ""
        self.took = 0.0

    def call(
        self, method: str, path: str, body: object = None, **headers: str
    ) -> urllib3.BaseHTTPResponse:
        given = {SEEN_HEADER: self.token} if self.token else {}
        began = time.monotonic()
        answer = self._pool.request(
            method, self._shop.url("gateway") + path, json=body, headers={**given, **headers}
        )
        self.took = time.monotonic() - began
        self.token = answer.headers.get(SEEN_HEADER, self.token)
        return answer

    def create_user(self) -> str:
        answer = self.call("POST", "/users", {"name": "Ada", "email": "ada@example.com"})
        assert answer.status == 202, answer.data
        return str(answer.json()["userId"])

    def order(self, user_id: str) -> urllib3.BaseHTTPResponse:
        body = {"userId": user_id, "item": "Laptop", "price": 19.99}
        return self.call("POST", "/orders", body)

    def listed(self, user_id: str, **headers: str) -> tuple[list[str], str]:
        """The ids of a user's orders, and from where they were answered."""
        answer = self.call("GET", f"/queries/orders?userId={user_id}", **headers)
        assert answer.status == 200, answer.data
        ids = [str(each["orderId"]) for each in answer.json()["orders"]]
        return ids, answer.headers["Answered-From"]

    def new_order(self) -> tuple[str, str]:
        """A user's and their order's id, once the order is taken."""
        user_id, taken = self.create_user(), list[str]()

        def order() -> bool:
            answer = self.order(user_id)
            assert answer.status in (200, 503), answer.data
            taken.extend([answer.json()["orderId"]] if answer.status == 200 else [])
            return bool(taken)

        until(order, PATIENCE)
        return user_id, taken[0]

    def close(self) -> None:
        self._pool.clear()


@contextmanager
def callers(shop: Shop, count: int) -> Iterator[list[Caller]]:
    made = [Caller(shop) for _ in range(count)]
    yield made
    for each in made:
        each.close()


def test_a_list_waits_as_long_as_is_preferred_and_no_longer(shop: Shop, truth: Truth) -> None:
    with callers(shop, 1) as [caller], stopped({shop.pid("order-projector")}):
        user_id, _ = caller.new_order()
        direct, waited = list[float](), list[float]()
        for wait, took in [("wait=0", direct), ("wait=1", waited)] * 5:
            assert caller.listed(user_id, Prefer=wait) == ([], "stale; reason=behind")
            took.append(caller.took)
    assert min(waited) >= 1 > statistics.median(direct)
    assert max(waited) <= 1 + max(NOISE, 2 * max(direct))
    truth.converges(PATIENCE)


def test_a_flood_of_waiting_calls_leaves_half_of_the_threads_to_others(
    shop: Shop, truth: Truth
) -> None:
    with callers(shop, FLOOD + 1) as [other, *clients], stopped({shop.pid("order-projector")}):
        user_id, order_id = other.new_order()
        for each in clients:
            each.token = other.token
        other.token = ""
        paths = (f"/users/{user_id}", f"/queries/orders/{order_id}", "/queries/orders")
        usual, meanwhile = list[float](), list[float]()
        while len(usual) < 30:
            usual += times(other, paths)
        with ThreadPoolExecutor(FLOOD) as pool:
            held = [pool.submit(waiting, each, user_id) for each in clients]
            while not all(each.done() for each in held):
                meanwhile += times(other, paths)
        sources = Counter(each.result() for each in held)
    assert set(sources) <= {"stale; reason=behind", "stale; reason=busy", "urn:problem:busy"}
    assert sources["stale; reason=behind"] >= FREE
    assert statistics.median(meanwhile) <= max(NOISE, 2 * statistics.median(usual))
    assert max(meanwhile) < 2, "a call of another client had to wait for those that wait"
    truth.converges(PATIENCE)


def waiting(caller: Caller, user_id: str) -> str:
    """The source of a list that waits, or why the gateway has refused it."""
    answer = caller.call("GET", f"/queries/orders?userId={user_id}", Prefer="wait=2")
    return answer.headers.get("Answered-From") or str(answer.json()["type"])


def times(caller: Caller, paths: tuple[str, ...]) -> list[float]:
    """The times until these calls, which do not wait, are answered."""
    took = list[float]()
    for path in paths:
        answer = caller.call("GET", path)
        assert is_answered(answer), answer.data
        took.append(caller.took)
    return took


def is_answered(answer: urllib3.BaseHTTPResponse) -> bool:
    """Whether a query has its answer; False where a slow machine's read model is away."""
    assert answer.status == 200 or answer.json()["type"] == "urn:problem:read-model-away"
    return answer.status == 200


# ── a thousand times ──────────────────────────────────────────────────────────────────────


@dataclass
class Seen:
    """The answers of all clients, counted, and the times of lists that may wait and may not."""

    counts: Counter[str] = field(default_factory=Counter)
    waited: list[float] = field(default_factory=list)
    direct: list[float] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def note(self, what: str) -> None:
        with self.lock:
            self.counts[what] += 1


def journey(caller: Caller, seen: Seen, is_frozen: bool) -> None:
    """A user, an order, lists: each answer has what the ones before it have said."""
    user_id = caller.create_user()
    while (order_id := place(caller, user_id, seen, is_frozen)) is None:
        user_id = caller.create_user()
    wanted = [order_id] if order_id else []
    listed = query(caller, f"/queries/orders?userId={user_id}", seen)
    source = listed.headers["Answered-From"]
    if source == "view":
        found = [each["orderId"] for each in listed.json()["orders"]]
        assert found == wanted, "an own order is missing from a list that is not stale"
    else:
        assert source.startswith("stale; reason="), source
    seen.note(source)
    if seen.counts["done"] % 8 == 0:
        customer = query(caller, f"/queries/customers/{user_id}", seen, 503)
        if customer.status == 200 and customer.headers["Answered-From"] == "view":
            assert customer.json()["orders"] == len(wanted)
    token, caller.token = caller.token, ""
    query(caller, f"/queries/orders?userId={user_id}", seen)
    caller.token = token
    seen.note("done")


def query(caller: Caller, path: str, seen: Seen, behind: int = 200) -> urllib3.BaseHTTPResponse:
    """An answer, or a refusal because a document is not there yet; asks again for any other."""
    deadline = time.monotonic() + PATIENCE
    while True:
        answer = caller.call("GET", path)
        if answer.status == behind == 503 and answer.json()["type"] == "urn:problem:not-yet":
            break
        if is_answered(answer):
            break
        assert time.monotonic() < deadline, answer.data
    (seen.waited if caller.token else seen.direct).append(caller.took)
    return answer


def place(caller: Caller, user_id: str, seen: Seen, is_frozen: bool) -> str | None:
    """An order's id; asks again while it is told that it came too early.

    Empty where nothing can change that; None where the token is of another log, and is dropped.
    """
    deadline = time.monotonic() + PATIENCE
    while True:
        answer = caller.order(user_id)
        if answer.status == 200:
            return str(answer.json()["orderId"])
        problem = answer.json()
        assert problem["title"] != "User unknown", problem
        seen.note(problem["type"])
        if problem["type"] == "urn:problem:other-log":
            caller.token = ""
            return None
        if problem["type"] == "urn:problem:not-yet":
            seen.waited.append(caller.took)
            if is_frozen:
                return ""
        else:
            assert problem["type"] == "urn:problem:read-model-away", problem
        assert time.monotonic() < deadline, problem


def travel(clients: list[Caller], seen: Seen, count: int, is_frozen: bool = False) -> None:
    """Journeys of all clients at once."""
    left = iter(range(count))

    def go(caller: Caller) -> None:
        while True:
            with seen.lock:
                if next(left, None) is None:
                    return
            journey(caller, seen, is_frozen)

    with ThreadPoolExecutor(len(clients)) as pool:
        for each in [pool.submit(go, client) for client in clients]:
            each.result()


def test_a_thousand_clients_see_what_they_wrote_whatever_projectors_do(
    another_shop: AnotherShop, databases: Databases, truth: Truth
) -> None:
    """While they run, are stopped, are killed and start again; and after a log was restored."""
    seen = Seen()
    with another_shop(CONSISTENCY_WAIT=str(CAP)) as shop, callers(shop, CLIENTS) as clients:
        guide.play(shop.url("gateway"), lambda _: None)
        travel(clients, seen, PART)
        assert seen.counts["view"] > PART // 2
        with stopped({shop.pid(name) for name in ("order-projector", "order-customers")}):
            travel(clients, seen, PART // 2)
        with stopped({shop.pid(name) for name in PROJECTORS}):
            travel(clients, seen, PART // 2, is_frozen=True)
        # Below, processes start and a log is restored, which takes the cores from everybody.
        assert max(seen.waited) <= CAP + max(NOISE, 2 * max(seen.direct))
        shop.kill(*PROJECTORS)
        shop.launch(*PROJECTORS)
        travel(clients, seen, PART)
        shop.await_ready(*PROJECTORS)
        lose_an_order(shop, clients[0], databases, truth)
        with ThreadPoolExecutor(1) as pool:
            rebuilt = pool.submit(rebuild_views, shop)
            travel(clients, seen, PART)
            rebuilt.result()
        truth.converges(PATIENCE)
        until(lambda: all(customers_reached(each, seen) for each in clients), PATIENCE)
    assert seen.counts["done"] == 4 * PART == 1000
    assert min(seen.counts["stale; reason=behind"], seen.counts["urn:problem:not-yet"]) > PART // 4
    assert seen.counts["urn:problem:other-log"] >= 1


def customers_reached(caller: Caller, seen: Seen) -> bool:
    """Whether the view of customers has what a client has written, in both logs."""
    return query(caller, "/queries/customers", seen).headers["Answered-From"] == "view"


def lose_an_order(shop: Shop, caller: Caller, databases: Databases, truth: Truth) -> None:
    """The log of orders is put back to before an order that a client has seen."""
    truth.converges(PATIENCE)
    kept = truth.stores["order"].progress("order").head
    user_id, order_id = caller.new_order()
    until(lambda: caller.listed(user_id) == ([order_id], "view"), PATIENCE)
    truth.converges(PATIENCE)
    shop.stop("order-service", "order-relay")
    owner = databases("order", "owner")
    restore_to(owner, kept)
    sql(owner, "select begin_epoch('a test')")
    shop.start("order-service", "order-relay")
    answer = caller.call("GET", f"/queries/orders?userId={user_id}")
    assert (answer.status, answer.json()["type"]) == (409, "urn:problem:other-log")


def rebuild_views(shop: Shop) -> None:
    """Folds again what was folded from the log before, while clients call."""
    for process, projection in FOLDED_FROM_ORDERS.items():
        Tool(shop, process)("rebuild", projection, "--yes")
