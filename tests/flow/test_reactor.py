"""A reactor carries out one command for each event, whatever is repeated, lost or unavailable."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from random import Random
from threading import Event as Stop
from typing import Any, TypeAlias
from uuid import UUID, uuid4

import pytest

from eventcore.broker.port import Queue
from eventcore.errors import (
    Conflict,
    Invalid,
    Misconfigured,
    NotYet,
    Overloaded,
    StoreSlow,
    StoreUnavailable,
)
from eventcore.model.catalogue import Catalogue
from eventcore.model.decider import Decider
from eventcore.model.event import Event, NewEvent
from eventcore.operate.history import find
from eventcore.operate.parked import parked_skip
from eventcore.operate.rebuilding import begin, rebuild_stream
from eventcore.operate.timeline import timeline
from eventcore.operate.verifying import Verifier
from eventcore.project.reacting import FIRED_AT_ONCE, HOLD
from eventcore.project.reactor_projector import ReactorProjector
from eventcore.reactor import Commands, Reactor
from eventcore.readmodel.records import Skip, generation_of
from eventcore.relay import Forwarder
from eventcore.store.feed import StoreFeed
from eventcore.store.port import PAGE, Append, Deadline, Due, Stream
from tests.fakes.broker import FakeBroker
from tests.fakes.readmodel import FakeReadModel
from tests.fakes.shop import reactor_projector
from tests.fakes.store import FakeStore
from tests.flow.test_metrics import value


@dataclass(frozen=True)
class ParcelSent:
    """A parcel is on its way."""

    to: str


@dataclass(frozen=True)
class ParcelLost:
    """The parcel is lost."""


PARCELS = Catalogue("parcel", ParcelSent | ParcelLost, owner="post")


@dataclass(frozen=True)
class LetterWritten:
    """The letter of a parcel was written."""

    number: int


@dataclass(frozen=True)
class LetterReminded:
    """The reader of a letter was reminded."""


LetterEvent: TypeAlias = LetterWritten | LetterReminded


@dataclass(frozen=True)
class Write:
    """Writes about the parcel's event of this number."""

    number: int


@dataclass(frozen=True)
class Remind:
    """Reminds the reader."""


Numbers: TypeAlias = tuple[int, ...]


def _decide(command: Write | Remind, numbers: Numbers) -> Sequence[LetterEvent]:
    if isinstance(command, Remind):
        return [LetterReminded()]
    if command.number > len(numbers) + 1:
        raise AssertionError("out of order")
    return [] if command.number in numbers else [LetterWritten(command.number)]


def _evolve(numbers: Numbers, event: LetterEvent) -> Numbers:
    return (*numbers, event.number) if isinstance(event, LetterWritten) else numbers


LETTERS: Decider[Write | Remind, Numbers, LetterEvent] = Decider(
    Catalogue("letter", LetterEvent, owner="office"), (), _decide, _evolve
)


@dataclass
class Office:
    """A reactor that writes letters about parcels: the log of parcels, its own store, and all
    between them. `problems` are raised instead of a reaction, by stream.
    """

    parcels: FakeStore = field(default_factory=FakeStore)
    letters: FakeStore = field(default_factory=FakeStore)
    readmodel: FakeReadModel = field(default_factory=FakeReadModel)
    broker: FakeBroker = field(default_factory=FakeBroker)
    problems: dict[str, Exception] = field(default_factory=dict)
    reacted: list[tuple[str, int]] = field(default_factory=list)
    deadlines: Callable[[Commands, Due], None] | None = None

    def __post_init__(self) -> None:
        self.reactor = Reactor(
            name="letters",
            catalogue=PARCELS,
            queue="letters",
            on={"PARCEL_SENT": self.write},
            deadlines=self.deadlines,
            deadline_type="letter" if self.deadlines else "",
        )
        self.process = self.replica("first")

    def replica(self, holder: str, reactor: Reactor | None = None) -> ReactorProjector:
        given = self.readmodel, self.parcels, self.letters, self.broker, holder
        return reactor_projector(reactor or self.reactor, *given)

    def write(self, commands: Commands, event: Event) -> None:
        """The reaction."""
        self.reacted.append((str(event.aggregate_id), event.version))
        if problem := self.problems.get(str(event.aggregate_id)):
            raise problem
        commands.handle(LETTERS, event.aggregate_id, Write(event.version))

    def send(self, stream: str = "", count: int = 1, kind: str = "PARCEL_SENT") -> str:
        """Appends events to a parcel's stream; its id."""
        stream = stream or str(uuid4())
        of = Stream("parcel", UUID(stream))
        for _ in range(count):
            data = {"to": "Ada"} if kind == "PARCEL_SENT" else {}
            at = len(self.parcels.read_stream(of))
            metadata = {
                "correlationId": "c",
                "causationId": "r",
                "traceparent": "t",
                "actor": "Ada",
            }
            self.parcels.append(of, at, [NewEvent(uuid4(), kind, 1, data)], metadata)
        return stream

    def relay(self) -> None:
        queues = [Queue(self.reactor.queue, self.reactor.binding)]
        forwarder = Forwarder("fake", self.parcels, self.broker.publisher(queues, 500))
        while forwarder.turn():
            continue
        forwarder.save()

    def consume(self, *, stop: Stop | None = None) -> None:
        self.process.consume(stop or Stop(), wait=0)

    def sweep(self) -> None:
        for _ in range(2):
            self.process.sweep()

    def settle(self) -> None:
        self.relay()
        self.consume()

    def written(self, stream: str) -> list[int]:
        """The numbers of a parcel's letters, in the order in which they were written."""
        events = self.letters.read_stream(Stream("letter", UUID(stream)))
        return [event.data["number"] for event in events if event.event_type == "LETTER_WRITTEN"]

    def version(self, stream: str) -> int:
        return self.readmodel.versions("letters", [stream]).get(stream, 0)

    def parked(self) -> dict[str, str]:
        return {stream: each.error for stream, each in self.readmodel.parked("letters").items()}


