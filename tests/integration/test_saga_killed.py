"""The credit saga while each process on its way is killed between any two of its steps.

SIGKILL comes exactly there, by a failpoint, while limited orders are placed and cancelled. In the
end nothing is lost, doubled or left over: in the logs, and in each read model.
"""

import random
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from functools import partial
from itertools import zip_longest
from pathlib import Path

import pytest

from eventcore.model.projection import Document, Projection
from eventcore.model.view import View
from local.services import SERVICES
from local.shop import Shop
from tests.conftest import armed
from tests.credit_judge import Log, orders_of, read_log, unended
from tests.integration.test_saga import PATIENCE, Customer, judge
from tests.integration.test_shop import Truth, truth, until
from tests.integration.trouble import stopped

__all__ = ["truth"]

LIMIT = 30

APPEND = ("append:begin", "append:committed", "wakeup:begin")
PROJECT = ("projector:delivered", "projector:written", "projector:acknowledged", "sweep:caught-up")
PUBLISH = ("relay:read", "relay:published", "relay:confirmed", "relay:saved")

STEPS: Mapping[str, Sequence[str]] = {
    "user-service": APPEND,
    "order-service": APPEND,
    "user-relay": PUBLISH,
    "order-relay": PUBLISH,
    "user-credit": (*PROJECT, "reactor:reacted", *APPEND),
    "order-saga": (*PROJECT, "reactor:reacted", *APPEND),
    "user-projector": PROJECT,
    "order-projector": PROJECT,
    "order-user-sync": PROJECT,
    "credit-projector": PROJECT,
    "order-customers": ("view:written",),
}
"""The places between two steps of each process, by the failpoints that are there."""

DEADLINE = ("append:begin", "append:committed")
"""The places in the loop of deadlines: after `take_due`, and after the append that follows."""


class Market:
    """Customers who buy at the same time, each with a user of its own for each purchase."""

    def __init__(self, shop: Shop, pool: ThreadPoolExecutor) -> None:
        self._shop, self._pool = shop, pool
        self._random = random.Random(26)
        self._purchases = list[Future[tuple[str, list[str]]]]()

    def open(self) -> None:
        """Lets another customer buy."""
        prices = [self._random.randint(1, LIMIT) for _ in range(4)]
        self._purchases.append(self._pool.submit(self._buy, prices))

    def closed(self) -> dict[str, list[str]]:
        """The orders of each user, once all customers have their answers."""
        return dict(each.result(timeout=2 * PATIENCE) for each in self._purchases)

    def _buy(self, prices: Sequence[int]) -> tuple[str, list[str]]:
        """Limits a user, orders, cancels the first order at once, and the second one at the end."""
        with closing(Customer(self._shop)) as customer:
            _, created = customer.ask("POST", "/users", {"name": "Ada", "email": "ada@example.com"})
            user = str(created["userId"])
            customer.limit(user, LIMIT)
            placed = [customer.place(user, price) for price in prices[:2]]
            customer.cancel(placed[0])
            placed += [customer.place(user, price) for price in prices[2:]]
            customer.cancel(placed[1])
        return user, placed


@pytest.fixture
def market(shop: Shop) -> Iterator[Market]:
    with ThreadPoolExecutor(4) as pool:
        yield Market(shop, pool)


@pytest.mark.timeout(900)  # on a machine that does other things as well; alone, a third of it
def test_killed_between_any_two_steps_a_saga_loses_and_doubles_nothing(
    shop: Shop, market: Market, truth: Truth
) -> None:
    for name, point in in_turn():
        file = armed(shop, name, point)
        market.open()
        killed(shop, name, file)
    orders = market.closed()
    until(lambda: not unended(orders, read_log(truth.stores["order"])), PATIENCE)
    with stopped({shop.pid("user-credit")}):  # all that is left to append are deadlines
        files = [armed(shop, "order-saga", point) for point in DEADLINE]
        for _ in range(2):
            market.open()
        for file in files:
            killed(shop, "order-saga", file)
    orders = market.closed()

    judge([*orders], truth)
    log = read_log(truth.stores["order"])
    told = sorted(order for placed in orders.values() for order in placed)
    assert told == sorted(orders_of(orders, log))
    assert kinds_in(log, told) >= {"DEADLINE_PASSED", "STEP_REFUSED", "STEP_COMPENSATED"}
    for name, service in SERVICES.items():
        for each in service.projections:
            if not isinstance(each, View):
                until(partial(is_the_fold, truth, each, name, {*orders, *told}), PATIENCE)
    truth.converges(PATIENCE)


def in_turn() -> Iterator[tuple[str, str]]:
    """Each process with each place: the first of each process, then the second ones."""
    for points in zip_longest(*STEPS.values()):
        yield from ((name, point) for name, point in zip(STEPS, points, strict=True) if point)


def killed(shop: Shop, name: str, file: Path) -> None:
    """Starts a process again that has died at a failpoint; of a service, gunicorn does that."""
    until(lambda: not file.exists(), PATIENCE)
    if not name.endswith("-service"):
        until(lambda: not shop.runs(name))
        shop.launch(name)


def kinds_in(log: Log, ids: Sequence[str]) -> set[str]:
    """The types of the events of sagas."""
    return {event.event_type for id in ids for event in log.get(("order_saga", id), ())}


def is_the_fold(truth: Truth, projection: Projection, service: str, ids: set[str]) -> bool:
    """Whether the documents with these ids are the fold of their streams, no more and no fewer."""
    log = read_log(truth.stores[projection.catalogue.owner])
    wanted: dict[str, Document | None] = {
        id: projection.fold(events)
        for (kind, id), events in log.items()
        if kind == projection.aggregate_type and id in ids
    }
    collection = truth.serving(projection, service).collection
    return bool(truth.models[service].find(collection, ids) == wanted)
