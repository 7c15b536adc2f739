"""`python -m local.page_pictures`: draws the page's views into docs/images, beside `make run`."""

import json
import sys
from pathlib import Path
from typing import Any

import click
import urllib3

from eventcore.model.token import SEEN_HEADER
from local.announce import say
from local.browser import Tab, chromium
from local.child import CannotStart
from local.panels.pictures import IMAGES, install, running, shrink, stopped

WIDTH, HEIGHT = 1280, 800

VIEWS = ("start", "flow", "order", "user", "correlation", "projections")
"""The views, each of which has a picture `page-VIEW.png`."""

STOPPED = "order-projector"
"""Process that stands still for the picture of an order."""

AT_REST = "!document.querySelector('.journeys .fresh, .stage:not(.there)')"
"""Every event that is listed is older than some seconds, and applied everywhere."""

SEEN = "document.querySelector('.causes')?.innerText.includes('has not swept')"
"""The order's view says that the projector stands still."""


class Gateway:
    """Calls to the gateway, answered with JSON; each sees what the ones before have done."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._http = urllib3.PoolManager(timeout=10, retries=False)
        self._seen: dict[str, str] = {}

    def call(self, method: str, path: str, body: object = None) -> Any:
        """The JSON of an answer; raises CannotStart for a refusal."""
        answer = self._http.request(method, self._url + path, json=body, headers=self._seen)
        if answer.status >= 300:
            raise CannotStart(f"{method} {path} answered {answer.status}.")
        if token := answer.headers.get(SEEN_HEADER):
            self._seen = {SEEN_HEADER: token}
        return answer.json()

    def order(self, user: str, item: str, price: float) -> str:
        """The id of a new order."""
        body = {"userId": user, "item": item, "price": price}
        return str(self.call("POST", "/orders", body)["orderId"])


def draw(gateway: str, port: int, into: Path) -> None:
    """Draws the views; the process with its metrics at `port` stands still for one of them."""
    calls = Gateway(gateway)
    person = {"name": "Grace Hopper", "email": "grace@example.com"}
    user = calls.call("POST", "/users", person)["userId"]
    calls.call("PUT", f"/users/{user}", {"name": "Grace Brewster Hopper"})
    calls.call("PUT", f"/users/{user}/credit-limit", {"limit": 2000})
    order = calls.order(user, "Nanosecond of wire", 29.97)
    calls.order(user, "Compiler", 1952)
    event = calls.call("GET", f"/orders/{order}/events")["events"][0]
    places = {
        "start": "/page",
        "user": f"/page/users/{user}",
        "correlation": f"/page/correlations/{event['correlationId']}",
        "projections": "/page/projections",
    }
    with chromium() as browser:
        tab = browser.open(WIDTH, HEIGHT, moves=False)  # then a dot stands on its arrow
        tab.go(f"{gateway}/page")
        tab.wait(AT_REST)
        for view, path in places.items():
            tab.go(gateway + path)
            _write(tab, into, view)
        tab.go(f"{gateway}/page/flow")
        calls.order(user, "Moth", 0.01)
        tab.wait("document.querySelectorAll('.lane-order .wire-5.moves').length > 2")
        _write(tab, into, "flow")
        with stopped(port):
            late = calls.order(user, "Patience", 1)
            tab.go(f"{gateway}/page/orders/{late}")
            tab.wait(SEEN)
            tab.go(f"{gateway}/page/orders/{late}")  # the document, too, as it is now
            _write(tab, into, "order")


def _write(tab: Tab, into: Path, view: str) -> None:
    file = into / f"page-{view}.png"
    tab.picture(file)
    shrink(file)
    say(str(file))


@click.command()
@click.option("--data", type=click.Path(path_type=Path), default=".data", show_default=True)
@click.option("--into", type=click.Path(path_type=Path), default=IMAGES, show_default=True)
def main(data: Path, into: Path) -> None:
    """Draw each view of the page, beside a running `make run`."""
    try:
        gateway, noted, _ = running(data.absolute())
        install()
        draw(gateway, int(noted[STOPPED]["env"]["METRICS_PORT"]), into)
    except (CannotStart, json.JSONDecodeError) as problem:
        sys.exit(f"make pictures: {problem}")


if __name__ == "__main__":
    main()
