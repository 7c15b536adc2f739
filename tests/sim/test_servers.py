"""The simulated servers keep the promises of the real ones: the same tests as for those.

Fixtures of these names stand for the real server's; nothing is running, so nothing interrupts.
"""

from collections.abc import Iterator
from datetime import datetime

import pytest

from eventcore.event import Event
from eventcore.store import Store
from tests.contract.test_readmodel import *  # noqa: F403
from tests.contract.test_store import *  # noqa: F403
from tests.sim.judge import Judge
from tests.sim.mongo import FakeMongo, SimMongo
from tests.sim.people import DECIDER, FIXED
from tests.sim.postgres import FakePostgres, SimStore
from tests.sim.run import simulated
from tests.sim.world import World


class Ticking(World):
    """A world whose time goes on, though nothing happens in it."""

    def clock(self) -> datetime:
        """A little later each time."""
        self.now += 0.02
        return super().clock()


class Unconcerned(Judge):
    """Does not mind events that no projection knows."""

    def appended(self, event: Event) -> None: ...


@pytest.fixture
def world() -> Iterator[World]:
    world = Ticking(0)
    with simulated(world):
        yield world


@pytest.fixture  # type: ignore[no-redef]
def store(world: World) -> Store:
    return SimStore(FakePostgres(world, Unconcerned(world, FIXED, DECIDER)), world)


@pytest.fixture  # type: ignore[no-redef]
def readmodel(world: World) -> SimMongo:
    return SimMongo(FakeMongo(world, Unconcerned(world, FIXED, DECIDER), "users"))
