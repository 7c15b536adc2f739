"""Clients that wait for what they have written: a wait that says so has what it says."""

from dataclasses import replace
from typing import Any
from unittest.mock import patch

import pytest

from eventcore.consistency import Lag, Waits, lag
from eventcore.errors import ReadModelUnavailable
from eventcore.model.projection import version_of
from eventcore.model.token import SEEN_HEADER, Token
from eventcore.readmodel.records import generation_of
from tests.sim.judge import Issued
from tests.sim.mongo import SimMongo
from tests.sim.people import OLD
from tests.sim.run import Client, System
from tests.sim.world import World

SEEDS = 30

LONGEST = 0.6
"""Seconds of a wait at most: longer than from an append to its document, shorter than a pause."""


class Reader(Client):
    """Waits after each command until the read model has it."""

    def __init__(self, system: "Reading", count: int) -> None:
        super().__init__(system, count)
        self._reading = system

    def _told(self, issued: Issued, outcome: str) -> None:
        super()._told(issued, outcome)
        if outcome == "acknowledged":
            assert issued.answer
            self._read(Token.parse(str(issued.answer.headers[SEEN_HEADER])), str(issued.stream))

    def _read(self, token: Token, stream: str) -> None:
        reading, mongo, slept = self._reading, SimMongo(self._reading.mongo), list[float]()

        def sleep(seconds: float) -> None:
            slept.append(seconds)
            self._world.sleep(seconds)

        waits = Waits(LONGEST, 1, replace(self._world.clock, sleep=sleep))
        try:
            found = waits.until_seen(lambda: lag(mongo, generation_of(OLD), "user", token))
        except ReadModelUnavailable:
            return
        reading.found.append(found)
        document = reading.mongo.folds().get(stream)
        if found is Lag.NONE and version_of(document) < token.version("user", stream):
            self._world.blame(f"{stream} is not at {token.of('user')}: {document}")
        if sum(slept) > LONGEST + 1e-9:
            self._world.blame(f"waited for {sum(slept)} s")
        if found is Lag.PARKED and stream not in reading.judge.poisoned:
            self._world.blame(f"{stream} is called parked, and nothing is wrong with it")


class Reading(System):
    """A simulation whose clients read what they have written."""

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self.found: list[Lag] = []
        for name in self._clients:
            self._clients[name] = client = Reader(self, 8)
            self._programs[name] = client.main


def simulate(seed: int) -> tuple[list[str], list[Lag]]:
    """Runs one seed; returns the faults, and the results of the waits."""
    world = World(seed)
    try:
        reading = Reading(world)
        reading.run()
    finally:
        world.end()
    return world.wrong, reading.found


def test_a_wait_ends_in_time_and_says_what_is_so() -> None:
    found = set[Lag]()
    for seed in range(SEEDS):
        wrong, of_seed = simulate(seed)
        assert (seed, wrong) == (seed, [])
        found.update(of_seed)
    assert {Lag.NONE, Lag.BEHIND, Lag.PARKED} <= found


def _looks_at_existence_alone(real: Any, *given: Any) -> Lag:
    found: Lag = real(*given[:3], Token(dict.fromkeys(given[3].streams, 1)))
    return found


@pytest.mark.parametrize("wrong", [lambda *_: Lag.NONE, _looks_at_existence_alone])
def test_a_wait_that_says_what_is_not_so_is_found_out(wrong: Any) -> None:
    def call(*given: Any) -> Lag:
        answer: Lag = wrong(lag, *given)
        return answer

    with patch("tests.sim.test_consistency.lag", call):
        assert any(simulate(seed)[0] for seed in range(SEEDS))
