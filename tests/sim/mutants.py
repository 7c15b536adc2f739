"""The code with one of its safeguards taken out, each in turn: the simulation has to notice.

A mutant is a wrong function in the place of a real one, which it finds by its import path. One
whose target is gone, or that uses what is gone, fails loudly.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import wraps
from pkgutil import resolve_name
from types import SimpleNamespace
from typing import Any
from unittest.mock import ANY, patch
from uuid import UUID

from pymongo import ReplaceOne

from eventcore.broker.connection import to_properties
from eventcore.errors import BrokerUnavailable, FeedUnavailable, ReadModelUnavailable
from eventcore.readmodel.conversion import PROJECTED_AT
from tests.contract.test_readmodel import (
    test_a_parked_stream_is_released_once_its_document_has_all_events,
)
from tests.fakes.shop import FakeShop
from tests.flow.test_projector import (
    test_the_checkpoint_stays_below_a_stream_neither_applied_nor_parked,
)
from tests.sim.judge import Judge
from tests.sim.mongo import FakeMongo, SimMongo
from tests.sim.people import DECIDER, FIXED
from tests.sim.run import simulate
from tests.sim.world import World


class Misfit(BaseException):
    """A mutant does not fit the code any more; no code under simulation catches it."""


@dataclass(frozen=True, slots=True)
class Mutant:
    """`wrong` is called in place of the function `target`, which it gets as its first argument."""

    fault: str
    target: str
    wrong: Callable[..., Any]
    shown: Callable[[], object] | None = None
    """The test that notices, where a simulation cannot get there."""
    rare: bool = False
    """It takes some hundred seeds."""

    @contextmanager
    def lives(self) -> Iterator[None]:
        """Puts the wrong function in its place, for a while. Raises Misfit."""
        try:
            real = resolve_name(self.target)
        except (AttributeError, ImportError) as error:
            raise Misfit(f"{self.fault}: {error}") from error

        @wraps(real)
        def call(*given: Any, **named: Any) -> Any:
            try:
                return self.wrong(real, *given, **named)
            except (AttributeError, NameError, TypeError) as error:
                raise Misfit(f"{self.fault}: {error}") from error

        with patch(self.target, call):
            yield


MUTANTS: list[Mutant] = []
"""Each takes one safeguard out."""


def mutant(
    fault: str, target: str, shown: Callable[[], object] | None = None, *, rare: bool = False
) -> Callable[[Callable[..., Any]], None]:
    """Adds the function that follows as the wrong one."""
    return lambda wrong: MUTANTS.append(Mutant(fault, f"eventcore.{target}", wrong, shown, rare))


# ── the append ────────────────────────────────────────────────────────────────────────────────


@mutant("the expected version is ignored", "store.postgres.Postgres.append")
def _(real: Any, self: Any, stream: Any, _expected: int, *more: Any) -> Any:
    return real(self, stream, len(self.read_stream(stream)), *more)


@mutant("a conflict after a lost answer counts as another's", "store.postgres.Postgres._append")
def _(real: Any, self: Any, appends: Any, values: Any, once: Any, _outcome_unknown: bool) -> Any:
    return real(self, appends, values, once, False)


@mutant("an append is sent again with other event ids", "store.postgres.Postgres._append")
def _(real: Any, self: Any, appends: Any, values: Any, once: Any, outcome_unknown: bool) -> Any:
    others = [str(UUID(int=UUID(each).int + outcome_unknown)) for each in values[3]]
    changed = (*values[:3], others, *values[4:])
    return real(self, appends, changed, once, outcome_unknown)


@mutant("a retry forgets the key", "store.postgres.Postgres.append")
def _(real: Any, self: Any, stream: Any, expected: int, events: Any, metadata: Any, *_: Any) -> Any:
    return real(self, stream, expected, events, metadata)


@mutant("a key is not bound to its request", "store.postgres.Postgres.recorded_answer")
def _(real: Any, self: Any, idempotency: Any) -> Any:
    return real(self, replace(idempotency, request_hash=ANY))


@mutant("a key is recorded in a transaction of its own", "store.postgres.Postgres._append")
def _(real: Any, self: Any, appends: Any, values: Any, once: Any, outcome_unknown: bool) -> Any:
    *append, key, request_hash, answer = values
    appended = real(self, appends, (*append, None, None, None), once, outcome_unknown)
    if key:
        no_events = (*append[:2], appended.version, [], [], [], [], append[7])
        real(self, appends, (*no_events, key, request_hash, answer), once, False)
    return appended


# ── the feed and the relay ────────────────────────────────────────────────────────────────────


@mutant("the relay reads without settling", "store.relay_session.RelaySession.settled_event")
def _(real: Any, self: Any) -> Any:
    real(self)
    return self._settling.watched


@mutant("the sweep reads without settling", "store.postgres.Postgres.progress", rare=True)
def _(real: Any, self: Any, relay: str) -> Any:
    progress, watched = real(self, relay), self._settling.watched
    return replace(progress, settled=watched.position, event_id=watched.event_id)


@mutant(
    "the newest head counts as settled, not the one that was watched",
    "store.settling.Settling.observe",
)
def _(real: Any, self: Any, head: Any, holders: Any, same: bool = True) -> Any:
    are_done = not self._holders & set(holders)
    real(self, head, holders, same)
    if are_done:
        self.mark = head
    return self.mark


@mutant("the relay's checkpoint moves when it publishes", "relay.Forwarder.turn")
def _(real: Any, self: Any) -> Any:
    sent = real(self)
    self._checkpoint = self._sent
    return sent


@mutant(
    "the relay's checkpoint is at the highest confirm",
    "broker.publisher.ConfirmedPublisher._advance_prefix",
)
def _(real: Any, self: Any) -> Any:
    if self._confirmed_places:
        self._confirmed_places |= set(range(self._confirmed_prefix, max(self._confirmed_places)))
    real(self)


@mutant(
    "a refusal of the broker counts as a confirm", "broker.connection.BrokerConnection._on_answer"
)
def _(real: Any, self: Any, frame: Any) -> Any:
    tag, multiple = frame.method.delivery_tag, frame.method.multiple
    ack = SimpleNamespace(NAME="Basic.Ack", delivery_tag=tag, multiple=multiple)
    real(self, SimpleNamespace(method=ack))


@mutant("messages are not mandatory", "broker.connection.BrokerConnection._publish")
def _(_: Any, self: Any, exchange: str, key: str, message: Any, headers: Any) -> Any:
    properties = to_properties(message.id, headers)
    self._channel.basic_publish(exchange, key, message.body, properties, mandatory=False)


@mutant(
    "a message that came back counts as confirmed",
    "broker.publisher.ConfirmedPublisher._republish_later",
)
def _(_: Any, self: Any, sent: Any) -> Any:
    self._confirmed_places.add(sent.place)


@mutant("two relays at once, without the lock", "store.relay_session.RelaySession.lock")
def _(real: Any, self: Any) -> Any:
    real(self)
    return True


# ── the projector ─────────────────────────────────────────────────────────────────────────────


@mutant("the guard is off", "readmodel.documents.to_operation")
def _(_: Any, write: Any, now: Any) -> Any:
    document = {**write.document, PROJECTED_AT: now}
    return ReplaceOne({"_id": document["_id"]}, document, upsert=True)


@mutant("the guard lets the same version again", "readmodel.documents.to_operation")
def _(real: Any, write: Any, now: Any) -> Any:
    if not write.replaces:
        return real(write, now)
    document = {**write.document, PROJECTED_AT: now}
    guard = {"_id": document["_id"], "version": {"$lte": document["version"]}}
    return ReplaceOne(guard, document)


@mutant("an insert that found a document counts as done", "readmodel.mongo.Mongo.write")
def _(real: Any, self: Any, collection: str, writes: Any) -> Any:
    return real(self, collection, writes) or not all(write.replaces for write in writes)


@mutant("a replacement that found nothing counts as done", "readmodel.mongo.Mongo.write")
def _(real: Any, self: Any, collection: str, writes: Any) -> Any:
    return real(self, collection, writes) or all(write.replaces for write in writes)


@mutant("acknowledged before it is written", "project.projector.Projector.handle")
def _(real: Any, self: Any, deliveries: Any, consumer: Any) -> Any:
    consumer.acknowledge(deliveries[-1])
    real(self, deliveries, consumer)


@mutant("acknowledged though the read model is away", "project.projector.Projector.handle")
def _(real: Any, self: Any, deliveries: Any, consumer: Any) -> Any:
    try:
        real(self, deliveries, consumer)
    except ReadModelUnavailable:
        consumer.acknowledge(deliveries[-1])


@mutant(
    "events of a stream in the order of their arrival", "project.applier.EventApplier._in_order"
)
def _(_: Any, _self: Any, after: int, events: Any) -> Any:
    return list({each.version: each for each in events if each.version > after}.values()), []


@mutant("an event that a document has is folded again", "project.applier.EventApplier._in_order")
def _(real: Any, self: Any, after: int, events: Any) -> Any:
    return real(self, min([after, *(each.version - 1 for each in events)]), events)


@mutant("a gap is not filled", "project.applier.EventApplier._fill")
def _(*_: Any) -> Any:
    return {}


@mutant("a stream is not parked", "project.applier.EventApplier._park")
def _(*_: Any) -> Any: ...


@mutant("parked no further than where it stopped", "project.applier.EventApplier._entry")
def _(real: Any, self: Any, stopped: Any) -> Any:
    entry = real(self, stopped)
    return replace(entry, highest=entry.version)


@mutant("what cannot be applied is delivered again", "readmodel.mongo.Mongo.park")
def _(*_: Any) -> Any:
    raise BrokerUnavailable("requeued")


def _on_simulated_mongodb() -> None:
    """A test of the read model's contract, in a world without faults."""
    world = World(0)
    test_a_parked_stream_is_released_once_its_document_has_all_events(
        SimMongo(FakeMongo(world, Judge(world, FIXED, DECIDER), "users"))
    )


