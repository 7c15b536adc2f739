"""The access log: one line a call, with its route, time and ids, and nothing of its body."""

import logging
import re
from collections.abc import Iterator

import pytest

from eventcore import jsontext
from eventcore.observe.logs import _Json, _Text, log_fields
from tests.fakes.shop import TOKEN, FakeShop

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"  # pragma: allowlist secret


class Lines(logging.Handler):
    """Keeps each line as it would be written, while the ids of its request are known."""

    def __init__(self, form: logging.Formatter | None = None) -> None:
        super().__init__()
        self.setFormatter(form or _Json("user", "serve"))
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(self.format(record))


@pytest.fixture
def lines() -> Iterator[list[str]]:
    """The log lines from now on."""
    root = logging.getLogger()
    handler, level = Lines(), root.level
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    yield handler.lines
    root.setLevel(level)
    root.removeHandler(handler)


def test_each_call_is_one_line_with_route_and_ids_and_no_personal_data(
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


BREAKS = ["\n", "\r", "\r\n", "\0", "\x0b", "\x0c", "\x1b[2K", "\x1c", "\x7f", "\x85", "\x9b2K",
          "\u2028", "\u2029"]  # fmt: skip
FORMS: dict[str, logging.Formatter] = {"json": _Json("user", "serve"), "text": _Text()}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("given", BREAKS, ids=ascii)
def test_whatever_is_in_a_name_a_field_or_an_error_a_line_stays_one_line(
    form: str, given: str
) -> None:
    lines = Lines(FORMS[form])
    forged = f"Ada{given}INFO    forged"
    logger = logging.Logger("any")
    logger.addHandler(lines)
    logger.info(forged)
    logger.info("said", extra={"reason": forged})
    for line in lines.lines:
        assert len(line.splitlines()) == 1
        assert line.replace("\x7f", "").isprintable()
        assert "forged" in line


@pytest.mark.parametrize("given", BREAKS, ids=ascii)
def test_the_text_of_an_error_begins_no_line_of_its_own(given: str) -> None:
    lines = Lines(FORMS["text"])
    logger = logging.Logger("any")
    logger.addHandler(lines)
    try:
        raise ValueError(f"Ada{given}INFO    forged")
    except ValueError:
        logger.exception("odd")
    [line] = lines.lines
    assert all(each.isprintable() for each in line.split("\n"))
    assert not [each for each in line.splitlines() if each.startswith("INFO")]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("given", BREAKS, ids=ascii)
def test_a_user_of_such_a_name_is_one_line_a_call(form: str, given: str) -> None:
    lines, root = Lines(FORMS[form]), logging.getLogger()
    level = root.level
    root.addHandler(lines)
    root.setLevel(logging.INFO)
    try:
        name = {"name": f"Ada{given}INFO    forged", "email": "ada@example.com"}
        status = FakeShop().users.post("/users", json=name).status_code
    finally:
        root.setLevel(level)
        root.removeHandler(lines)
    assert status in (202, 422)
    assert len([each for each in lines.lines if "/users" in each]) == 1
    assert not [each for each in lines.lines if "forged" in each or len(each.splitlines()) != 1]


def test_on_a_terminal_a_request_is_one_short_line() -> None:
    lines, root = Lines(_Text()), logging.getLogger()
    level = root.level
    root.addHandler(lines)
    root.setLevel(logging.INFO)
    try:
        FakeShop().users.post("/users", json={"name": "Ada", "email": "ada@example.com"})
    finally:
        root.setLevel(level)
        root.removeHandler(lines)
    [request] = [each for each in lines.lines if "POST" in each]
    assert re.fullmatch(r"INFO    POST /users 202 \d+\.\d ms", request)
    assert not [each for each in lines.lines if "request_id" in each]


def test_on_a_terminal_a_warning_has_the_ids_of_its_request() -> None:
    lines = Lines(_Text())
    logger = logging.Logger("any")
    logger.addHandler(lines)
    with log_fields(request_id="r-1"):
        logger.warning("Not available now", extra={"reason": "away"})
    assert lines.lines == ["WARNING Not available now  request_id=r-1 reason=away"]
