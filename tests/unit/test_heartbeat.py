"""A loop that no longer turns is found, and one that waits for a server is left alone."""

import urllib.error
import urllib.request
from collections.abc import Callable
from threading import Event as Stop

import pytest

from eventcore.broker.port import Publisher
from eventcore.errors import BrokerUnavailable
from eventcore.observe import probes
from eventcore.observe.health import STUCK, Health, Heartbeat
from eventcore.relay import Forwarder, Relay
from local.servers import free_port
from tests.fakes.broker import FakeBroker
from tests.fakes.shop import FakeShop, projector
from tests.fakes.store import FakeStore
from user.projections import users


class Clock:
    """A clock that is moved by hand."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Turns(Stop):
    """Says stop after so many questions, and lets a third of what is too long go by at each."""

    def __init__(self, clock: Clock, heart: Heartbeat, turns: int) -> None:
        super().__init__()
        self._clock, self._heart, self._left = clock, heart, turns
        self.was_stuck = False

    def is_set(self) -> bool:
        self._clock.now += STUCK / 3
        self.was_stuck |= self._heart.stuck()
        self._left -= 1
        return self._left < 0

    def wait(self, timeout: float | None = None) -> bool:
        return self.is_set()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def heart(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> Heartbeat:
    """The process's own, with a clock that is moved by hand."""
    heart = Heartbeat(clock)
    for module in ("observe.health", "relay", "project.projector", "project.applier"):
        monkeypatch.setattr(f"eventcore.{module}.HEARTBEAT", heart)
    return heart


def test_a_loop_that_has_not_begun_is_not_stuck(clock: Clock, heart: Heartbeat) -> None:
    clock.now = 10 * STUCK
    assert not heart.stuck()


def test_a_loop_that_has_not_come_round_for_too_long_is_stuck(
    clock: Clock, heart: Heartbeat
) -> None:
    heart.beat()
    clock.now = STUCK - 1
    assert not heart.stuck()
    clock.now = STUCK + 1
    assert heart.stuck()
    heart.beat()
    assert not heart.stuck()


@pytest.fixture
def asked(heart: Heartbeat) -> Callable[[str], int]:
    """The status of a probe of this process, which lacks everything."""
    port = free_port()
    probes.serve_probes(probes.listen("", port), lambda: {"broker": "away"}, heart.stuck)

    def status(path: str) -> int:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as refusal:
            with refusal:
                return refusal.code

    return status


def test_the_three_probes_answer_three_questions(
    clock: Clock, heart: Heartbeat, asked: Callable[[str], int]
) -> None:
    heart.beat()
    assert [asked(each) for each in ("/healthz", "/livez", "/readyz")] == [200, 200, 503]
    clock.now = STUCK + 1
    assert [asked(each) for each in ("/healthz", "/livez", "/readyz")] == [200, 503, 503]


def away() -> Publisher:
    raise BrokerUnavailable("RabbitMQ cannot be reached")


class Standby(FakeStore):
    """A store whose lock another relay holds."""

    def lock(self) -> bool:
        return False


@pytest.mark.parametrize(
    "run",
    [
        Forwarder("user", FakeStore(), FakeBroker().publisher([], 1)).run,
        Relay("user", FakeStore, away, Health()).run,
        Relay("user", Standby, away, Health()).run,
    ],
    ids=["at work", "the broker is away", "another one is at work"],
)
def test_a_relay_beats_at_each_turn(
    clock: Clock, heart: Heartbeat, run: Callable[[Stop], None]
) -> None:
    heart.beat()
    turns = Turns(clock, heart, 12)
    run(turns)
    assert not turns.was_stuck


@pytest.mark.parametrize(
    "lost", ["nothing", "the broker", "the read model", "the read model, late"]
)
def test_a_projector_beats_at_each_turn(clock: Clock, heart: Heartbeat, lost: str) -> None:
    shop = FakeShop()
    shop.create_user()
    shop.relay()
    shop.broker.away = lost == "the broker"
    shop.readmodel.away = lost == "the read model"
    heart.beat()
    turns = Turns(clock, heart, 12)
    projector(users.PROJECTION, shop.readmodel, shop.user_store, shop.broker).run(turns)
    assert not turns.was_stuck
