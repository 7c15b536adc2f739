"""Metrics: the names of the page, routes without ids, the time of each stage."""

from pathlib import Path

import pytest
from flask import Flask
from prometheus_client import REGISTRY

from eventcore.errors import Conflict, StoreUnavailable
from eventcore.observe import metrics
from eventcore.web.app import create_app
from gateway.api import add_forwarding
from gateway.forward import Upstream
from local.services import SERVICES
from tests.fakes.shop import FakeShop

PAGE = Path(__file__).parents[2] / "docs" / "metrics.md"


def value(name: str, **labels: str) -> float:
    """A series as it is now; 0 before there is one."""
    return REGISTRY.get_sample_value(name, labels) or 0.0


def declared() -> set[tuple[str, str, str, str]]:
    """Name, type, labels and meaning of each metric of ours, as Prometheus gets to see it."""
    ours = [each for each in vars(metrics).values() if hasattr(each, "_labelnames")]
    found = set()
    for each in ours:
        [family] = each.describe()
        name = f"{family.name}_total" if family.type == "counter" else family.name
        labels = ", ".join(each._labelnames)
        found.add((name, family.type, labels, family.documentation))
    return found


def test_the_page_of_metrics_is_what_the_code_has() -> None:
    rows = [line.strip("| ").split(" | ") for line in PAGE.read_text().splitlines()]
    told = {
        (row[0].strip("`"), row[1], row[2], row[3])
        for row in rows
        if len(row) == 4 and row[0].startswith("`")
    }
    assert told == declared()


@pytest.mark.parametrize(
    ("path", "route"),
    [
        ("/users", "/users"),
        ("/users/0198c5f4-0000-7000-8000-000000000001", "/users/{id}"),
        ("/users/whatever", "/users/{id}"),
        ("/orders/1/cancel", "/orders/{id}/cancel"),
        ("/users/1/events", "/users/{id}/events"),
        ("/queries/orders", "/queries/orders"),
        ("/queries/orders/1", "/queries/orders/{id}"),
        ("/users/1/made-up", "(no route)"),
        ("/users/1/events/2", "(no route)"),
        ("/made-up", "(no route)"),
    ],
)
def test_the_gateway_counts_a_call_under_its_route_and_never_under_an_id(
    path: str, route: str
) -> None:
    app: Flask = create_app("Gateway", (), missing=dict, is_ready=lambda: True)
    paths = {name: each.paths for name, each in SERVICES.items()}
    add_forwarding(app, paths, dict.fromkeys(paths, Upstream("http://127.0.0.1:1", calls=1)))
    status = "404" if route == "(no route)" else "503"
    name = "http_request_duration_seconds_count"
    before = value(name, method="GET", route=route, status=status)
    app.test_client().get(path)
    assert value(name, method="GET", route=route, status=status) == before + 1


def test_a_command_that_fails_is_counted_with_the_time_that_it_took(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [1000.0]
    shop = FakeShop()

    def fail(*_: object) -> None:
        now[0] += 3
        raise StoreUnavailable("nobody is there")

    monkeypatch.setattr("eventcore.web.correlation.perf_counter", lambda: now[0])
    monkeypatch.setattr(shop.user_store, "append", fail)
    name, labels = "http_request_duration_seconds_sum", {"method": "POST", "route": "/users"}
    before = value(name, **labels, status="503")
    shop.users.post("/users", json={"name": "Ada", "email": "ada@example.com"})
    assert value(name, **labels, status="503") == before + 3


def test_a_service_counts_a_call_under_the_route_that_it_describes() -> None:
    shop = FakeShop()
    user_id = shop.create_user()
    name = "http_request_duration_seconds_count"
    before = value(name, method="GET", route="/users/{id}", status="200")
    shop.users.get(f"/users/{user_id}")
    assert value(name, method="GET", route="/users/{id}", status="200") == before + 1


def test_the_time_from_append_to_readable_is_counted_once_an_event() -> None:
    shop = FakeShop()
    name = "projection_append_to_readable_seconds_count"
    append = "eventstore_append_duration_seconds_count"
    before = value(name, projection="users")
    appended = value(append, aggregate_type="user")
    batches = value("projection_batch_events_sum", projection="users")
    user_id = shop.create_user()
    shop.users.put(f"/users/{user_id}", json={"name": "Eve"})
    shop.relay()
    shop.relay()  # once more: what was applied is not counted again
    shop.settle()
    assert value(name, projection="users") == before + 2
    assert value(append, aggregate_type="user") == appended + 2
    assert value("projection_batch_events_sum", projection="users") >= batches + 2


def test_the_events_that_a_command_folds_are_counted_by_aggregate_type() -> None:
    shop = FakeShop()
    name, labels = "eventstore_folded_events", {"aggregate_type": "user"}
    commands, folded = value(f"{name}_count", **labels), value(f"{name}_sum", **labels)
    user_id = shop.create_user()
    for names in ("Eve", "Ada", "Ada"):
        shop.users.put(f"/users/{user_id}", json={"name": names})
    assert value(f"{name}_count", **labels) == commands + 3, (
        "one that begins a stream folds nothing"
    )
    assert value(f"{name}_sum", **labels) == folded + 1 + 2 + 3


def test_an_append_that_lost_its_race_is_counted_as_a_conflict(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shop = FakeShop()
    user_id = shop.create_user()
    append, lost = shop.user_store.append, ["one"]

    def race(*arguments: object) -> object:
        if lost:
            raise Conflict(lost.pop())
        return append(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(shop.user_store, "append", race)
    before = value("eventstore_conflicts_total", aggregate_type="user")
    refused = value("eventstore_conflicts_lost_total", aggregate_type="user")
    assert shop.users.put(f"/users/{user_id}", json={"name": "Eve"}).status_code == 200
    assert value("eventstore_conflicts_total", aggregate_type="user") == before + 1
    assert value("eventstore_conflicts_lost_total", aggregate_type="user") == refused
