"""The operator's tools, as an operator calls them, on the running system."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID, uuid4

import pika
import pytest

from eventcore.model.event import NewEvent
from eventcore.readmodel.records import Write
from eventcore.store.port import Stream
from local.servers import RabbitMQ
from local.shop import Shop
from tests.integration.test_shop import (
    USERS,
    Client,
    Truth,
    channel,
    client,
    depth,
    truth,
    until,
)
from user.projections import users

__all__ = ["channel", "client", "truth"]

PROJECTION = users.PROJECTION


class Tool:
    """Calls the tools where a process runs, in its environment."""

    def __init__(self, shop: Shop, at: str = "user-projector") -> None:
        self._shop = shop
        self._at = at

    def __call__(
        self, *arguments: str, status: int = 0, env: Mapping[str, str] | None = None
    ) -> str:
        """What it says; an AssertionError for another exit status."""
        done = self._run(arguments, status, env)
        return done.stdout + done.stderr

    def lines(self, *arguments: str, status: int = 0) -> list[dict[str, Any]]:
        """The objects that it prints with --json; no log line is JSON among them."""
        done = self._run((*arguments, "--json"), status, {"LOG_FORMAT": "json"})
        for line in done.stderr.splitlines():
            assert not line.startswith("{"), line
        return [json.loads(line) for line in done.stdout.splitlines()]

    def _run(
        self, arguments: Sequence[str], status: int, env: Mapping[str, str] | None
    ) -> "subprocess.CompletedProcess[str]":
        done = subprocess.run(
            [sys.executable, "-m", "eventcore", *arguments],
            env={**os.environ, **self._shop.environment(self._at), **(env or {})},
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
            stdin=subprocess.DEVNULL,
        )
        assert done.returncode == status, done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        return done


@pytest.fixture
def tool(shop: Shop) -> Tool:
    return Tool(shop)


@pytest.fixture
def user_id(client: Client, truth: Truth) -> str:
    """A user with two events, readable."""
    user_id = client.create_user()
    client.send("PUT", f"/users/{user_id}", {"name": "Eve"})
    until(lambda: (truth.document(PROJECTION, user_id) or {}).get("version") == 2)
    return user_id


def spoil(truth: Truth, user_id: str) -> None:
    """Alter a document behind everybody's back."""
    document = serving(truth, user_id)
    changed = {**document, "name": "Mallory"}
    assert truth.models["user"].write(collection(truth), [Write(changed, document["version"])])


def collection(truth: Truth) -> str:
    return truth.serving(PROJECTION).collection


def serving(truth: Truth, user_id: str) -> Any:
    return truth.document(PROJECTION, user_id) or {"name": None}


def poison(truth: Truth, user_id: str) -> None:
    """An event that the code does not know, and one after it."""
    stream = Stream("user", UUID(user_id))
    truth.stores["user"].append(stream, 2, [NewEvent(uuid4(), "USER_MARRIED", 1, {})], {})
    last = NewEvent(uuid4(), "USER_NAME_CHANGED", 1, {"name": "Fay"})
    truth.stores["user"].append(stream, 3, [last], {})


# ── lag, verify ───────────────────────────────────────────────────────────────────────────


def test_lag_says_how_far_everything_is(shop: Shop, client: Client, tool: Tool) -> None:
    log, users_line, credit_line = tool.lines("lag")
    assert log["relayed"] <= log["settled"] <= log["head"]
    assert [users_line["projection"], credit_line["projection"]] == ["users", "credit"]
    [head, _, titles, row, _] = tool("lag").splitlines()
    assert head.split() == ["head", "settled", "relayed", "behind", "halted"]
    assert (titles.split()[0], row.split()[0]) == ("projection", "users")
    assert titles.index("halted") == row.rindex("-"), "columns are aligned"
    shop.stop("user-projector")
    client.create_user()
    until(lambda: tool.lines("lag")[1]["behind"] >= 1)
    assert tool.lines("lag")[1]["seconds"] > 0
    shop.start("user-projector")
    until(lambda: tool.lines("lag")[1]["behind"] == 0)
    log, *known = Tool(shop, "order-user-sync").lines("lag")
    assert {each["projection"] for each in known} == {"known-users", "order-saga"}


def test_verify_finds_an_altered_document_and_a_stream_rebuild_repairs_it(
    truth: Truth, tool: Tool, shop: Shop, user_id: str
) -> None:
    assert tool.lines("verify", "users", "--all")[-1]["wrong"] == 0
    spoil(truth, user_id)
    *findings, told = tool.lines("verify", "users", "--all", status=1)
    assert told["wrong"] == 1
    assert findings == [
        {
            "projection": "users",
            "stream": user_id,
            "what": "the document differs from the log in name",
        }
    ]
    noted = truth.models["user"].verification("users")
    assert noted
    assert noted.wrong == 1
    assert "folded again" in tool("rebuild", "users", "--stream", user_id)
    assert serving(truth, user_id)["name"] == "Eve"
    assert "right already" in tool("rebuild", "users", "--stream", user_id)
    assert tool.lines("verify", "users", "--sample", "20")[-1]["checked"] > 0


# ── rebuild ───────────────────────────────────────────────────────────────────────────────


