"""`python -m eventcore trace` beside the running system: from the gateway to the read model."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from eventcore.ids import new_id
from local.inside import within
from local.servers import MongoDB, PostgreSQL
from local.shop import Shop
from tests.conftest import Databases
from tests.integration.scrape import metric
from tests.integration.test_shop import until
from tests.integration.trouble import append_what_no_code_knows
from tests.integration.wire import Wire, new_user, order_body


class Trace:
    """Runs the command in the shell of a service."""

    def __init__(self, shop: Shop) -> None:
        self._shop = shop

    def run(self, service: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "eventcore", "trace", *arguments],
            env=dict(within(self._shop.environment(f"{service}-service"))),
            cwd=Path(sys.prefix).parent,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def entries(self, service: str, wanted: str) -> list[dict[str, Any]]:
        """What it tells of an id that is known."""
        done = self.run(service, wanted, "--json")
        assert done.returncode == 0, done.stderr
        # in a long log it says from where on it has looked
        assert done.stderr.count("\n") <= 1, done.stderr
        return [json.loads(line) for line in done.stdout.splitlines()]

    def whats(self, service: str, wanted: str) -> list[str]:
        """The kinds of them alone."""
        return [entry["what"] for entry in self.entries(service, wanted)]


@pytest.fixture
def trace(shop: Shop) -> Trace:
    return Trace(shop)


@pytest.fixture
def stopped_relay(shop: Shop) -> Iterator[None]:
    shop.stop("order-relay")
    yield
    shop.start("order-relay")


WHOLE = ["request", "event", "document", "relay"]


def test_an_order_is_traced_by_its_id_and_by_its_correlation_id(
    wire: Wire, trace: Trace, user_id: str
) -> None:
    correlation_id = str(new_id())
    body = order_body(user_id, b"19.99")
    placed = wire.send("POST", "/orders", body, {"X-Correlation-ID": correlation_id})
    order_id = placed.value("orderId")
    until(lambda: trace.entries("order", order_id)[-1]["relayed"] and _is_whole(trace, order_id))
    by_id = trace.entries("order", order_id)
    [event] = [each for each in by_id if each["what"] == "event"]
    assert (event["stream"], event["correlationId"]) == (order_id, correlation_id)
    assert event["relayed"] is True
    known, *whole = by_id
    assert (known["projection"], known["stream"]) == ("known-users", user_id)
    [view] = [each for each in whole if each.get("projection", "").startswith("customers/")]
    assert (view["what"], view["stream"]) == ("document", user_id)
    whole.remove(view)
    assert [each["what"] for each in whole] == WHOLE
    moments = [each["at"] for each in by_id if each["at"] and each["what"] != "document"]
    assert moments == sorted(moments)
    assert 0 < sum(each["gapSeconds"] for each in whole[1:3]) < 30

    assert trace.entries("order", correlation_id) == by_id


def _is_whole(trace: Trace, order_id: str) -> bool:
    return set(trace.whats("order", order_id)) == set(WHOLE)


def test_while_no_relay_runs_an_event_is_shown_as_not_relayed(
    shop: Shop, wire: Wire, trace: Trace, user_id: str, stopped_relay: None
) -> None:
    order_id = wire.send("POST", "/orders", order_body(user_id, b"1")).value("orderId")
    done = trace.run("order", order_id)
    assert done.returncode == 0, done.stderr
    [line] = [line for line in done.stdout.splitlines() if "ORDER_PLACED" in line]
    assert line.endswith("not relayed yet")
    shop.start("order-relay")
    until(lambda: "not relayed" not in trace.run("order", order_id).stdout)


def test_a_parked_stream_is_shown_parked_and_no_name_is_printed(
    shop: Shop, wire: Wire, trace: Trace, databases: Databases
) -> None:
    parked = metric(shop, "user-service", "projection_parked_streams", "users")
    before = max(0.0, parked())
    user_id = new_user(wire)
    append_what_no_code_knows(user_id, databases)
    until(lambda: parked() > before, 30)
    done = trace.run("user", user_id)
    assert f"users parked user {user_id} at version 2: CannotApply" in done.stdout
    assert f"users is at version 1 of 2: user {user_id}" in done.stdout
    assert "@" not in done.stdout
    assert "@" in trace.run("user", user_id, "--data").stdout


def test_an_id_that_nobody_has_ends_with_status_1(trace: Trace) -> None:
    for unknown in (str(uuid4()), "checkout-7"):
        done = trace.run("order", unknown)
        assert (done.returncode, done.stdout) == (1, "")
        assert f"nothing is known of {unknown} in the service order" in done.stderr


@pytest.mark.parametrize(("fixture", "name"), [("postgres", "PostgreSQL"), ("mongodb", "MongoDB")])
def test_a_server_that_is_away_is_named(
    trace: Trace, order_id: str, request: pytest.FixtureRequest, fixture: str, name: str
) -> None:
    server: PostgreSQL | MongoDB = request.getfixturevalue(fixture)
    server.kill()
    try:
        done = trace.run("order", order_id)
    finally:
        server.start()
    assert done.returncode == 1
    assert f"{name} cannot be reached" in done.stderr
    assert "Traceback" not in done.stderr
