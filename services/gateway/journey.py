"""python -m gateway.journey URL: the journey of a user and an order, through the gateway at URL.

Plays the guide's requests, and waits until the read models have them. Ends with status 1 and one
sentence where an answer is not what it should be. `helm test` runs it inside the cluster. It calls
with the API key in API_KEY_FILE; with AUTH=on and without a key it sees only that it is refused.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import urllib3

SEEN_HEADER = "Consistency-Token"

PATIENCE = 30
"""Seconds for the read models to show what was written."""

PAUSE = 0.5
"""Seconds before a call is repeated, after the service itself has waited."""


class Unexpected(Exception):
    """An answer that is not what it should be; the message is one sentence."""


def credential() -> dict[str, str]:
    """The header with the API key of API_KEY_FILE; none without it."""
    file = os.environ.get("API_KEY_FILE")
    return {"Authorization": f"Bearer {Path(file).read_text().strip()}"} if file else {}


@dataclass
class Caller:
    """Sends requests to a gateway, and raises Unexpected for a wrong answer.

    Passes the newest Consistency-Token on, so that each answer has what was written before.
    """

    gateway: str
    say: Callable[[str], object]
    seen: dict[str, str] = field(default_factory=lambda: credential())

    def __post_init__(self) -> None:
        self._http = urllib3.PoolManager(timeout=10, retries=False)

    def ask(
        self, method: str, path: str, status: int, body: object = None, source: str = ""
    ) -> Any:
        """The JSON of an answer, which must have this status and, if one is named, this source.

        Repeats a call for PATIENCE seconds while a read model does not have what was written.
        """
        deadline = time.monotonic() + PATIENCE
        while True:
            answer = self._send(method, path, body)
            found = answer.headers.get("Answered-From", "")
            is_late = "Retry-After" in answer.headers or (source and found != source)
            if not is_late or time.monotonic() > deadline:
                break
            time.sleep(PAUSE)
        if answer.status != status or (source and found != source):
            text = answer.data[:300].decode(errors="replace")
            raise Unexpected(
                f"{method} {path} answered {answer.status} {found}, not {status} {source}: {text}"
            )
        self.seen |= {
            name: answer.headers[name] for name in (SEEN_HEADER,) if name in answer.headers
        }
        return json.loads(answer.data)

    def expect(self, path: str, source: str = "", **expected: object) -> None:
        """Requires these fields of an answer."""
        answer = self.ask("GET", path, 200, source=source)
        wrong = {name: answer.get(name) for name in expected if answer.get(name) != expected[name]}
        if wrong:
            raise Unexpected(f"GET {path} answered {wrong}, not {expected}.")

    def _send(self, method: str, path: str, body: object) -> urllib3.BaseHTTPResponse:
        try:
            url = self.gateway + path
            answer = self._http.request(method, url, json=body, headers=self.seen)
        except urllib3.exceptions.HTTPError as error:
            raise Unexpected(f"{method} {path} was not answered: {error}.") from error
        self.say(f"{method} {path} {answer.status}\n")
        return answer


def play(gateway: str, say: Callable[[str], object] = sys.stdout.write) -> str:
    """Play the journey once; returns what it has shown. Raises Unexpected at a wrong answer."""
    caller = Caller(gateway, say)
    if os.environ.get("AUTH") == "on" and not caller.seen:
        caller.ask("GET", "/queries/orders", 401)
        caller.ask("POST", "/users", 401, {"name": "Nobody", "email": "nobody@example.com"})
        return (
            "Callers without a credential are refused. Nothing else was tried: the journey needs an"
            " API key (auth.client.secret of the chart)."
        )
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

    # Each read model comes to have all that was written.
    caller.expect(f"/users/{user}", "view", name="Ada King")
    listed = f"/queries/orders?userId={user}"
    found = [each["orderId"] for each in caller.ask("GET", listed, 200, source="view")["orders"]]
    if found != [placed]:
        raise Unexpected(f"GET {listed} answered {found}, not {[placed]}.")
    caller.expect(f"/queries/customers/{user}", "view", name="Ada King", orders=1)
    return "The journey is whole: written, read back, and shown by the read models."


if __name__ == "__main__":
    try:
        shown = play(sys.argv[1].rstrip("/"))
    except Unexpected as problem:
        sys.exit(f"The journey failed: {problem}")
    sys.stdout.write(f"{shown}\n")
