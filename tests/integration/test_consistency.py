"""Reading your own writes on the real servers: how long a call waits."""

import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager

import urllib3

from eventcore.model.token import SEEN_HEADER
from local.shop import Shop
from tests.integration.test_shop import Truth, truth, until
from tests.integration.trouble import stopped

__all__ = ["truth"]

NOISE = 0.05
"""Seconds that a call may take beyond its wait; twice the slowest call that does not wait where
that is more: the machine is slow then.
"""

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
