"""The promises at every step and at the end, checked on the contents of the servers.

The judge sees the servers from within and believes no process. It knows the log, so it knows
what each document must be, and what may be forgotten when: a delivery that was acknowledged, a
checkpoint that has moved, and a stream that was taken off the parked list are all promises that
the event is in its document, or will be.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from eventcore.jsontext import parse
from eventcore.model.decider import Decider
from eventcore.model.event import Event, from_message
from eventcore.model.projection import Document, Projection, version_of
from eventcore.store.port import Answer
from tests.sim.world import Process, World

TRIES = 4
"""Times that a message which finds no queue is sent before it is left to the sweep."""


@dataclass(eq=False)
class Issued:
    """A command as its client knows it: what it was told, and never what really happened.

    `outcome`: "", acknowledged, refused, or unknown.
    """

    id: str
    stream: UUID
    command: Any
    key: str | None
    creates: bool = False
    outcome: str = ""
    answer: Answer | None = None
    tries: int = 0


@dataclass
class Judge:
    """Holds the log against everything else; `blame`s the world."""

    world: World
    projection: Projection
    decider: Decider[Any, Any, Any]
    log: dict[int, Event] = field(default_factory=dict)
    streams: dict[str, list[Event]] = field(default_factory=dict)
    folds: dict[str, list[Document]] = field(default_factory=dict)
    commands: list[Issued] = field(default_factory=list)
    poisoned: set[str] = field(default_factory=set)
    documents: Callable[[], Mapping[str, Document]] = dict
    parked: Callable[[], Mapping[str, Mapping[str, Any]]] = dict
    relay_at: int = 0
    swept_to: int = 0
    garbage: set[str] = field(default_factory=set)
    """Ids of messages that nobody can apply, put into the queue on purpose."""
    ahead: set[str] = field(default_factory=set)
    """Those of them that look like an event which the log does not have."""
    dead: set[str] = field(default_factory=set)
    """Those that are in the dead-letter queue, confirmed."""
    sent: dict[str, int] = field(default_factory=dict)
    done: set[str] = field(default_factory=set)
    """Ids of events that the broker has in a queue and has confirmed, or that were let go."""
    delivered: set[str] = field(default_factory=set)
    gone: set[str] = field(default_factory=set)
    """Ids of messages that the broker or a fault has lost: they may become no dead letter."""
    next_sent: dict[str, int] = field(default_factory=dict)

    # ── the log ───────────────────────────────────────────────────────────────────────────

    def appended(self, event: Event) -> None:
        """An event has become visible."""
        stream = str(event.aggregate_id)
        known = self.streams.setdefault(stream, [])
        if event.version != len(known) + 1:
            self.world.blame(f"{stream} got version {event.version} after {len(known)}")
        for name, at in (("relay", self.relay_at), ("projection", self.swept_to)):
            if event.position <= at:
                self.world.blame(
                    f"position {event.position} appears below the {name}'s checkpoint {at}"
                )
        known.append(event)
        self.log[event.position] = event
        folds = self.folds.setdefault(stream, [])
        folds.append(self.projection.apply(folds[-1] if folds else None, event))

    # ── the broker ────────────────────────────────────────────────────────────────────────

    def published(self, id: str, body: bytes, holds_lock: bool) -> None:
        """A relay hands a message to the broker."""
        if not holds_lock:
            self.world.blame("a relay publishes while another one has the lock")
        event = from_message(parse(body))
        stream = str(event.aggregate_id)
        self.sent[id] = self.sent.get(id, 0) + 1
        if self.sent[id] > 1:
            self.world.reach("an event is published twice")
            return
        wanted = self.next_sent.get(stream, 0) + 1
        if event.version != wanted:
            self.world.blame(f"{stream}: version {event.version} is sent first, not {wanted}")
        self.next_sent[stream] = event.version

    def confirmed(self, id: str, *, in_queue: bool, tries: int) -> None:
        """The broker has confirmed a message."""
        if in_queue or tries >= TRIES:
            self.done.add(id)

    def relay_checkpoint(self, position: int) -> None:
        """The relay says that it need not publish anything up to here again."""
        before, self.relay_at = self.relay_at, max(self.relay_at, position)
        for event in self.log.values():
            if before < event.position <= position and str(event.event_id) not in self.done:
                self.world.blame(
                    f"the relay's checkpoint {position} passes {event.position}: not confirmed"
                )
                return

    def dead_lettered(self, id: str, body: bytes) -> None:
        """A projector says that this is no event of the log."""
        self.world.reach("a message becomes a dead letter")
        if id not in self.garbage:
            self.world.blame(f"an event of the log becomes a dead letter: {body[:80]!r}")

    def lost(self, id: str) -> None:
        """A message is gone: nobody can make a dead letter of it."""
        self.gone.add(id)

    def feed_was_away(self, stream: str) -> None:
        """The running projector could not ask for a stream: it may leave that to the sweep."""
        if process := self.world.running:
            process.holds[stream] = self.world.now
            self.world.reach("the feed is away when a gap is to be filled")

    def acknowledged(self, id: str, body: bytes, owner: Process | None) -> None:
        """A projector says that it need not see this message again."""
        if id in self.dead:
            return
        if id in self.garbage and id not in self.ahead:
            self.world.blame(f"{id} is acknowledged and is no dead letter")
            return
        event = from_message(parse(body))
        stream = str(event.aggregate_id)
        if owner and stream in owner.holds:
            self.lost(id)
            return
        if self.is_kept(stream, event.version):
            return
        self.world.blame(
            f"version {event.version} of {stream} is acknowledged, and neither applied nor parked"
        )

    # ── the read model ────────────────────────────────────────────────────────────────────

    def is_kept(self, stream: str, version: int) -> bool:
        """Whether an event is in its document, or stands on the parked list."""
        document, parked = self.documents().get(stream), self.parked().get(stream)
        if version_of(document) >= version:
            return True
        return bool(parked and parked["highest"] >= version)

    def document_written(self, old: Document | None, new: Document) -> None:
        """A document changes."""
        stream, before, version = str(new["_id"]), version_of(old), version_of(new)
        if version <= before:
            self.world.blame(f"{stream} goes from version {before} to {version}")
        elif version > len(self.folds.get(stream, ())):
            self.world.blame(f"{stream} is at version {version}, which is not in the log")
        elif new != self.folds[stream][version - 1]:
            self.world.blame(f"{stream} at version {version} is not the fold of the log: {new}")
        else:
            id = str(self.streams[stream][version - 1].event_id)
            if id in self.done and id not in self.delivered:
                self.world.reach("the sweep brings what the broker lost")

    def swept(self, position: int, holder: str, _generation: str) -> None:
        """The projection's checkpoint moves."""
        process = self.world.running
        if process and str(process) != holder:
            self.world.blame(f"{process} moves the checkpoint, and {holder} has the lease")
        if position < self.swept_to:
            self.world.blame(f"the checkpoint goes back from {self.swept_to} to {position}")
        self.swept_to = max(self.swept_to, position)
        self._all_below_is_kept(f"the checkpoint is {position}")

    def released(self, stream: str) -> None:
        """A stream is taken off the parked list."""
        self.world.reach("a parked stream is released")
        self._all_below_is_kept(f"{stream} is released", stream)

    def taken_off(self, stream: str, highest: int) -> None:
        """What was known of a parked stream is forgotten: it must be in the document."""
        if version_of(self.documents().get(stream)) < highest:
            self.world.blame(f"{stream} is released below version {highest}")

    def parks(self, stream: str) -> None:
        """A stream is put on the parked list."""
        if stream not in self.poisoned:
            self.world.blame(f"{stream} is parked, and nothing is wrong with it")

    def _all_below_is_kept(self, when: str, only: str = "") -> None:
        for stream in [only] if only else list(self.streams):
            below = [e.version for e in self.streams.get(stream, ()) if e.position <= self.swept_to]
            if below and not self.is_kept(stream, below[-1]):
                self.world.blame(f"{when}; {stream} at {below[-1]} is neither applied nor parked")
                return

    # ── in the end ────────────────────────────────────────────────────────────────────────

    def what_is_missing(self, relay_at: int, head: int) -> str:
        """What has still to happen after the last fault; "": everything has come to rest."""
        documents = self.documents()
        for stream, folds in self.folds.items():
            if documents.get(stream) != folds[-1]:
                return f"{stream} is {documents.get(stream)}, and should be {folds[-1]}"
        if len(documents) != len(self.folds):
            return f"documents of nothing: {sorted(documents.keys() - self.folds.keys())}"
        if parked := list(self.parked()):
            return f"{parked} are parked after the fix"
        last = max(self.log, default=0)
        if relay_at < last or self.swept_to < last:
            return f"checkpoints {relay_at}, {self.swept_to} are below {last}; head {head}"
        if owed := self.garbage - self.dead - self.gone:
            return f"{sorted(owed)} are no dead letters"
        return ""

    def what_holds_others_up(self) -> str:
        """What has still to happen, with no more faults, before the fix; "": poison holds up its
        own streams alone, and those stand on the parked list in full.
        """
        documents, parked = self.documents(), self.parked()
        for stream, folds in self.folds.items():
            if stream in parked:
                if parked[stream]["highest"] < len(folds):
                    return f"{stream} is parked, and not known to go to {len(folds)}"
            elif documents.get(stream) != folds[-1]:
                return f"{stream} is neither applied nor parked"
        if self.swept_to < max(self.log, default=0):
            return f"the checkpoint is held up at {self.swept_to}"
        return ""

    def judge_commands(self) -> None:
        """Each command: in the log once if acknowledged, else at most once, never in part."""
        by_command: dict[str, list[Event]] = {}
        for position in sorted(self.log):
            event = self.log[position]
            by_command.setdefault(str(event.metadata["commandId"]), []).append(event)
        replies: dict[str, object] = {}
        for id, told in _by_id(self.commands).items():
            self._judge_command(told[0], {each.outcome for each in told}, by_command.pop(id, []))
            for issued in told:
                if not issued.key or issued.outcome != "acknowledged":
                    continue
                if replies.setdefault(issued.key, issued.answer) != issued.answer:
                    self.world.blame(f"{issued.key} was answered in two ways")
        if by_command:
            self.world.blame(f"events of no command: {sorted(by_command)}")

    def _judge_command(self, issued: Issued, outcomes: set[str], events: list[Event]) -> None:
        if outcomes == {"refused"} and events:
            self.world.blame(f"{issued.id} was refused, and is in the log")
        if not events:
            if "acknowledged" in outcomes and issued.creates:
                self.world.blame(f"{issued.id} was acknowledged, and is not in the log")
            if "acknowledged" in outcomes and not issued.creates:
                self._judge_nothing_new(issued)
            return
        first = events[0].version
        answered = issued.answer.body if issued.answer else None
        if isinstance(answered, Mapping) and answered["version"] != events[-1].version:
            self.world.blame(f"{issued.id} was answered {answered}, at {first}")
        versions = [event.version for event in events]
        if versions != list(range(first, first + len(events))):
            self.world.blame(f"{issued.id} is in the log at {versions}")
        before = self.streams[str(issued.stream)][: first - 1]
        state = self.decider.fold(self.decider.initial, before)
        decided = [
            self.decider.to_new_event(fact, UUID(int=0))
            for fact in self.decider.decide(issued.command, state)
        ]
        found = [(e.event_type, dict(e.data)) for e in events]
        if found != [(e.event_type, dict(e.data)) for e in decided]:
            self.world.blame(f"{issued.id} was decided on another state, or twice: {found}")

    def _judge_nothing_new(self, issued: Issued) -> None:
        """It is in the log as no event: there must have been a state that it does not change."""
        history = self.streams.get(str(issued.stream), [])
        state = self.decider.initial
        for event in history:
            state = self.decider.fold(state, [event])
            if not self.decider.decide(issued.command, state):
                return
        self.world.blame(f"{issued.id} was acknowledged, and is not in the log")


def _by_id(commands: list[Issued]) -> dict[str, list[Issued]]:
    """Commands that were sent more than once, by several clients, together."""
    told: dict[str, list[Issued]] = {}
    for issued in commands:
        told.setdefault(issued.id, []).append(issued)
    return told
