"""The code with one of its safeties taken out, each in turn: the simulation has to notice.

A mutant is a change to the text of a real function, in memory. One whose text is not there any
more fails loudly: the code has changed, and the mutant has to change with it.
"""

import inspect
import textwrap
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from eventcore import command
from eventcore.broker.link import Link
from eventcore.broker.publisher import ConfirmedPublisher
from eventcore.project.applier import EventApplier
from eventcore.project.projector import Projector
from eventcore.project.sweep import Sweep
from eventcore.readmodel import mongo
from eventcore.readmodel.mongo import Mongo
from eventcore.relay import Pump
from eventcore.store.postgres import Postgres
from eventcore.store.relay_session import RelaySession
from eventcore.store.settling import Settling
from tests.contract.test_readmodel import (
    test_a_parked_stream_is_released_once_its_document_has_reached_everything,
)
from tests.fakes.shop import FakeShop
from tests.flow.test_projector import (
    test_the_checkpoint_does_not_pass_a_stream_that_is_neither_applied_nor_parked,
)
from tests.sim.judge import Judge
from tests.sim.mongo import FakeMongo, SimMongo
from tests.sim.people import DECIDER, FIXED
from tests.sim.run import simulate
from tests.sim.world import World


@dataclass(frozen=True, slots=True)
class Mutant:
    """`says` what is wrong with it; `old` becomes `new` in the text of `owner`'s function."""

    says: str
    owner: Any
    function: str
    old: str
    new: str
    shown: Callable[[], object] | None = None
    """What notices, where a simulation cannot get there."""
    rare: bool = False
    """It takes some hundred seeds."""

    @contextmanager
    def lives(self) -> Iterator[None]:
        """The change, for a while."""
        before = vars(self.owner)[self.function]
        setattr(self.owner, self.function, self._changed(before))
        try:
            yield
        finally:
            setattr(self.owner, self.function, before)

    def _changed(self, function: Callable[..., Any]) -> Any:
        text = textwrap.dedent(inspect.getsource(function))
        assert self.old in text, f"{self.says}: {self.function} has changed"
        made: dict[str, Any] = {}
        exec(text.replace(self.old, self.new), function.__globals__, made)
        return made[self.function]


def _on_simulated_mongodb(test: Callable[[SimMongo], object]) -> None:
    """A test of the read model's contract, in a world without faults."""
    world = World(0)
    test(SimMongo(FakeMongo(world, Judge(world, FIXED, DECIDER), "users")))


