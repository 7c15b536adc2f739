"""Somebody who orders at a running shop, and looks whether what was answered is there."""

import json
import time
from functools import cached_property
from typing import Any

import urllib3

from eventcore.readmodel.mongo import Mongo
from tests.bench.bed import Bed
from tests.bench.rows import require


class Visitor:
    """A user of their own, whose first order is readable."""

    def __init__(self, bed: Bed) -> None:
        self._bed = bed
        self._http = urllib3.PoolManager(retries=False, timeout=10)
        self.readmodel = Mongo(bed.readmodel("order"))
        self.url = f"{bed.shop.url('gateway')}/orders"
        self.processes = bed.shop.names
        self._documents = bed.bare_collection("orders", "order")
        gateway = bed.shop.url("gateway")
        who = {"name": "Ada", "email": "ada@example.com"}
        self.user_id = str(self._post(f"{gateway}/users", who)["userId"])
        self.order_body = json.dumps({"userId": self.user_id, "item": "Laptop", "price": 2500})
        self.order_id = self.order()
        while not self.readmodel.find("orders", [self.order_id]):
            time.sleep(0.01)

    def order(self) -> str:
        """Place an order through the gateway; its id."""
        return str(self._post(self.url, json.loads(self.order_body))["orderId"])

    def ask(self, url: str) -> Any:
        """The answer of a GET."""
        answer = self._http.request("GET", url)
        require(answer.status == 200, f"{url} answered {answer.status}")
        return answer.json()

    def orders_in_log(self) -> int:
        """How many orders have been placed, as the event store has it."""
        self._log.execute("select count(*) from streams where aggregate_type = 'order'")
        return int(self._log.fetchone()[0])

    def own_orders_in_log(self) -> int:
        """How many of them this user has placed."""
        self._log.execute(
            "select count(*) from events where event_type = 'ORDER_PLACED'"
            " and data->>'userId' = %s",
            (self.user_id,),
        )
        return int(self._log.fetchone()[0])

    def orders_when_still(self) -> int:
        """How many orders have been placed once no more come: those that nobody waits for any more
        are still being written.
        """
        before, now = -1, self.orders_in_log()
        while now != before:
            time.sleep(0.1)
            before, now = now, self.orders_in_log()
        return now

    def orders_readable(self) -> int:
        """How many orders the read model has."""
        return int(self._documents.count_documents({}))

    def orders_of_customer(self) -> int:
        """How many orders the view of customers has of this user."""
        found = self.readmodel.find("customers", [self.user_id])
        return int(found[self.user_id]["orders"]) if found else 0

    def applied(self) -> int:
        """How many events the order projector has applied since it began, by its own count."""
        url = f"{self._bed.shop.url('order-projector')}/metrics"
        name = 'projection_events_applied_total{projection="orders"} '
        for line in self._http.request("GET", url).data.decode().splitlines():
            if line.startswith(name):
                return int(float(line.removeprefix(name)))
        return 0

    @cached_property
    def _log(self) -> Any:
        self._connection = self._bed.sql(self._bed.store("order", "owner"))
        return self._connection.__enter__()

    def _post(self, url: str, body: object) -> Any:
        answer = self._http.request("POST", url, json=body)
        require(answer.status in (200, 202), f"{url} answered {answer.status}: {answer.data!r}")
        return answer.json()
