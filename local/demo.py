"""`make demo`: the guide's six requests, played against a running system.

Shows each request and its answer, and in the end the events that were stored. Ends with
status 1 and one sentence where an answer is not what it should be.
"""

import json
import shutil
import sys
import textwrap
import time
import uuid
import webbrowser
from collections.abc import Mapping
from http import HTTPStatus
from pathlib import Path
from typing import Any

import click
import urllib3

from eventcore.ids import new_id
from local.announce import paint, say
from local.identity import token_for

_CYAN, _GREEN, _YELLOW = 36, 32, 33

Json = dict[str, Any]

SECRETS = Path(".data/secrets")
"""The secrets of `make run`, with the key that signs tokens."""


PAUSE = 4.0
"""Seconds before each request that somebody watches on the page."""


class Unexpected(Exception):
    """An answer that is not what it should be, or none; the message is one sentence."""


@click.command()
@click.option("--gateway", default="http://localhost:3000", show_default=True)
@click.option("--order-service", default="http://localhost:3002", show_default=True)
@click.option("--data", type=click.Path(path_type=Path), default=".data", show_default=True)
@click.option("--browser", is_flag=True, help="Open the page, and play slowly.")
def main(gateway: str, order_service: str, data: Path, browser: bool) -> None:
    """Play the six requests beside a running `make run`."""
    try:
        if browser:
            say(f"Watch them travel at {gateway}/page/flow")
            webbrowser.open(f"{gateway}/page/flow")
        Demo(gateway, order_service, data / "secrets", PAUSE if browser else 0).play()
    except Unexpected as problem:
        sys.exit(f"make demo: {problem}")


class Demo:
    """The six requests, to the gateway, and the last to the order service as well."""

    def __init__(
        self, gateway: str, order_service: str, secrets: Path = SECRETS, pause: float = 0
    ) -> None:
        self._secrets = secrets
        self._pause = pause
        self._gateway = gateway
        self._order_service = order_service
        self._http = urllib3.PoolManager(timeout=10, retries=False)
        self._headers: dict[str, str] = {}

    def play(self) -> None:
        """Play them all; raises Unexpected at the first wrong answer."""
        self._take_token()
        person = {"name": "Ada Lovelace", "email": f"ada.{uuid.uuid4().hex[:6]}@example.com"}

        _title("1. A user is created")
        user_id = self._post("/users", person, 202)["userId"]

        _title("2. The user can be read at once")
        self._get(f"/users/{user_id}", {"_id": user_id, "userId": user_id, **person})

        _title("3. The user orders something")
        order = {"userId": user_id, "item": "Laptop", "price": 1249.9}
        order_id = self._post("/orders", order, 200)["orderId"]

        _title("4. The order can be read at once, too")
        placed = {"_id": order_id, "orderId": order_id, **order}
        self._get(f"/queries/orders/{order_id}", placed)

        _title("5. The user takes another name")
        renamed = {"_id": user_id, "userId": user_id, **person, "name": "Ada King"}
        url = f"{self._gateway}/users/{user_id}"
        _expect(renamed, self._call("PUT", url, 200, {"name": "Ada King"}))
        self._get(f"/users/{user_id}", renamed)

        if "Authorization" in self._headers:
            _title("6. The order service itself believes the gateway alone")
            self._call("GET", f"{self._order_service}/queries/orders/{order_id}", 401)
        else:
            _title("6. The order is read from the order service itself, and through the gateway")
            self._get(f"/queries/orders/{order_id}", placed, self._order_service)
        self._get(f"/queries/orders/{order_id}", placed)

        _title("What was stored, and never changes")
        self._history(f"/users/{user_id}/events", ["USER_CREATED", "USER_NAME_CHANGED"])
        self._history(f"/orders/{order_id}/events", ["ORDER_PLACED"])

        say(f"\nAll answers are right. Look at them: {self._gateway}/page/orders/{order_id}")
        if bearer := self._headers.get("Authorization"):
            say(
                "The page shows them to this user and to operators. Sign in with this user's token:"
            )
            say(f"  {bearer.removeprefix('Bearer ')}")
        say(f"Next: try calls of your own at {self._gateway}/docs,")
        say("or follow the order from the request to the read model, with the times it took:")
        say(f"  make shell, then: python -m eventcore trace {order_id}")

    def _take_token(self) -> None:
        """Takes a token of a new user, where the gateway asks for one (`make run AUTH=on`)."""
        try:
            answer = self._http.request("GET", f"{self._gateway}/queries/orders?limit=1")
        except urllib3.exceptions.HTTPError:
            return  # the first call says so
        if answer.status == HTTPStatus.UNAUTHORIZED:
            say("\nThe gateway asks for a token: here is one of a new user, signed with the key")
            say(f"of `make run AUTH=on` in {self._secrets}. All calls carry it.")
            token = token_for(self._secrets, str(new_id()))
            self._headers["Authorization"] = f"Bearer {token}"

    def _post(self, path: str, body: Json, status: int) -> Json:
        return self._call("POST", self._gateway + path, status, body)

    def _get(self, path: str, expected: Json, base: str = "") -> None:
        _expect(expected, self._call("GET", (base or self._gateway) + path, 200))

    def _history(self, path: str, expected: list[str]) -> None:
        events = self._call("GET", self._gateway + path, 200, show=False)["events"]
        for event in events:
            kind = paint(f"{event['eventType']:<18}", _GREEN)
            by = f"  by {event['actor']}" if event["actor"] else ""
            say(f"  version {event['version']}  {kind} {event['recordedAt']}{by}")
            say(_pretty(event["data"], 4))
        stored = [event["eventType"] for event in events]
        if stored != expected:
            raise Unexpected(f"{path} should hold {expected}, but holds {stored}.")

    def _call(
        self, method: str, url: str, status: int, body: Json | None = None, *, show: bool = True
    ) -> Json:
        """The answer's JSON; raises Unexpected unless it has this status."""
        time.sleep(self._pause)
        say(f"  {paint(f'{method} {url}', _CYAN)}")
        if body is not None:
            say(_pretty(body))
        try:
            answer = self._http.request(method, url, json=body, headers=self._headers)
            content: Json = answer.json()
        except urllib3.exceptions.HTTPError as error:
            raise Unexpected(
                f"{url} cannot be reached ({error}): is `make run` running?"
            ) from error
        except ValueError as error:
            raise Unexpected(f"{method} {url} did not answer JSON.") from error
        if token := answer.headers.get("Consistency-Token"):
            self._headers["Consistency-Token"] = token
        colour = _GREEN if answer.status == status else _YELLOW
        if show or answer.status != status:
            say(f"  {paint(f'{answer.status} {HTTPStatus(answer.status).phrase}', colour)}")
            say(_pretty(content))
        if answer.status != status:
            raise Unexpected(f"{method} {url} answered {answer.status}, not {status}.")
        return content


def _expect(expected: Mapping[str, object], answer: Json) -> None:
    wrong = [name for name, value in expected.items() if answer.get(name) != value]
    if wrong:
        raise Unexpected(f"The answer's {', '.join(wrong)} should be as in {dict(expected)}.")


def _pretty(content: Json, indent: int = 2) -> str:
    """Returns JSON on one line where it fits the terminal, else on a line for each member."""
    line = json.dumps(content, ensure_ascii=False)
    if indent + len(line) > shutil.get_terminal_size().columns:
        line = json.dumps(content, ensure_ascii=False, indent=2)
    return textwrap.indent(line, " " * indent)


def _title(text: str) -> None:
    say(f"\n{paint(text, 1)}")


if __name__ == "__main__":
    main()
