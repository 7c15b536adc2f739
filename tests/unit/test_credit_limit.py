"""CREDIT_LIMIT: each process that reads it refuses to start with one that is no price."""

import subprocess
from collections.abc import Mapping
from decimal import Decimal
from pathlib import Path

import pytest

from eventcore.__main__ import _settings_of
from eventcore.errors import Misconfigured
from eventcore.operate.shared import open_applier, tool_settings
from eventcore.project.reacting import ReactingApplier
from eventcore.settings import ReactionSettings, Secret, Server, Settings
from local.processes import Process, Servers, processes
from local.services import SERVED, SERVICES
from order.main import Settings as OrderSettings
from tests.environment import settings_from
from user.credit_reactor import LIMIT, REACTOR
from user.main import Settings as UserSettings

KINDS: Mapping[str, type[Settings]] = {
    "user-service": UserSettings,
    "order-service": OrderSettings,
    "user-credit": _settings_of(REACTOR),
}
"""The settings of the processes that read it."""


@pytest.fixture
def started(tmp_path: Path) -> Mapping[str, Process]:
    """The processes as `make run` starts them, by name; nothing is at their servers' addresses."""
    nowhere = Server("127.0.0.1", 1, "/", "any", Secret("none"))
    servers = Servers(nowhere, nowhere, dict.fromkeys(SERVICES, nowhere))
    ports = dict.fromkeys(SERVED, 1)
    found = processes(servers, tmp_path, ports=ports, free_port=lambda: 0)
    return {each.name: each for each in found}


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("limit", ["ten", "-1", "0.001", "NaN", "Infinity", "1e10"])
def test_a_credit_limit_that_is_no_price_is_refused(
    started: Mapping[str, Process], name: str, limit: str
) -> None:
    with pytest.raises(Misconfigured, match=f"{LIMIT} is '{limit}': ") as refused:
        settings_from({**started[name].env, LIMIT: limit}, KINDS[name])
    assert ";" not in str(refused.value)


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize(("limit", "amount"), [("0", 0), ("19.99", Decimal("19.99")), ("", None)])
def test_a_credit_limit_is_a_price_or_none(
    started: Mapping[str, Process], name: str, limit: str, amount: object
) -> None:
    found = settings_from({**started[name].env, LIMIT: limit}, KINDS[name])
    assert getattr(found, LIMIT.lower()) == amount


@pytest.mark.parametrize("name", KINDS)
def test_a_process_says_at_its_start_that_its_credit_limit_is_no_price(
    started: Mapping[str, Process], name: str
) -> None:
    process = started[name]
    done = subprocess.run(
        process.argv, env={**process.env, LIMIT: "ten"}, capture_output=True, text=True,
        timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    [line] = (done.stdout + done.stderr).splitlines()
    assert f" cannot start: {LIMIT} is 'ten': " in line


@pytest.mark.parametrize("kind", [_settings_of(REACTOR), tool_settings(REACTOR)])
def test_the_reactions_of_the_process_and_of_its_tools_have_the_limit(
    started: Mapping[str, Process], kind: type[ReactionSettings]
) -> None:
    applier = open_applier(settings_from({**started["user-credit"].env, LIMIT: "5"}, kind), REACTOR)
    assert isinstance(applier, ReactingApplier)
    assert applier.amounts == {LIMIT: 5}


def test_no_other_reactor_reads_an_amount() -> None:
    declared = (each for service in SERVICES.values() for each in service.projectors)
    reading = [each.name for each in declared if getattr(each.projection, "amounts", ())]
    assert reading == ["user-credit"]
