"""The access log: one line a call, with its route, time and ids, and nothing of its body."""

import logging
from collections.abc import Iterator

import pytest

from eventcore import jsontext
from eventcore.observe import _Json
from tests.fakes.shop import TOKEN, FakeShop

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"  # pragma: allowlist secret


class Lines(logging.Handler):
    """Keeps each line as it would be written, while the ids of its request are known."""

    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(_Json("user", "serve"))
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(self.format(record))


@pytest.fixture
def lines() -> Iterator[list[str]]:
    """What is logged from now on."""
    root = logging.getLogger()
    handler, level = Lines(), root.level
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    yield handler.lines
    root.setLevel(level)
    root.removeHandler(handler)


def test_each_call_is_one_line_with_route_time_and_ids_and_no_personal_data(
    lines: list[str],
) -> None:
    shop = FakeShop()
    shop.users.post(
        "/users",
        json={"name": "Grace Hopper", "email": "grace@example.com"},
        headers={"X-Correlation-ID": "c-1", "traceparent": f"00-{TRACE}-00f067aa0ba902b7-01"},
    )
    for regular in ("/healthz", "/internal/heads?after=0&until=1"):
        shop.users.get(regular, headers={"Authorization": f"Bearer {TOKEN}"})
    [answered] = [jsontext.parse(each) for each in lines if '"Answered"' in each]
    assert answered["method"] == "POST"
    assert answered["route"] == "/users"
    assert answered["status"] == 202
    assert 0 < answered["ms"] < 5000
    assert answered["correlation_id"] == "c-1"
    assert answered["trace_id"] == TRACE
    assert all(jsontext.parse(each)["correlation_id"] == "c-1" for each in lines)
    assert not [each for each in lines if "grace" in each.lower()]


def test_a_trace_context_that_is_none_is_left_out_of_the_log(lines: list[str]) -> None:
    shop = FakeShop()
    shop.users.get("/users/1", headers={"traceparent": "00-nonsense"})
    [line] = [each for each in lines if '"Answered"' in each]
    assert "trace_id" not in jsontext.parse(line)
    assert jsontext.parse(line)["status"] == 404
