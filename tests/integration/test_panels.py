"""Every panel of every dashboard has data, and every alert can be evaluated, on a real Prometheus
that has watched the running system under a short load with all that panels are there to show.
"""

import json
import math
import re
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest

from local.inside import within
from local.panels.alerts import alerts
from local.panels.boards import BOARDS
from local.servers import RabbitMQ
from local.services import PROJECTORS
from local.shop import Shop
from tests.conftest import Databases
from tests.integration.prometheus import Prometheus, prometheus
from tests.integration.trouble import append_what_no_code_knows, outrun, publish
from tests.panels.test_boards import plain

pytestmark = pytest.mark.timeout(400)  # the first test starts servers, and watches a load

NOT_HERE = {
    "PostgreSQL answers": "its exporter",
    "Connections of PostgreSQL": "its exporter",
    "Longest transaction": "its exporter",
    "Transactions": "its exporter",
    "Size of the databases": "its exporter",
    "Deadlocks": "its exporter",
    "MongoDB answers": "its exporter",
    "Connections of MongoDB": "its exporter",
    "Operations": "its exporter",
    "Volumes in use": "the kubelets",
    "Room on the volumes": "the kubelets",
}
"""Panels that have no data here, and who would have it. Those of servers that run here natively
are scraped; all others must have data.
"""

PROVOKED = {"ShopDeadLetters", "ShopStreamParked", "ShopConflictsHigh"}
RESTARTED = {
    "ShopDependencyDown",
    "ShopQueueWithoutConsumer",
    "ShopScrapeMissing",
    "ShopServiceDown",
}
STRAINED = {
    "ShopBudgetBurnsFast",
    "ShopBudgetBurnsSlowly",
    "ShopHighErrorRate",
    "ShopHighLatency",
}
"""Alerts that what is done here is reason for; those that a restart, and a machine which is busy
with it, may be on their way to. No other may be.
"""

LOST = 409
"""What a caller gets whose command found its stream changed again and again."""

LOAD = 12.0
"""Seconds of it; the rates that are asked for are those of a minute."""

QUERIES = [
    pytest.param(panel.title, query, id=f"{name}: {panel.title} {number}")
    for name, board in BOARDS.items()
    for panel in board.panels
    for number, query in enumerate(panel.queries)
]


class Load:
    """Clients that do what callers do, and a race for one user's stream among them."""

    def __init__(self, gateway: str, databases: Databases) -> None:
        self._gateway = gateway
        self._databases = databases
        self._until = 0.0
        self.statuses: list[int] = []
        self._lock = threading.Lock()

    def send(self, method: str, path: str, body: object = None) -> dict[str, Any]:
        """One call; what was answered, if it was well."""
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(self._gateway + path, data, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=15) as answer:
                status, found = answer.status, json.load(answer)
        except urllib.error.HTTPError as refusal:
            refusal.close()
            status, found = refusal.code, {}
        with self._lock:
            self.statuses.append(status)
        return found  # type: ignore[no-any-return]

    def create_user(self) -> str:
        """A new user's id."""
        person = {"name": "Ada", "email": "ada@example.com"}
        return str(self.send("POST", "/users", person)["userId"])

    @contextmanager
    def running(self, seconds: float) -> Iterator[None]:
        """All of it for so long at least; the race until somebody has lost it."""
        self._until = time.monotonic() + seconds
        raced = self.create_user()
        with ThreadPoolExecutor(16) as pool:
            runs = [pool.submit(each) for each in (self._orders, self._limited, self._mistakes)]
            runs.append(pool.submit(outrun, raced, self._databases, self._nobody_has_lost))
            runs += [pool.submit(self._race, raced, name) for name in range(12)]
            yield
            for run in runs:
                run.result()

    def _orders(self) -> None:
        user_id = self.create_user()
        while time.monotonic() < self._until:
            order = {"userId": user_id, "item": "Laptop", "price": 19.99}
            if placed := self.send("POST", "/orders", order):
                self.send("GET", f"/queries/orders/{placed['orderId']}")

    def _limited(self) -> None:
        user_id = self.create_user()
        self.send("PUT", f"/users/{user_id}/credit-limit", {"limit": 1000})
        while time.monotonic() < self._until:
            self.send("POST", "/orders", {"userId": user_id, "item": "Pen", "price": 1})
            time.sleep(0.2)

    def _mistakes(self) -> None:
        while time.monotonic() < self._until:
            self.send("GET", "/users/01890000-0000-7000-8000-000000000000")
            time.sleep(0.2)  # mistakes are rarer than orders

    def _nobody_has_lost(self) -> bool:
        return LOST not in self.statuses

    def _race(self, user_id: str, runner: int) -> None:
        count = 0
        while time.monotonic() < self._until or self._nobody_has_lost():
            assert time.monotonic() < self._until + 60, "nobody loses"
            count += 1
            self.send("PUT", f"/users/{user_id}", {"name": f"Ada {runner}.{count}"})