@pytest.fixture
def office() -> Office:
    return Office()


class Waits(Stop):
    """Runs `act` at the given wait, and counts them."""

    def __init__(self, at: int, act: Callable[[], object]) -> None:
        super().__init__()
        self.at, self.act, self.waits = at, act, 0

    def wait(self, timeout: float | None = None) -> bool:
        self.waits += 1
        if self.waits == self.at:
            self.act()
        assert self.waits < 100
        return False


def test_each_event_leads_to_one_command_with_the_ids_of_its_cause(office: Office) -> None:
    parcel = office.send(count=3)
    office.settle()
    assert office.written(parcel) == [1, 2, 3]
    for letter, event in zip(office.letters.log, office.parcels.log, strict=True):
        assert letter.metadata == {
            "correlationId": "c",
            "causationId": str(event.event_id),
            "traceparent": "t",
            "actor": "Ada",
            "reactor": "letters",
        }
    last = str(office.parcels.log[-1].event_id)
    document = {"_id": parcel, "version": 3, "eventId": last}
    assert office.readmodel.collections["letters"] == {parcel: document}


def test_other_types_of_the_catalogue_are_passed_over(office: Office) -> None:
    parcel = office.send()
    office.send(parcel, kind="PARCEL_LOST")
    office.settle()
    assert office.version(parcel) == 2
    assert office.reacted == [(parcel, 1)]
    assert office.reactor.announcement == "letters; PARCEL_LOST=*; PARCEL_SENT=1"


def test_duplicates_react_to_nothing(office: Office) -> None:
    parcel = office.send(count=2)
    office.relay()
    office.broker.duplicate("letters")
    office.consume()
    office.parcels.checkpoints.clear()
    office.relay()
    office.replica("second").consume(Stop(), wait=0)
    office.sweep()
    assert not office.broker.queues["letters"]
    assert office.reacted == [(parcel, 1), (parcel, 2)]


@pytest.mark.parametrize("seed", range(10))
def test_gaps_are_filled_first_whatever_the_order_of_arrival(office: Office, seed: int) -> None:
    parcels = [office.send(count=6) for _ in range(3)]
    office.relay()
    office.broker.reorder("letters", seed)
    for _ in range(Random(seed).randrange(9)):  # and some are lost
        office.broker.queues["letters"].popleft()
    office.consume()
    office.sweep()
    assert [office.written(each) for each in parcels] == [[1, 2, 3, 4, 5, 6]] * 3
    assert len(office.reacted) == 18


def test_a_deleted_queue_loses_no_step(office: Office) -> None:
    before = office.send()
    office.settle()
    office.send(before)
    office.relay()
    office.broker.delete("letters")
    after = office.send()
    office.sweep()
    assert (office.written(before), office.written(after)) == ([1, 2], [1])