MUTANTS = (
    # ── the append ────────────────────────────────────────────────────────────────────────
    Mutant(
        "the expected version is ignored",
        command,
        "_once",
        "appended = store.append(stream, version,",
        "appended = store.append(stream, len(store.read_stream(stream)),",
    ),
    Mutant(
        "a conflict after a lost answer counts as another's",
        Postgres,
        "_append",
        "if outcome_unknown and",
        "if False and",
        rare=True,
    ),
    Mutant(
        "an append is sent again with other event ids",
        Postgres,
        "_append",
        'reach("append:begin")',
        "values = (*values[:3], [str(UUID(int=UUID(e).int + outcome_unknown)) for e in values[3]],"
        " *values[4:])",
        rare=True,
    ),
    Mutant(
        "a retry forgets the key",
        command,
        "_once",
        "call.metadata, call.idempotency, given)",
        "call.metadata, None, given)",
    ),
    Mutant(
        "a key is not bound to its request",
        Postgres,
        "recorded_answer",
        "request_hash != idempotency.request_hash",
        "False",
    ),
    Mutant(
        "a key is recorded in a transaction of its own",
        Postgres,
        "_append",
        "replayed, recorded, version = self._write(APPEND, values)[0]",
        "row = self._write(APPEND, (*values[:8], None, None, None))[0]\n"
        "        replayed, recorded, version = row\n"
        "        if values[8]:\n"
        "            self._write(APPEND, (*values[:2], row[2], [], [], [], [], *values[7:]))",
    ),
    # ── the feed and the relay ────────────────────────────────────────────────────────────
    Mutant(
        "the relay reads without settling",
        RelaySession,
        "settled_event",
        "return self._settling.mark",
        "return self._settling.watched",
    ),
    Mutant(
        "the sweep reads without settling",
        Postgres,
        "progress",
        "settled = self._settling.mark",
        "settled = self._settling.watched",
        rare=True,
    ),
    Mutant(
        "the newest head counts as settled, not the one that was watched",
        Settling,
        "observe",
        "self.mark = self.watched\n        self.watched",
        "self.mark = head\n        self.watched",
    ),
    Mutant(
        "the relay's checkpoint moves when it publishes",
        Pump,
        "turn",
        "self._sent = page[-1].mark",
        "self._sent = self._checkpoint = page[-1].mark",
    ),
    Mutant(
        "the relay's checkpoint is at the highest confirm",
        ConfirmedPublisher,
        "_advance_prefix",
        "while prefix in self._confirmed_places:\n        self._confirmed_places.remove(prefix)",
        "while self._confirmed_places and prefix <= max(self._confirmed_places):\n"
        "        self._confirmed_places.discard(prefix)",
    ),
    Mutant(
        "a refusal of the broker counts as a confirm",
        Link,
        "_on_answer",
        'if method.NAME == "Basic.Nack":',
        "if False:",
    ),
    Mutant(
        "messages are not mandatory",
        Link,
        "_publish",
        "mandatory=True",
        "mandatory=False",
    ),
    Mutant(
        "a message that came back counts as confirmed",
        ConfirmedPublisher,
        "_on_confirm",
        "self._republish_later(sent)",
        "self._confirmed_places.add(sent.place)",
    ),
    Mutant(
        "two relays at once, without the lock",
        RelaySession,
        "lock",
        "return taken",
        "return True",
    ),
    # ── the projector ─────────────────────────────────────────────────────────────────────
    Mutant(
        "the guard is off",
        mongo,
        "to_operation",
        "    if write.replaces == 0:\n        return InsertOne(document)\n"
        '    return ReplaceOne({"_id": document["_id"], "version": write.replaces}, document)',
        '    return ReplaceOne({"_id": document["_id"]}, document, upsert=True)',
    ),
    Mutant(
        "the guard lets the same version again",
        mongo,
        "to_operation",
        '"version": write.replaces}',
        '"version": {"$lte": write.document["version"]}}',
    ),
    Mutant(
        "what a bulk did not do counts as done",
        Mongo,
        "write",
        "duplicates_of(error)\n        return False",
        "return True",
    ),
    Mutant(
        "a replacement that found nothing counts as done",
        Mongo,
        "write",
        "return bool(result.inserted_count + result.matched_count == len(operations))",
        "return True",
    ),
    Mutant(
        "acknowledged before it is written",
        Projector,
        "_handle",
        "ahead = self.applier.apply(streams)",
        "consumer.acknowledge(deliveries[-1])\n    ahead = self.applier.apply(streams)",
    ),
    Mutant(
        "acknowledged though the read model is away",
        Projector,
        "_until_done",
        "if consumer:\n                consumer.pause()",
        "if consumer:\n                consumer.acknowledge(act.args[0][-1])\n            return",
    ),
    Mutant(
        "events of a stream in the order of their arrival",
        EventApplier,
        "_in_order",
        "ordered = []",
        "return list(later.values()), []",
    ),
    Mutant(
        "an event that a document has is folded again",
        EventApplier,
        "_in_order",
        "for event in events if event.version > after}",
        "for event in events}\n    after = min([after, *(v - 1 for v in later)])",
    ),
    Mutant(
        "a gap is not filled",
        EventApplier,
        "apply",
        "return self._fill(last) if last else {}",
        "return {}",
    ),
    Mutant(
        "a stream is not parked",
        EventApplier,
        "_advance",
        "self._park(folded.values(), entries)",
        "pass",
    ),
    Mutant(
        "parked no further than where it stopped",
        EventApplier,
        "_entry",
        "highest=stopped.known",
        "highest=stopped.stopped_at",
    ),
    Mutant(
        "what cannot be applied is delivered again",
        EventApplier,
        "_park",
        'reach("projector:parking")',
        'raise BrokerUnavailable("requeued")',
    ),
    Mutant(
        "a stream is released whatever is known of it",
        Mongo,
        "release",
        '"highest": {"$lte": version}',
        '"highest": {"$gt": 0}',
        lambda: _on_simulated_mongodb(
            test_a_parked_stream_is_released_once_its_document_has_reached_everything
        ),
    ),
    Mutant(
        "streams are released before they are written",
        EventApplier,
        "retry",
        "for _, folded in",
        "self.readmodel.release(name, dict.fromkeys(entries, 10**6))\n    for _, folded in",
    ),
    Mutant(
        "a dead letter because the feed is away",
        EventApplier,
        "_fill",
        'log.warning("Gaps left to the sweep", extra={**log_sample(last), "reason": str(error)})',
        "ahead |= dict.fromkeys(last, 0)",
    ),
    Mutant(
        "what is no event is acknowledged and forgotten",
        Projector,
        "_dead_letter",
        "consumer.dead_letter(delivery, reason)",
        "pass",
    ),
    # ── the sweep ─────────────────────────────────────────────────────────────────────────
    Mutant(
        "the sweep's checkpoint passes a gap",
        Sweep,
        "_catch_up",
        "if still := self._behind(behind):",
        "if False:",
        lambda: test_the_checkpoint_does_not_pass_a_stream_that_is_neither_applied_nor_parked(
            FakeShop()
        ),
    ),
    Mutant(
        "the sweep goes to what has not settled",
        Sweep,
        "run",
        "page.at)\n    self._readmodel.move_checkpoint(lease, page.end,",
        "page.at)\n    self._readmodel.move_checkpoint(lease, page.settled,",
    ),
    Mutant(
        "the sweep does not retry parked streams",
        Sweep,
        "run",
        "self.applier.retry(due)",
        "pass",
    ),
    Mutant(
        "the lease's epoch fences nothing",
        Mongo,
        "move_checkpoint",
        '"epoch": lease.epoch',
        '"epoch": {"$gt": 0}',
        rare=True,
    ),
    Mutant(
        "what was not written is remembered as reached",
        EventApplier,
        "_write",
        "    into, complete =",
        "    for each in changed:\n        self._remember(each.stream, each.version)\n"
        "    into, complete =",
        rare=True,
    ),
)
"""Each takes one safety out."""


@dataclass(frozen=True, slots=True)
class Caught:
    """After how many seeds a mutant was found out, and by what; 0: never."""

    mutant: Mutant
    seeds: int
    seconds: float
    by: str


def hunt(mutant: Mutant, seeds: Iterable[int]) -> Caught:
    """Let the mutant live until a seed goes wrong."""
    began, tried = time.process_time(), 0
    with mutant.lives():
        if mutant.shown:
            return _shown(mutant, mutant.shown)
        for seed in seeds:
            tried += 1
            result = simulate(seed)
            if result.wrong:
                seconds = time.process_time() - began
                return Caught(mutant, tried, seconds, result.wrong[0])
    return Caught(mutant, 0, time.process_time() - began, "")


def _shown(mutant: Mutant, test: Callable[[], object]) -> Caught:
    """Let another test find it out."""
    began = time.process_time()
    try:
        test()
    except AssertionError as error:
        seconds = time.process_time() - began
        return Caught(mutant, 1, seconds, f"a test of the flow: {str(error).splitlines()[:1]}")
    return Caught(mutant, 0, time.process_time() - began, "")
