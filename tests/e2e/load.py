"""A steady load on a running shop, and its own record of every answer."""

import itertools
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

import urllib3

OK = {"POST /users": 202, "POST /orders": 200}
"""The expected status by call; 200 where it is missing."""


@dataclass
class Record:
    """The requests of the clients and the answers.

    `users` and `orders` have each one's mark (an e-mail, an item) and its id, None where no good
    answer came; `names` a user's id and the names that were confirmed for it, in order.
    """

    users: dict[str, str | None] = field(default_factory=dict)
    orders: dict[str, str | None] = field(default_factory=dict)
    names: dict[str, list[str]] = field(default_factory=dict)
    unconfirmed_names: set[str] = field(default_factory=set)
    failures: list[str] = field(default_factory=list)
    latencies: list[float] = field(default_factory=list)

    @property
    def requests(self) -> int:
        """How many were sent."""
        return len(self.latencies)

    def summary(self) -> str:
        """One line: how many, how many failed, how long."""
        took = sorted(self.latencies) or [0.0]
        p50, p99 = took[len(took) // 2], took[int(len(took) * 0.99)]
        return (
            f"{self.requests} requests, {len(self.failures)} failed,"
            f" p50 {p50 * 1000:.0f} ms, p99 {p99 * 1000:.0f} ms, longest {took[-1] * 1000:.0f} ms"
        )


class Client(threading.Thread):
    """One user agent after another: makes a user, orders, reads both, renames; no retries."""

    def __init__(self, url: str, record: Record, pause: float, patience: float) -> None:
        super().__init__(daemon=True)
        self._url = url
        self._record = record
        self._pause = pause
        self._http = urllib3.PoolManager(timeout=patience, retries=False, maxsize=1)
        self._enough = threading.Event()

    def stop(self) -> None:
        """Stop after the request in progress."""
        self._enough.set()
        self.join()

    def run(self) -> None:
        """Go on until told to stop."""
        while not self._enough.is_set():
            self._journey()

    def _journey(self) -> None:
        record, email = self._record, f"{uuid4().hex}@example.com"
        record.users[email] = None
        user = self._ask("POST /users", {"name": "First", "email": email}).get("userId")
        if user is None:
            return
        record.users[email] = user
        record.names[user] = []
        for number in itertools.count(1):
            item = uuid4().hex
            record.orders[item] = None
            order = {"userId": user, "item": item, "price": 12.5}
            placed = self._ask("POST /orders", order).get("orderId")
            if placed is not None:
                record.orders[item] = placed
                self._ask(f"GET /queries/orders/{placed}")
            self._ask(f"GET /users/{user}")
            name = f"Name {number}"
            if self._ask(f"PUT /users/{user}", {"name": name}):
                record.names[user].append(name)
            else:
                record.unconfirmed_names.add(user)
            if number == 3 or self._enough.is_set():
                return

    def _ask(self, call: str, body: object = None) -> dict[str, Any]:
        """The answer's JSON if it is a good one, else nothing, and a failure in the record."""
        self._enough.wait(self._pause)
        method, path = call.split()
        began = time.monotonic()
        try:
            answer = self._http.request(method, self._url + path, json=body)
            good = answer.status == OK.get(call, 200)
            text = answer.data[:200].decode(errors="replace")
        except urllib3.exceptions.HTTPError as error:
            good, text, answer = False, str(error), None
        took = time.monotonic() - began
        self._record.latencies.append(took)
        if good and answer is not None:
            content: dict[str, Any] = json.loads(answer.data)
            return content
        status = answer.status if answer else "no answer"
        at = time.strftime("%H:%M:%S")
        self._record.failures.append(f"{at} {call} after {took:.2f} s: {status} {text}")
        return {}


@contextmanager
def steady_load(
    url: str, clients: int = 4, pause: float = 0.05, patience: float = 15
) -> Iterator[Record]:
    """Load on `url` for as long as the block lasts; the record is complete after it."""
    record = Record()
    threads = [Client(url, record, pause, patience) for _ in range(clients)]
    for thread in threads:
        thread.start()
    try:
        yield record
    finally:
        for thread in threads:
            thread.stop()