def test_a_refusal_parks_its_stream_alone_with_the_reason(office: Office) -> None:
    bad, good = office.send(count=2), office.send(count=2)
    office.problems[bad] = Invalid("No letters on Sunday.", "Sunday")
    office.settle()
    assert office.parked() == {bad: "Invalid: No letters on Sunday."}
    assert (office.written(bad), office.written(good)) == ([], [1, 2])
    later = office.send()
    office.settle()
    office.sweep()
    assert office.written(later) == [1]
    assert office.readmodel.checkpoint("letters").position == office.parcels.head
    office.problems.clear()
    applier = office.process.applier
    applier.retry(office.readmodel.parked("letters"))
    assert (office.parked(), office.written(bad)) == ({}, [1, 2])


def test_any_other_error_parks_and_a_start_tries_again(office: Office) -> None:
    bad = office.send()
    office.problems[bad] = KeyError("to")
    office.settle()
    assert office.parked() == {bad: "KeyError: 'to'"}
    assert value("reactor_commands_total", projection="letters", outcome="failed") > 0
    office.problems.clear()
    office.process.sweeping.release()
    office.process = office.replica("second")
    office.sweep()
    assert (office.parked(), office.written(bad)) == ({}, [1])


def test_an_unknown_type_parks_until_new_code_knows_it(office: Office) -> None:
    parcel = office.send(kind="PARCEL_WON")
    office.settle()
    assert "PARCEL_WON is unknown" in office.parked()[parcel]
    assert office.reacted == []


def test_while_the_store_is_away_it_waits_and_parks_nothing(office: Office) -> None:
    parcels = [office.send() for _ in range(3)]
    office.letters.away = True
    office.relay()
    paused: list[object] = []

    def look() -> None:
        assert office.process._consumer
        paused.append(office.process._consumer._paused)  # type: ignore[attr-defined]
        paused.append(office.process.health.missing())
        office.letters.away = False

    stop = Waits(3, look)
    office.consume(stop=stop)
    reason = "PostgreSQL cannot be reached: a test said so"
    assert paused == [True, {"store": reason}]
    assert (stop.waits, office.parked()) == (3, {})
    assert [office.written(each) for each in parcels] == [[1]] * 3
    office.sweep()
    assert office.process.health.missing() == {}


def test_a_sweep_names_the_store_that_is_away_and_moves_no_checkpoint(office: Office) -> None:
    office.send()
    office.letters.away = True
    office.sweep()
    assert set(office.process.health.missing()) == {"store"}
    assert office.readmodel.checkpoint("letters").position == 0
    office.letters.away = False
    office.sweep()
    assert office.process.health.missing() == {}
    assert office.readmodel.checkpoint("letters").position == 1


@pytest.mark.parametrize(
    "problem",
    [StoreSlow("locked"), Conflict("others were faster"), NotYet("soon"), Overloaded("x")],
)
def test_a_stream_that_must_wait_delays_no_other(office: Office, problem: Exception) -> None:
    slow, others = office.send(count=2), [office.send() for _ in range(3)]
    office.problems[slow] = problem
    office.relay()
    office.consume(stop=Waits(1, lambda: pytest.fail("the others waited")))
    assert [office.written(each) for each in [slow, *others]] == [[], [1], [1], [1]]
    assert [office.version(each) for each in others] == [1, 1, 1]
    assert [each for each, _ in office.reacted].count(others[0]) == 1
    office.sweep()
    assert office.process.health.missing() == {"store": str(problem)}
    assert office.readmodel.checkpoint("letters").position == 0
    later = office.send()
    office.settle()
    assert office.written(later) == [1]
    office.problems.clear()
    office.sweep()
    assert (office.parked(), office.written(slow)) == ({}, [1, 2])
    assert office.process.health.missing() == {}


def test_a_long_stream_that_must_wait_is_left_to_the_next_sweep(office: Office) -> None:
    slow = office.send(count=PAGE + 1)
    office.problems[slow] = Conflict("others were faster")
    office.relay()
    for _ in range(PAGE):  # so that a whole page is missing before what is delivered
        office.broker.queues["letters"].popleft()
    office.consume()
    assert len(office.reacted) == 1
    office.problems.clear()
    office.sweep()
    assert office.version(slow) == PAGE + 1


def test_a_command_whose_write_was_lost_is_carried_out_once(office: Office) -> None:
    parcel = office.send()
    office.relay()
    write = office.readmodel.write
    lost: list[object] = []

    def lose(*given: object) -> bool:
        lost.append(given)
        if len(lost) == 1:
            raise StoreUnavailable("it is as if the process had died here")
        return write(*given)  # type: ignore[arg-type]

    office.readmodel.write = lose  # type: ignore[assignment,method-assign]
    office.consume()
    assert (len(office.reacted), len(lost)) == (2, 2)
    assert office.written(parcel) == [1]


