"""docs/extending.md: what it adds works over HTTP, through the gateway, on real servers.

A copy of the repository follows the page to the letter; `make run` of that copy starts it.
"""

import json
import os
import shutil
import signal
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import urllib3

from local.services import PROJECTORS
from tests.extending import extended, run
from tests.integration.test_local import MakeRun, _until

Answer = urllib3.BaseHTTPResponse

LISTS_OF_SERVICES = (
    "tests/flow/test_activity.py",
    "tests/flow/test_docs.py",
    "tests/flow/test_gateway.py",
    "tests/flow/test_metrics.py",
    "tests/unit/test_cluster_commands.py",
    "tests/unit/test_compose.py",
    "tests/unit/test_contracts.py",
    "tests/unit/test_inside.py",
    "tests/unit/test_projection.py",
    "tests/unit/test_trip.py",
    "tests/unit/test_workflows.py",
)
"""The tests of `make unit` that look at what services there are."""


SHIPPED = {
    "user-projector", "credit-projector", "user-credit",
    "order-projector", "order-user-sync", "order-customers",
    "order-saga",
}  # fmt: skip


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if set(PROJECTORS) != SHIPPED:
        pytest.skip(
            "this repository has been extended: its files are not those that the page edits"
        )
    return extended(tmp_path_factory.mktemp("extended"))


@pytest.fixture(scope="module")
def system(copy: Path, data_folder: Path) -> Iterator[MakeRun]:
    """`make run` of the copy."""
    make_run = MakeRun(data_folder / "extended", copy, ports=4)
    try:
        make_run.start()
        yield make_run
        assert make_run.send(signal.SIGINT) == 0
    finally:
        if make_run._is_running():
            make_run.send(signal.SIGKILL)
            _until(lambda: not make_run.left_running(), 30)


@pytest.fixture
def gateway(system: MakeRun) -> str:
    return system.url()


def get(url: str, headers: Mapping[str, str] | None = None) -> Any:
    answer = urllib3.request("GET", url, headers=headers)
    assert answer.status == 200, answer.data
    return answer.json()


def post(url: str, body: object, key: str = "") -> Answer:
    headers = {"Idempotency-Key": key} if key else {}
    return urllib3.request("POST", url, json=body, headers=headers)


@pytest.mark.timeout(240)
def test_the_added_aggregate_is_written_repeated_and_read(gateway: str) -> None:
    first = post(f"{gateway}/parcels", {"to": "Paris"}, key="one-parcel")
    assert first.status == 202, first.data
    again = post(f"{gateway}/parcels", {"to": "Paris"}, key="one-parcel")
    assert (again.status, again.data) == (202, first.data)
    assert again.headers["Idempotency-Replayed"] == "true"
    parcel = first.json()["parcelId"]
    assert get(f"{gateway}/parcels/{parcel}") == {"_id": parcel, "parcelId": parcel, "to": "Paris"}
    [event] = get(f"{gateway}/parcels/{parcel}/events")["events"]
    assert (event["eventType"], event["data"]) == ("PARCEL_SENT", {"to": "Paris"})


@pytest.mark.timeout(240)
@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"{}",
        b'{"to": null}',
        b'{"to": 1}',
        b'{"to": ""}',
        b'{"to": "\\u0000"}',
        b'{"to": {"$gt": ""}}',
        b'{"to": "Paris", "more": 1}',
        b'{"to": "Paris", "to": "Rome"}',
        b'{"to": "\xff"}',
        b'{"to": "' + b"a" * 201 + b'"}',
        b'{"to": "' + b"a" * 2_000_000 + b'"}',
    ],
    ids=lambda body: str(body[:20]),
)
def test_hostile_input_is_refused_and_nothing_is_written(system: MakeRun, body: bytes) -> None:
    before = log_end(system)
    headers = {"Content-Type": "application/json"}
    answer = urllib3.request("POST", f"{system.url()}/parcels", body=body, headers=headers)
    assert 400 <= answer.status < 500, answer.data
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert log_end(system) == before


def log_end(system: MakeRun) -> int:
    """The last position of the parcels' log, as the parcel service's own feed says it."""
    return int(heads(system, "parcel")["settled"])