def test_a_rebuild_under_load_keeps_answering_and_comes_out_the_same(
    client: Client, truth: Truth, tool: Tool, user_id: str
) -> None:
    stop, names = threading.Event(), []

    def ask() -> None:
        for number in range(10_000):
            if stop.is_set():
                return
            status, answer = client.send("GET", f"/users/{user_id}")
            names.append((status, answer.get("name")))
            if number % 5 == 0:
                client.create_user(f"During {number}")

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        before = truth.models["user"].generations("users")
        *said, last = tool.lines("rebuild", "users")
    finally:
        stop.set()
        asking.join()
    after = truth.models["user"].generations("users")
    assert (after.serving, after.previous) == (before.newest + 1, before.serving)
    assert last == {"serves": f"users.{after.serving}"}
    [parity] = [line for line in said if "alike" in line]
    assert parity["alike"] >= 1
    assert parity["different"] == parity["missing"] == parity["added"] == 0
    assert set(names) == {(200, "Eve")}
    assert tool.lines("verify", "users", "--all")[-1]["wrong"] == 0


def test_a_rebuild_that_differs_needs_consent_and_can_be_undone(
    client: Client, truth: Truth, tool: Tool, user_id: str
) -> None:
    spoil(truth, user_id)
    before = truth.models["user"].generations("users").serving
    said = tool("rebuild", "users", status=1)
    assert f"different: {user_id}" in said
    assert "nothing was changed" in said
    assert "--yes" in said
    assert truth.models["user"].generations("users").serving == before
    tool("rebuild", "users", "--yes")
    assert serving(truth, user_id)["name"] == "Eve"
    until(lambda: client.send("GET", f"/users/{user_id}")[1]["name"] == "Eve")
    new = client.create_user("New")
    until(lambda: serving(truth, new)["name"] == "New")
    tool("rebuild", "users", "--rollback", "--yes")
    assert truth.models["user"].generations("users").serving == before
    assert serving(truth, user_id)["name"] == "Mallory"
    assert serving(truth, new)["name"] == "New"
    tool("rebuild", "users", "--rollback", "--yes")
    assert "is deleted" in tool("rebuild", "users", "--drop-previous", "--yes")
    assert "no generation" in tool("rebuild", "users", "--rollback", status=1)


# ── parked, skip ──────────────────────────────────────────────────────────────────────────


def test_a_parked_stream_is_shown_and_goes_on_once_its_event_is_skipped(
    client: Client, truth: Truth, tool: Tool, user_id: str
) -> None:
    poison(truth, user_id)
    until(lambda: any(each["stream"] == user_id for each in tool.lines("parked", "list")))
    entry, third, fourth = tool.lines("parked", "show", "users", user_id)
    assert (entry["version"], entry["highest"]) == (3, 4)
    assert (third["event"], fourth["event"]) == ("USER_MARRIED", "USER_NAME_CHANGED")
    assert "data" not in fourth
    shown = tool("parked", "show", "users", user_id, "--data")
    assert "Fay" in shown
    skip = ("parked", "skip", "users", user_id, "--why", "a trial", "--who", "Ada")
    assert "run it again with --yes" in tool(*skip, status=1)
    assert "released" in tool(*skip, "--yes")
    assert serving(truth, user_id)["name"] == "Fay"
    [skip_record] = [s for s in truth.models["user"].skips("users") if s.stream == user_id]
    assert (skip_record.who, skip_record.why, skip_record.version) == ("Ada", "a trial", 3)
    assert tool.lines("verify", "users", "--all")[-1]["wrong"] == 0
    assert "not parked" in tool("parked", "show", "users", user_id, status=1)


# ── dead letters ──────────────────────────────────────────────────────────────────────────


def test_dead_letters_are_listed_shown_given_back_and_deleted(
    rabbitmq: RabbitMQ, channel: Any, tool: Tool
) -> None:
    dead = f"{USERS}.dead-letters"
    until(lambda: depth(channel, dead) >= 0)
    channel.queue_purge(dead)
    for body in (b"not json", b"\xff\xfe", b"{}"):
        channel.basic_publish("", USERS, body, pika.BasicProperties(message_id="m"))
    until(lambda: depth(channel, dead) == 3)
    listed = tool.lines("dead-letters", "list", "users")
    assert [each["bytes"] for each in listed] == [8, 2, 2]
    assert all(each["reason"] and each["messageId"] == "m" for each in listed)
    assert "\\xff\\xfe" in tool("dead-letters", "show", "users", listed[1]["id"])
    until(lambda: depth(channel, dead) == 3)  # what was looked at has gone back
    assert "run it again with --yes" in tool("dead-letters", "discard", "users", status=1)
    tool("dead-letters", "discard", "users", listed[0]["id"], "--yes")
    until(lambda: depth(channel, dead) == 2)
    tool("dead-letters", "requeue", "users", "--yes")  # it cannot be read, and comes back
    until(lambda: len(tool.lines("dead-letters", "list", "users")) == 2)
    until(lambda: depth(channel, dead) == 2)
    assert "no dead letter" in tool("dead-letters", "show", "users", "9-x", status=1)
    until(lambda: depth(channel, dead) == 2)
    tool("dead-letters", "discard", "users", "--yes")
    until(lambda: depth(channel, dead) == 0)
    assert tool("dead-letters", "list", "users") == "No dead letters of users.\n"