def test_a_late_repeat_changes_nothing_although_its_key_has_expired(office: Office) -> None:
    parcel = office.send(count=2)
    office.settle()
    office.letters.answers.clear()
    office.readmodel.collections["letters"].clear()  # restored to an earlier state
    office.process.applier.applied_versions.clear()
    office.parcels.checkpoints.clear()
    office.settle()
    assert len(office.reacted) == 4
    assert office.written(parcel) == [1, 2]


def test_replicas_that_have_one_event_at_once_carry_out_one_command(office: Office) -> None:
    other = office.replica("second")
    write, raced = office.write, list[int]()

    def race(commands: Commands, event: Event) -> None:
        write(commands, event)
        if not raced:
            raced.append(1)
            other.sweep()
            other.sweep()

    reactor = replace(office.reactor, steps={}, on={"PARCEL_SENT": race})
    office.process = office.replica("first", reactor)
    parcels = [office.send(count=2) for _ in range(2)]
    office.settle()
    assert raced
    assert [office.written(each) for each in parcels] == [[1, 2]] * 2
    assert [office.version(each) for each in parcels] == [2, 2]


def test_a_skipped_event_is_passed_over_with_its_command(office: Office) -> None:
    bad = office.send()
    office.problems[bad] = Invalid("No.")
    office.settle()
    event = office.parcels.log[0]
    skip = Skip("letters", bad, 1, str(event.event_id), "me", "why", office.parcels.now)
    office.readmodel.skip(skip)
    applier = office.process.applier
    applier.follow()
    assert applier.retry(office.readmodel.parked("letters")) == {bad}
    assert (office.version(bad), office.written(bad)) == (1, [])
    assert "command of a reactor is passed over" in str(parked_skip.help)


def test_verify_compares_documents_and_never_reacts(office: Office) -> None:
    parcel = office.send(count=2)
    office.settle()
    office.sweep()
    before = len(office.reacted)
    feed = StoreFeed(office.parcels, "parcel", owner="post")
    generation = generation_of(office.reactor)
    verifier = Verifier(office.reactor, office.readmodel, feed, generation, lambda _: None)
    assert verifier.run(None, Random(1)).wrong == ()
    office.readmodel.collections["letters"][parcel]["version"] = 1
    assert verifier.run(None, Random(1)).wrong
    assert len(office.reacted) == before


def test_a_rebuild_reacts_to_every_event_so_that_no_step_is_lost(office: Office) -> None:
    done = office.send(count=2)
    office.settle()
    missed = office.send()  # nothing has reacted to it yet
    feed = StoreFeed(office.parcels, "parcel", owner="post")
    build = begin(
        office.reactor,
        office.readmodel,
        feed,
        "me",
        lambda _: None,
        reacting=office.process.applier,
    )
    build.fold(lambda *_: None)
    build.catch_up()
    office.sweep()
    assert build.compare().agrees
    build.switch()
    assert (office.written(done), office.written(missed)) == ([1, 2], [1])
    assert office.reacted.count((done, 1)) == 2
    office.send(done)
    office.process.sweep()
    office.settle()
    assert office.written(done) == [1, 2, 3]


def test_one_stream_that_is_folded_again_reacts_too(office: Office) -> None:
    parcel = office.send(count=2)
    office.problems[parcel] = Invalid("No.")
    office.settle()
    office.problems.clear()
    applier = office.process.applier
    given = office.reactor, office.readmodel, applier.feed, applier.generation, parcel
    assert rebuild_stream(*given, applier.fold)
    assert (office.written(parcel), office.parked()) == ([1, 2], {})
    office.letters.away = True
    with pytest.raises(StoreUnavailable):
        rebuild_stream(*given, applier.fold)


def begun(office: Office, count: int) -> list[Stream]:
    """Letters whose deadline has passed."""
    streams = [Stream("letter", uuid4()) for _ in range(count)]
    for stream in streams:
        new = LETTERS.to_new_event(LetterWritten(1), uuid4())
        append = Append(stream, 0, [new], Deadline(0))
        office.letters.append_many([append], {"correlationId": "c", "causationId": "r"})
    return streams


def remind(commands: Commands, due: Due) -> None:
    commands.handle(LETTERS, due.stream.aggregate_id, Remind(), deadline=lambda _: Deadline(None))


def reminded(office: Office, streams: Sequence[Stream]) -> list[int]:
    types = [[e.event_type for e in office.letters.read_stream(each)] for each in streams]
    return [each.count("LETTER_REMINDED") for each in types]