@mutant(
    "a stream is released whatever is known of it",
    "readmodel.mongo.Mongo.release",
    _on_simulated_mongodb,
)
def _(real: Any, self: Any, generation: str, versions: Any) -> Any:
    return real(self, generation, dict.fromkeys(versions, 10**6))


@mutant(
    "streams are released before they are written", "project.applier.EventApplier.retry_by_page"
)
def _(real: Any, self: Any, entries: Any) -> Any:
    self.readmodel.release(self.generation.name, dict.fromkeys(entries, 10**6))
    return real(self, entries)


@mutant("a dead letter because the feed is away", "project.applier.EventApplier._fill")
def _(real: Any, self: Any, last: Any) -> Any:
    try:
        for _ in self._catch_up(last):
            pass
    except FeedUnavailable:
        return dict.fromkeys(last, 0)
    return real(self, last)


@mutant(
    "what is no event is acknowledged and forgotten", "broker.consumer.BatchConsumer.dead_letter"
)
def _(*_: Any) -> Any: ...


# ── the sweep ─────────────────────────────────────────────────────────────────────────────────


class Behind(dict[str, int]):
    """The streams that a sweep found behind when it looked first."""


@mutant(
    "the sweep's checkpoint passes a gap",
    "project.sweep.Sweep._behind",
    lambda: test_the_checkpoint_stays_below_a_stream_neither_applied_nor_parked(FakeShop()),
)
def _(real: Any, self: Any, heads: Any) -> Any:
    return {} if isinstance(heads, Behind) else Behind(real(self, heads))


