"""`python -m eventcore saga` on a real PostgreSQL, as an operator calls it."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest

from eventcore.command import Call, handle
from eventcore.model.saga import Cancel, Reply, SagaCommand, Start, TimeOut
from eventcore.store.port import Answer, Stream
from eventcore.store.postgres import Postgres
from order.credit_saga import DECIDER, SAGA, deadline
from tests.conftest import Databases
from user.events import CreditReserved

STEP = SAGA.steps[0]


class Tool:
    """Calls the tool in the environment of the order service, with a spare database."""

    def __init__(self, databases: Databases) -> None:
        server = databases("spare", "service")
        self._environment = {
            **os.environ,
            "SERVICE": "order",
            "PYTHONPATH": str(Path(__file__).parents[2] / "services"),
            "POSTGRES_HOST": server.host,
            "POSTGRES_PORT": str(server.port),
            "POSTGRES_DATABASE": server.name,
            "POSTGRES_USER": server.user,
            "POSTGRES_PASSWORD": server.password.read(),
        }

    def __call__(self, *arguments: str, status: int = 0) -> str:
        """Its output; raises AssertionError for another exit status."""
        done = subprocess.run(
            [sys.executable, "-m", "eventcore", "saga", *arguments],
            env=self._environment, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert done.returncode == status, done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        return done.stdout + done.stderr

    def lines(self, *arguments: str) -> list[dict[str, Any]]:
        """The objects that it prints with --json."""
        return [json.loads(line) for line in self(*arguments, "--json").splitlines()]


@pytest.fixture
def stuck(store: Postgres) -> UUID:
    """The id of a saga that was cancelled and whose compensation nobody answered."""
    order = uuid4()
    arguments = {"userId": str(uuid4()), "orderId": str(order), "amount": 3}
    reserved = CreditReserved(str(order), 3)  # type: ignore[arg-type]
    commands: list[SagaCommand] = [Start(arguments), Reply(reserved), Cancel("rain")]
    commands += [TimeOut(10_000)] * STEP.attempts
    for place, command in enumerate(commands):
        handle(
            store, DECIDER, order, command, Call({"correlationId": "c"}),
            lambda *_: Answer(200, {}, {}), creates=place == 0, deadline=deadline,
        )  # fmt: skip
    return order


def test_a_stuck_saga_is_counted_listed_shown_and_retried(
    store: Postgres, stuck: UUID, spare_databases: Databases
) -> None:
    tool, kind = Tool(spare_databases), DECIDER.aggregate_type
    before = store.count_stuck([kind])[kind]
    [listed] = [each for each in tool.lines("list", "--stuck") if each["id"] == str(stuck)]
    assert (listed["state"], listed["deadline"]) == ("stuck", None)
    assert stuck not in {due.stream.aggregate_id for due in store.take_due(kind, 1000, 1.0)}
    [shown] = tool.lines("show", str(stuck))
    assert (shown["outcome"], shown["reason"], shown["arguments"]["amount"]) == (
        "cancelled", "rain", 3,
    )  # fmt: skip
    assert [each["answer"] for each in shown["steps"]] == ["done", *["late"] * STEP.attempts]
    assert "attempt 1 until" in tool("retry", str(stuck))
    last = store.read_stream(Stream(kind, stuck))[-1]
    assert (last.event_type, last.data["attempt"]) == ("COMPENSATION_REQUESTED", 1)
    assert store.count_stuck([kind])[kind] == before - 1
    [waits] = [each for each in tool.lines("list") if each["id"] == str(stuck)]
    assert (waits["state"], waits["attempt"]) == ("waits", 1)
    said = tool("retry", str(stuck), status=1)
    assert "is not stuck: it waits for the compensation of reserve-credit" in said
    assert store.read_stream(Stream(kind, stuck))[-1] == last
