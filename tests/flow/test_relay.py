"""The relay: in order, and never past what is confirmed."""

import threading
from uuid import uuid4

import pytest

from eventcore.broker.port import Queue
from eventcore.clock import Clock
from eventcore.errors import BrokerUnavailable
from eventcore.jsontext import parse
from eventcore.model.event import NewEvent, from_message
from eventcore.relay import EXPIRE_AGAIN, EXPIRE_EVERY, Forwarder, gather_delay
from eventcore.store.port import EXPIRED_AT_ONCE, PAGE, Stream
from tests.fakes.broker import FakeBroker
from tests.fakes.store import FakeStore

QUEUE = Queue("q", "user.#")


@pytest.fixture
def store() -> FakeStore:
    store = FakeStore()
    for _ in range(3):
        stream = Stream("user", uuid4())
        store.append(stream, 0, [NewEvent(uuid4(), "USER_CREATED", 1, {})], {})
    return store


def positions(broker: FakeBroker) -> list[int]:
    return [from_message(parse(message.body)).position for message, _ in broker.queues["q"]]


def test_events_are_published_in_the_order_of_positions(store: FakeStore) -> None:
    broker = FakeBroker()
    forwarder = Forwarder("user", store, broker.publisher([QUEUE], 500))
    assert forwarder.turn() == 3
    forwarder.save()
    assert positions(broker) == [1, 2, 3]
    assert store.checkpoint().position == 3
    assert forwarder.turn() == 0


def test_the_checkpoint_stays_behind_what_is_not_confirmed(store: FakeStore) -> None:
    broker = FakeBroker(silent=True)
    forwarder = Forwarder("user", store, broker.publisher([QUEUE], 500))
    forwarder.turn()
    forwarder.save()
    assert store.checkpoint().position == 0


def test_after_a_lost_connection_it_goes_on_from_the_checkpoint(store: FakeStore) -> None:
    broker = FakeBroker()
    first = Forwarder("user", store, broker.publisher([QUEUE], 500))
    first.turn()
    first.save()
    store.append(Stream("user", uuid4()), 0, [NewEvent(uuid4(), "USER_CREATED", 1, {})], {})
    broker.away = True
    with pytest.raises(BrokerUnavailable):
        first.turn()
    assert store.checkpoint().position == 3
    broker.away = False
    Forwarder("user", store, broker.publisher([QUEUE], 500)).turn()
    assert positions(broker) == [1, 2, 3, 4]


class Stop(threading.Event):
    """Set after the first wait; it knows how long that was to be."""

    def __init__(self) -> None:
        super().__init__()
        self.waited: list[float | None] = []

    def wait(self, timeout: float | None = None) -> bool:
        self.waited.append(timeout)
        self.set()
        return True


@pytest.mark.parametrize(("waiting", "least", "most"), [(1, 0, 0.005), (8, 0.005, 0.02)])
def test_after_few_events_the_next_ones_are_let_gather_for_a_moment(
    waiting: int, least: float, most: float
) -> None:
    stop, store = Stop(), FakeStore()
    for _ in range(waiting):
        event = NewEvent(uuid4(), "USER_CREATED", 1, {})
        store.append(Stream("user", uuid4()), 0, [event], {})
    Forwarder("user", store, FakeBroker().publisher([QUEUE], 500)).run(stop)
    [waited] = stop.waited
    assert waited
    assert least < waited <= most


def test_after_a_full_page_the_next_one_is_read_at_once() -> None:
    assert gather_delay(PAGE) == 0


def test_expired_keys_are_deleted_until_none_is_left_then_every_minute(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store, stop, now, rounds = FakeStore(), threading.Event(), 0.0, list[float]()

    def expire() -> int:
        rounds.append(now)
        if len(rounds) == 3:
            stop.set()
        return EXPIRED_AT_ONCE if len(rounds) == 1 else 0

    def wait(timeout: float) -> None:
        nonlocal now
        now += timeout

    monkeypatch.setattr(store, "expire_idempotency_keys", expire)
    monkeypatch.setattr(store, "wait", wait)
    publisher = FakeBroker().publisher([QUEUE], 500)
    Forwarder("user", store, publisher, Clock(monotonic=lambda: now)).run(stop)
    first, second, third = rounds
    assert first == 0
    assert EXPIRE_AGAIN <= second <= EXPIRE_AGAIN + 1
    assert EXPIRE_EVERY <= third - second <= EXPIRE_EVERY + 1