@mutant("the sweep goes to what has not settled", "project.sweep.Sweep._catch_up")
def _(real: Any, self: Any, position: int, page: Any) -> Any:
    real(self, position, page)
    object.__setattr__(page, "end", page.settled)


@mutant("the sweep does not retry parked streams", "project.applier.EventApplier.retry_by_page")
def _(*_: Any) -> Any:
    return iter(())


@mutant("the lease's epoch fences nothing", "readmodel.mongo.Mongo.move_checkpoint")
def _(real: Any, self: Any, lease: Any, mark: Any, covered_at: Any) -> Any:
    return real(self, replace(lease, epoch={"$gt": 0}), mark, covered_at)


@mutant(
    "what was not written is remembered as reached",
    "project.applier.EventApplier._write",
    rare=True,
)
def _(real: Any, self: Any, folded: Any) -> Any:
    for each in folded:
        if each.applied:
            self._remember(each.stream, each.version)
    return real(self, folded)


@dataclass(frozen=True, slots=True)
class Caught:
    """After how many seeds a mutant was found out, and by what; 0: never."""

    seeds: int
    seconds: float
    by: str


def hunt(mutant: Mutant, seeds: Iterable[int]) -> Caught:
    """Lets the mutant live until a seed goes wrong, or the test that is `shown` fails."""
    began = time.process_time()
    with mutant.lives():
        for tried, seed in enumerate(seeds, 1):
            if wrong := _fails(mutant.shown) if mutant.shown else simulate(seed).wrong:
                return Caught(tried, time.process_time() - began, wrong[0])
            if mutant.shown:
                break
    return Caught(0, time.process_time() - began, "")


def _fails(test: Callable[[], object]) -> tuple[str, ...]:
    try:
        test()
    except AssertionError as error:
        return (f"a test of this case: {error}",)
    return ()


def hunt_at(number: int, first: int, most: int) -> Caught:
    """Hunts one of MUTANTS, in up to `most` seeds, ten times that if it is rare."""
    mutant = MUTANTS[number]
    return hunt(mutant, range(first, first + (most * 10 if mutant.rare else most)))
