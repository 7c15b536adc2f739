"""P34: a command with a snapshot of its stream, beside one that folds all of its events."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cache, cached_property, partial
from itertools import count
from statistics import median
from time import perf_counter
from typing import Any

from eventcore.command import Call, handle
from eventcore.ids import new_id
from eventcore.model.event import Json, NewEvent
from eventcore.snapshots import WRITER
from eventcore.store.port import Answer, Stream
from eventcore.store.postgres import Postgres
from tests.bench.bed import Bed, Size, metadata
from tests.bench.rows import Row, Values, require
from user.user import DECIDER, ChangeUser, User

LENGTHS = (10, 30, 100, 300, 1_000, 3_000, 10_000)

EVERY = 50
"""Events after which a snapshot is written."""

AT_ONCE = 500
"""Events of one transaction that makes a stream."""


def to_json(user: User | None) -> Json:
    return {"name": user.name, "email": user.email} if user else None


def from_json(value: Any) -> User | None:
    return User(value["name"], value["email"]) if value else None


WITH_SNAPSHOTS = replace(
    DECIDER, snapshot_every=EVERY, state_to_json=to_json, state_from_json=from_json
)


class Snapshots:
    """Measures commands on streams of several lengths, in an event store of their own."""

    def __init__(self, bed: Bed, size: Size) -> None:
        self._bed = bed
        self._size = size
        self._names = count(1)
        self._took: dict[tuple[int, bool], list[float]] = {}

    def rows(self) -> Sequence[Row]:
        """The rows of this family."""
        lengths = [
            Row(
                "P34", f"command on {length:,} events, a snapshot every {EVERY}",
                partial(self._command, length, True), (" ms p50",),
                "without snapshots", partial(self._command, length, False),
            )
            for length in LENGTHS
        ]  # fmt: skip
        compared = Row(
            "P34", f"command on {LENGTHS[-1]:,} events, a snapshot every {EVERY}",
            lambda: self._command(LENGTHS[-1], True), (" ms p50",),
            f"on {LENGTHS[0]} events", lambda: self._command(LENGTHS[0], True), self._notes,
        )  # fmt: skip
        return (*lengths, compared)

    def _notes(self) -> Sequence[str]:
        """The length from which on snapshots pay."""
        pays = [
            median(self._took[length, True]) < median(self._took[length, False])
            for length in LENGTHS
        ]
        shortest = next((n for n, _ in enumerate(pays) if all(pays[n:])), None)
        at = f"from {LENGTHS[shortest]:,} events on" if shortest is not None else "at no length"
        return (f"a snapshot every {EVERY} events pays {at}, of those measured",)

    def _command(self, length: int, with_snapshots: bool) -> Values:
        """The median time of a change of a user, which reads, folds and appends."""
        decider = WITH_SNAPSHOTS if with_snapshots else DECIDER
        streams, took = self._streams(length), []
        for number in range(self._size.answered):
            user = streams[number % len(streams)]
            command, began = ChangeUser(f"Ada {next(self._names)}"), perf_counter()
            done = handle(
                self._store, decider, user, command, Call(metadata()),
                lambda _, version: Answer(200, {"version": version}, {}),
            )  # fmt: skip
            took.append(perf_counter() - began)
            require(int(str(done.body["version"])) > length, "the stream is that long")  # type: ignore[index]
            WRITER.flush()
        found = median(took) * 1e3
        self._took.setdefault((length, with_snapshots), []).append(found)
        return (found,)

    @cache  # noqa: B019 - lives as long as the run
    def _streams(self, length: int) -> Sequence[Any]:
        """So many streams of a length that commands do not make them much longer, folded once."""
        users = [new_id() for _ in range(max(1, 2_000 // length))]
        for user in users:
            for begin in range(0, length, AT_ONCE):
                events = [
                    _event(number) for number in range(begin + 1, min(begin + AT_ONCE, length) + 1)
                ]
                self._store.append(Stream("user", user), begin, events, metadata())
            WRITER.flush()
            handle(
                self._store, WITH_SNAPSHOTS, user, ChangeUser("Ada"), Call(metadata()),
                lambda _, __: Answer(200, {}, {}),
            )  # fmt: skip
        WRITER.flush()
        return users

    @cached_property
    def _store(self) -> Postgres:
        return Postgres(self._bed.store("snapshots", "service"), 2)


def _event(number: int) -> NewEvent:
    if number == 1:
        data: Any = {"name": "Ada", "email": "ada@example.com"}
        return NewEvent(new_id(), "USER_CREATED", 1, data)
    return NewEvent(new_id(), "USER_NAME_CHANGED", 1, {"name": f"Ada {number}"})