def test_a_sweep_fires_what_is_due_each_once(office: Office) -> None:
    office = Office(deadlines=remind)
    streams = begun(office, 3)
    for _ in range(3):
        office.sweep()
        office.letters.now += timedelta(seconds=2 * HOLD)
    assert reminded(office, streams) == [1, 1, 1]
    fired = office.letters.read_stream(streams[0])[-1]
    cause = str(office.letters.read_stream(streams[0])[0].event_id)
    expected = {"correlationId": "c", "causationId": cause, "reactor": "letters"}
    assert fired.metadata == expected


def test_a_deadline_whose_command_moves_the_stream_on_is_one_append(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    office = Office(deadlines=remind)
    streams, appended = begun(office, 3), list[Stream]()
    append_many = office.letters.append_many

    def counted(appends: Sequence[Append], *given: Any) -> Any:
        appended.extend(each.stream for each in appends)
        return append_many(appends, *given)

    monkeypatch.setattr(office.letters, "append_many", counted)
    office.sweep()
    assert sorted(map(str, appended)) == sorted(map(str, streams))


def test_a_failing_deadline_delays_no_other_and_is_due_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    failing: set[Stream] = set()

    def fire(commands: Commands, due: Due) -> None:
        if due.stream in failing:
            raise Invalid("No.")
        remind(commands, due)

    office = Office(deadlines=fire)
    streams = begun(office, 5)
    failing.add(streams[0])
    before = value("deadlines_total", type="letter", outcome="failed")
    with caplog.at_level(logging.ERROR):
        office.sweep()
    assert reminded(office, streams) == [0, 1, 1, 1, 1]
    [line] = [each for each in caplog.records if each.message == "Deadline failed"]
    assert vars(line)["stream"] == str(streams[0])
    assert value("deadlines_total", type="letter", outcome="failed") == before + 1
    failing.clear()
    office.letters.now += timedelta(seconds=HOLD)
    office.sweep()
    assert reminded(office, streams) == [1, 1, 1, 1, 1]


def test_a_deadline_that_leads_to_nothing_is_over(office: Office) -> None:
    fired: list[Due] = []
    office = Office(deadlines=lambda _, due: fired.append(due))
    begun(office, 2)
    for _ in range(3):
        office.sweep()
        office.letters.now += timedelta(seconds=2 * HOLD)
    assert len(fired) == 2
    assert office.letters.deadlines == {}


def test_one_sweep_fires_a_bounded_number_and_the_next_one_is_due_at_once() -> None:
    office = Office(deadlines=remind)
    streams = begun(office, FIRED_AT_ONCE + 1)
    assert office.process.sweep()
    assert sum(reminded(office, streams)) == FIRED_AT_ONCE
    assert not office.process.sweep()
    assert sum(reminded(office, streams)) == FIRED_AT_ONCE + 1


def test_deadlines_are_fired_while_the_read_model_and_the_feed_are_away() -> None:
    office = Office(deadlines=remind)
    streams = begun(office, 1)
    office.readmodel.away = True
    office.sweep()
    assert reminded(office, streams) == [1]
    office.readmodel.away = False
    office.send()
    office.relay()
    office.process._fire_at = 0.0
    streams = begun(office, 1)
    office.readmodel.away = True

    def back() -> None:
        assert reminded(office, streams) == [1]  # while a batch waits
        office.readmodel.away = False

    office.consume(stop=Waits(1, back))


def test_a_reactor_that_cannot_be_meant_does_not_start() -> None:
    given = {"name": "letters", "catalogue": PARCELS, "queue": "letters"}
    with pytest.raises(Misconfigured, match="takes reactions"):
        Reactor(**given)  # type: ignore[arg-type]
    with pytest.raises(Misconfigured, match="PARCEL_WON"):
        Reactor(**given, on={"PARCEL_WON": lambda _, __: None})  # type: ignore[arg-type]
    with pytest.raises(Misconfigured, match="both or none"):
        Reactor(
            **given,  # type: ignore[arg-type]
            on={"PARCEL_SENT": lambda _, __: None},
            deadline_type="letter",
        )


def test_a_trace_tells_the_reaction_and_all_streams_of_an_id(office: Office) -> None:
    parcel = office.send()
    office.settle()
    given = office.letters, office.readmodel, (office.reactor,)
    history = find(parcel, "office", *given, types=("desk", "letter"))
    told = [(each.what, each.text) for each in timeline(history)]
    cause = office.parcels.log[0].event_id
    assert ("reaction", f"letters reacted to event {cause}, correlation id c, by Ada") in told
    assert any(what == "event" and "LETTER_WRITTEN" in text for what, text in told)
    assert any(what == "document" and text.startswith("letters wrote") for what, text in told)