@pytest.fixture(scope="module")
def watched(
    shop: Shop,
    rabbitmq: RabbitMQ,
    databases: Databases,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Prometheus]:
    """A Prometheus that has seen a load, a stop, a dead letter and a parked stream."""
    shop.start()
    load = Load(shop.url("gateway"), databases)
    folder = tmp_path_factory.mktemp("prometheus")
    with prometheus(shop, rabbitmq, folder) as server:
        put_aside = "increase(projection_dead_letters_total[1m]) > 0"
        with load.running(LOAD):
            _await(
                lambda: len(server.query("projection_dead_letters_total")) == len(PROJECTORS),
                "a counter of each projector",
            )
            publish(rabbitmq, b"no event")
            append_what_no_code_knows(load.create_user(), databases)
            _await(lambda: len(server.query(put_aside)) == 2, "a dead letter of each queue")
            projectors = ("user-projector", "order-projector", "order-user-sync")
            shop.restart(*projectors)  # what they missed is fetched, and delivered once more
            verify(shop, "user-projector")
        _await(lambda: bool(server.query('ALERTS{alertname="ShopStreamParked"}')), "an alert")
        _await(lambda: not server.query("up == 0"), "an answer of each process to a scrape")
        yield server


def verify(shop: Shop, projector: str) -> None:
    """Compare with the log, as the chart's CronJob does; what it finds is a metric."""
    subprocess.run(
        [sys.executable, "-m", "eventcore", "verify", "--sample", "5"],
        env=dict(within(shop.environment(projector))),
        timeout=60,
        check=True,
    )


def _await(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, f"there never was {what}"
        time.sleep(0.1)


def test_every_process_and_the_broker_are_scraped(watched: Prometheus, shop: Shop) -> None:
    assert len(watched.targets()) == len(shop.names) + 2
    _await(lambda: set(watched.targets().values()) == {"up"}, "a scrape of each target")


@pytest.mark.parametrize(("title", "query"), QUERIES)
def test_a_panel_has_data(watched: Prometheus, title: str, query: Any) -> None:
    found = watched.query(plain(query.promql))
    numbers = [each for each in found if not math.isnan(float(each["value"][1]))]
    if title in NOT_HERE:
        assert numbers == [], f"{title} has data after all: take it from the list"
        return
    assert numbers, query.promql
    for label in re.findall(r"{{(\w+)}}", query.legend):
        assert all(each["metric"].get(label) for each in numbers), label


def test_a_version_that_has_just_begun_and_alerts_that_fire_are_drawn(watched: Prometheus) -> None:
    drawn = {
        each["name"]: watched.query(plain(each["target"]["expr"]))
        for each in BOARDS["overview"].render()["annotations"]["list"]
        if "target" in each
    }
    assert {each["metric"]["service"] for each in drawn["Deploys"]} == {"gateway", "user", "order"}
    assert "ShopDeadLetters" in {each["metric"]["alertname"] for each in drawn["Alerts"]}


def test_what_has_no_data_here_is_on_a_dashboard() -> None:
    assert set(NOT_HERE) <= {panel.title for board in BOARDS.values() for panel in board.panels}


@pytest.mark.parametrize("name", BOARDS)
def test_the_variables_find_jobs_and_instances(watched: Prometheus, shop: Shop, name: str) -> None:
    found = {
        each["name"]: watched.label_values(*_selector_and_label(each["query"]["query"]))
        for each in BOARDS[name].render()["templating"]["list"]
        if each["type"] == "query"
    }
    assert found["namespace"] == []  # there is none outside Kubernetes
    assert "shop" in found["job"]
    assert len(found["instance"]) >= len(shop.names)


def _selector_and_label(query: str) -> tuple[str, str]:
    selector, label = query.removeprefix("label_values(").removesuffix(")").rsplit(", ", 1)
    return plain(selector), label


def test_every_alert_can_be_evaluated(watched: Prometheus) -> None:
    rules = watched.rules()
    named = sorted(each["name"] for each in rules if each["type"] == "alerting")
    assert named == sorted(each.name for each in alerts())
    for rule in rules:
        assert (rule["health"], rule.get("lastError", "")) == ("ok", ""), rule["name"]
    for alert in alerts():
        watched.query(alert.expr)


def test_those_alerts_are_active_that_there_is_reason_for_and_no_other(
    watched: Prometheus,
) -> None:
    active = {each["metric"]["alertname"] for each in watched.query("ALERTS")}
    firing = watched.query('ALERTS{alertstate="firing"}')
    assert {"ShopDeadLetters", "ShopStreamParked"} <= active <= PROVOKED | RESTARTED | STRAINED
    assert {each["metric"]["alertname"] for each in firing} <= PROVOKED