def heads(system: MakeRun, service: str, until: int = 0) -> Any:
    """A page of the streams of a service's log, from its feed."""
    token = (system.data / "secrets" / f"{service}_feed_token").read_text().strip()
    url = system.url(("user", "order", "parcel").index(service) + 1)
    query = f"{url}/internal/heads?until={until}"
    return get(query, {"Authorization": f"Bearer {token}"})


@pytest.mark.timeout(240)
def test_the_projectors_of_the_copy_write_what_the_logs_say(system: MakeRun, copy: Path) -> None:
    assert post(f"{system.url()}/parcels", {"to": "Rome"}).status == 202
    tool = ("-m", "local.inside", "--data", str(system.data), "--tool")
    for projection in ("parcels", "orders", "cancellations", "activity"):
        rows = run(copy, *tool, "verify", projection, "--all", "--json").splitlines()
        parts = ["activity/user", "activity/order"] if projection == "activity" else [projection]
        compared = [json.loads(row) for row in rows]
        assert [each["projection"] for each in compared] == parts
        assert {each["wrong"] for each in compared} == {0}
        assert compared[0]["checked"] >= (projection == "parcels")


@pytest.mark.timeout(240)
def test_the_added_projection_is_queried_over_http(gateway: str) -> None:
    person = {"name": "Ada Lovelace", "email": "ada@example.com"}
    user = post(f"{gateway}/users", person).json()["userId"]
    item = {"userId": user, "item": "Laptop", "price": 1}
    kept, cancelled = (post(f"{gateway}/orders", item).json()["orderId"] for _ in range(2))
    reason = {"reason": "too late"}
    assert post(f"{gateway}/orders/{cancelled}/cancel", reason).status == 200
    expected = {"orderId": cancelled, **reason}
    url = f"{gateway}/queries/cancellations"
    _until(lambda: expected in get(url)["cancellations"], 20)
    assert kept not in str(get(url))
    assert get(f"{url}?after={cancelled}")["cancellations"] == []
    assert urllib3.request("GET", f"{url}?after=nobody").status == 422
    described = get(f"{gateway}/openapi.json")["paths"]
    assert {"/queries/cancellations", "/parcels/{id}"} <= set(described)


@pytest.mark.timeout(240)
def test_the_added_view_is_queried_over_http(system: MakeRun, gateway: str) -> None:
    person = {"name": "Ada Lovelace", "email": "ada@example.com"}
    user = post(f"{gateway}/users", person).json()["userId"]
    for _ in range(3):
        order = {"userId": user, "item": "Laptop", "price": 1}
        assert post(f"{gateway}/orders", order).status == 200
    logged = [len(heads(system, name, until=1000)["heads"]) for name in ("user", "order")]
    assert logged >= [
        1,
        3,
    ]  # a user's stream begins with USER_CREATED, an order's with ORDER_PLACED

    def counted() -> list[int]:
        """The users and the orders of all days: midnight may pass meanwhile."""
        days = get(f"{gateway}/queries/activity")["days"]
        return [sum(each[what] for each in days) for what in ("users", "orders")]

    _until(lambda: counted() == logged, 20)
    assert "/queries/activity" in get(f"{gateway}/openapi.json")["paths"]


@pytest.mark.timeout(600)
def test_whoever_follows_the_page_need_not_mend_a_test(copy: Path) -> None:
    run(copy, "-m", "ruff", "check", "--no-cache")
    run(copy, "-m", "ruff", "format", "--check", "--no-cache")
    run(copy, "-m", "local.import_rules")
    run(copy, "-m", "local.contracts", "--check")
    assert (copy / "contracts" / "parcel" / "PARCEL_SENT.v1.golden.json").exists()
    run(copy, "-m", "mypy", "--cache-dir", str(copy / ".mypy"), "services/order", "services/parcel")
    run(copy, "-m", "pytest", "-q", "-x", "-p", "no:schemathesis", *LISTS_OF_SERVICES, timeout=300)


@pytest.mark.timeout(600)
def test_the_chart_of_the_copy_says_what_its_services_declare(copy: Path) -> None:
    if not shutil.which("helm"):
        assert not os.environ.get("CI"), "CI is set, and helm is not on the PATH"
        pytest.skip("helm is not on the PATH")
    lists = ("tests/chart/test_code.py", "tests/chart/test_network.py")
    run(copy, "-m", "pytest", "-q", "-x", *lists, timeout=500)
