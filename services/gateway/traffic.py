"""python -m gateway.traffic URL RATE: calls through the gateway at URL, until it is told to stop.

Users are created, read and renamed, and order something: at most RATE calls a second, one at a
time, so that a slow system gets fewer. A call that fails is counted, and no reason to end. It calls
with the API key in API_KEY_FILE, if there is one.
"""

import json
import signal
import sys
import time
from collections.abc import Callable, Generator
from itertools import count
from threading import Event
from typing import Any
from uuid import uuid4

import urllib3

from gateway.journey import credential

REPORT_TIME = 60.0
"""Seconds between two lines of the log."""

ORDERS = 3
"""Orders of one user."""

Call = tuple[str, str, dict[str, Any] | None]
"""Method, path and body."""

FAILED = object()
"""Instead of the answer of a call that failed."""


def journey(number: int) -> Generator[Call, Any, None]:
    """Yields the calls of one user; takes the JSON of each answer."""
    person = {"name": f"Ada {number}", "email": f"ada.{uuid4().hex[:12]}@example.com"}
    user = (yield "POST", "/users", person)["userId"]
    yield "GET", f"/users/{user}", None
    for item in range(ORDERS):
        order = {"userId": user, "item": f"Item {item}", "price": 9.5 + item}
        placed = (yield "POST", "/orders", order)["orderId"]
        yield "GET", f"/queries/orders/{placed}", None
    yield "PUT", f"/users/{user}", {"name": f"Ada King {number}"}
    yield "GET", f"/queries/orders?userId={user}", None


class Traffic:
    """Sends one journey after another to a gateway; counts calls and failures."""

    def __init__(self, gateway: str, rate: float, say: Callable[[str], object]) -> None:
        self._gateway = gateway
        self._pause = 1 / rate
        self._say = say
        self._http = urllib3.PoolManager(timeout=10, retries=False, headers=credential())
        self._sent = self._failed = 0

    def run(self, stop: Event) -> None:
        """Sends calls until `stop` is set."""
        next_at = reported_at = time.monotonic()
        for number in count():
            calls, answer = journey(number), None
            while answer is not FAILED and (call := _next(calls, answer)):
                if stop.wait(next_at - time.monotonic()):
                    return
                next_at = max(next_at + self._pause, time.monotonic())
                answer = self._send(*call)
            if time.monotonic() - reported_at >= REPORT_TIME:
                self._say(f"{self._sent} calls, {self._failed} failed\n")
                reported_at = time.monotonic()

    def _send(self, method: str, path: str, body: dict[str, Any] | None) -> Any:
        """The JSON of an answer, or FAILED."""
        self._sent += 1
        try:
            answer = self._http.request(method, self._gateway + path, json=body)
            if answer.status < 300:
                return json.loads(answer.data)
            reason = str(answer.status)
        except (urllib3.exceptions.HTTPError, ValueError) as error:
            reason = str(error)
        self._failed += 1
        if self._failed == 1:
            self._say(f"{method} {path} failed: {reason}\n")
        return FAILED


def _next(calls: Generator[Call, Any, None], answer: Any) -> Call | None:
    """The call that follows an answer; None after the last."""
    try:
        return calls.send(answer)
    except StopIteration:
        return None


def main(gateway: str, rate: str) -> None:
    """Runs until SIGTERM or SIGINT."""
    stop = Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    say = sys.stdout.write
    say(f"At most {rate} calls a second to {gateway}\n")
    Traffic(gateway.rstrip("/"), float(rate), say).run(stop)


if __name__ == "__main__":
    main(*sys.argv[1:])
