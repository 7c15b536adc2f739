"""python -m gateway.journey URL: the journey of a user and an order, through the gateway at URL.

Plays the guide's requests, and waits until the read models have them. Ends with status 1 and one
sentence where an answer is not what it should be. `helm test` runs it inside the cluster.
"""

import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import urllib3

PATIENCE = 30
"""Seconds for the read models to show what was written."""


class Unexpected(Exception):
    """An answer that is not what it should be; the message is one sentence."""


@dataclass
class Caller:
    """Sends requests to a gateway, and raises Unexpected for a wrong answer."""

    gateway: str
    say: Callable[[str], object]

    def __post_init__(self) -> None:
        self._http = urllib3.PoolManager(timeout=10, retries=False)

    def ask(self, method: str, path: str, status: int, body: object = None) -> Any:
        """The JSON of an answer, which must have this status."""
        try:
            answer = self._http.request(method, self.gateway + path, json=body)
        except urllib3.exceptions.HTTPError as error:
            raise Unexpected(f"{method} {path} was not answered: {error}.") from error
        self.say(f"{method} {path} {answer.status}\n")
        if answer.status != status:
            text = answer.data[:300].decode(errors="replace")
            raise Unexpected(f"{method} {path} answered {answer.status}, not {status}: {text}")
        return json.loads(answer.data)

    def expect(self, path: str, **expected: object) -> None:
        """Requires these fields of an answer."""
        answer = self.ask("GET", path, 200)
        wrong = {name: answer.get(name) for name in expected if answer.get(name) != expected[name]}
        if wrong:
            raise Unexpected(f"GET {path} answered {wrong}, not {expected}.")

    def expect_soon(self, path: str, right: Callable[[Any], bool], what: str) -> None:
        """Repeats a query until the answer is right, for PATIENCE seconds."""
        deadline = time.monotonic() + PATIENCE
        while not right(self.ask("GET", path, 200)):
            if time.monotonic() > deadline:
                raise Unexpected(f"GET {path} did not show {what} within {PATIENCE} s.")
            time.sleep(0.2)


def play(gateway: str, say: Callable[[str], object] = sys.stdout.write) -> None:
    """Play the journey once; raises Unexpected at the first wrong answer."""
    caller = Caller(gateway, say)
    person = {"name": "Ada Lovelace", "email": f"ada.{uuid4().hex[:8]}@example.com"}
    user = caller.ask("POST", "/users", 202, person)["userId"]
    caller.expect(f"/users/{user}", userId=user, **person)
    order = {"userId": user, "item": "Laptop", "price": 1249.9}
    placed = caller.ask("POST", "/orders", 200, order)["orderId"]
    caller.expect(f"/queries/orders/{placed}", orderId=placed, **order)
    caller.ask("PUT", f"/users/{user}", 200, {"name": "Ada King"})
    refusal = caller.ask("POST", "/orders", 422, {**order, "userId": str(uuid4())})
    if refusal.get("title") != "User unknown":
        raise Unexpected(f"The order of an unknown user was refused with {refusal.get('title')!r}.")

    # A new document can be read at once, from its events; a change, and a list, when the
    # projector has come to it.
    caller.expect_soon(f"/users/{user}", lambda each: each["name"] == "Ada King", "the new name")
    listed = f"/queries/orders?userId={user}"
    caller.expect_soon(
        listed, lambda page: [o["orderId"] for o in page["orders"]] == [placed], "the order"
    )


if __name__ == "__main__":
    try:
        play(sys.argv[1].rstrip("/"))
    except Unexpected as problem:
        sys.exit(f"The journey failed: {problem}")
    sys.stdout.write("The journey is whole: written, read back, and shown by the read models.\n")
