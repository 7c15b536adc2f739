"""The whole system, as a client sees it: latency when idle, rates under load."""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import urllib3

from eventcore.readmodel import Mongo
from eventcore.settings import Server
from local.shop import Shop

REQUESTS, CONNECTIONS = 800, 16


class System:
    """A running shop, with one user who orders all the time."""

    def __init__(self, shop: Shop, readmodel: Server) -> None:
        self._shop = shop
        self._orders = Mongo(readmodel)
        self._http = urllib3.PoolManager()
        self._user = self._post("/users", {"name": "Ada", "email": "ada@example.com"})["userId"]
        self._placed = 0
        self._last = self._order()

    def answered_to_readable(self, count: int) -> tuple[float, float]:
        """Seconds from an order's answer to its document: median and 99th percentile."""
        waits = []
        for _ in range(count):
            order_id = self._order()
            began = time.perf_counter()
            while not self._orders.versions("orders", [order_id]):
                time.sleep(0.0005)
            waits.append(time.perf_counter() - began)
        waits.sort()
        return waits[count // 2], waits[count * 99 // 100]

    def rates(self) -> Iterator[tuple[str, Callable[[], float]]]:
        """What to measure, each a rate under 16 kept connections."""
        body = json.dumps({"userId": self._user, "item": "Laptop", "price": 2500})
        query = f"/queries/orders/{self._last}"
        yield "POST /orders, direct", lambda: self._load("order-service", "POST", "/orders", body)
        yield "POST /orders, gateway", lambda: self._load("gateway", "POST", "/orders", body)
        yield "GET an order, direct", lambda: self._load("order-service", "GET", query)
        yield "GET an order, gateway", lambda: self._load("gateway", "GET", query)
        yield "bare find_one, 1 connection", self._find_one

    def drain(self) -> float:
        """Seconds until as many orders are readable as have been answered, and no more."""
        began = time.perf_counter()
        while (readable := self._readable()) < self._placed:
            if time.perf_counter() - began > 60:
                raise AssertionError(f"{readable} orders of {self._placed} became readable")
            time.sleep(0.01)
        if readable > self._placed:
            raise AssertionError(f"{readable} orders are readable, {self._placed} were answered")
        return time.perf_counter() - began

    def _readable(self) -> int:
        return int(self._orders._of("orders").count_documents({"userId": self._user}))

    def _find_one(self) -> float:
        began = time.perf_counter()
        for _ in range(REQUESTS):
            if not self._orders.find("orders", [self._last]):
                raise AssertionError("the order is not there")
        return REQUESTS / (time.perf_counter() - began)

    def _load(self, process: str, method: str, path: str, body: str = "") -> float:
        """Requests a second from a client in a process of its own; all must be answered 200."""
        command = [sys.executable, "-m", "tests.bench.client", self._shop.url(process)]
        arguments = [method, path, body, str(REQUESTS), str(CONNECTIONS)]
        done = subprocess.run([*command, *arguments], capture_output=True, text=True, check=True)
        self._placed += REQUESTS // CONNECTIONS * CONNECTIONS if method == "POST" else 0
        return float(done.stdout)

    def _order(self) -> str:
        body = {"userId": self._user, "item": "Laptop", "price": 2500}
        self._placed += 1
        return str(self._post("/orders", body)["orderId"])

    def _post(self, path: str, body: object) -> Any:
        answer = self._http.request("POST", self._shop.url("gateway") + path, json=body)
        if answer.status not in (200, 202):
            raise AssertionError(f"{path} answered {answer.status}: {answer.data!r}")
        return answer.json()
