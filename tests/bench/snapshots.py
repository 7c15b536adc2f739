"""P34: a reservation of credit by a snapshot, beside one that folds all events of its stream."""

from collections.abc import Sequence
from dataclasses import replace
from decimal import Decimal
from functools import cache, cached_property, partial
from statistics import median
from time import perf_counter
from typing import Any
from uuid import UUID

from eventcore.command import Call, handle
from eventcore.ids import new_id
from eventcore.model.decider import Decider
from eventcore.snapshots import WRITER
from eventcore.store.port import Answer, Stream
from eventcore.store.postgres import Postgres
from tests.bench.bed import Bed, Size, metadata
from tests.bench.rows import Row, Values, require
from user.credit import DECIDER, Credit, Reserve
from user.events import CreditReleased, CreditReserved

LENGTHS = (10, 30, 100, 300, 1_000, 3_000, 10_000)

EVERY = DECIDER.snapshot_every

AT_ONCE = 500
"""Events of one transaction that makes a stream."""

PRICE = Decimal("19.99")

WITHOUT = replace(DECIDER, snapshot_every=0)


class Snapshots:
    """Measures reservations on streams of several lengths, in an event store of their own."""

    def __init__(self, bed: Bed, size: Size) -> None:
        self._bed = bed
        self._size = size
        self._took: dict[tuple[int, bool], list[float]] = {}

    def rows(self) -> Sequence[Row]:
        """The rows of this family."""
        lengths = [
            Row(
                "P34", f"reservation on {length:,} events, a snapshot every {EVERY}",
                partial(self._command, length, True), (" ms p50",),
                "without snapshots", partial(self._command, length, False),
            )
            for length in LENGTHS
        ]  # fmt: skip
        compared = Row(
            "P34", f"reservation on {LENGTHS[-1]:,} events, a snapshot every {EVERY}",
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
        """The median time of a reservation, which reads, folds and appends."""
        decider = DECIDER if with_snapshots else WITHOUT
        streams, took = self._streams(length), []
        for number in range(min(self._size.answered, max(10, 100_000 // length))):
            user, began = streams[number % len(streams)], perf_counter()
            reached = self._reserve(decider, user)
            took.append(perf_counter() - began)
            require(reached > length, "the stream is that long")
            WRITER.flush()
        found = median(took) * 1e3
        self._took.setdefault((length, with_snapshots), []).append(found)
        return (found,)

    @cache  # noqa: B019 - lives as long as the run
    def _streams(self, length: int) -> Sequence[UUID]:
        """So many streams of a length that commands do not make them much longer, folded once."""
        users = [new_id() for _ in range(max(1, 2_000 // length))]
        for user in users:
            orders = [str(new_id()) for _ in range(length // 2)]
            pairs = ((CreditReserved(id, PRICE), CreditReleased(id, PRICE)) for id in orders)
            events = [DECIDER.to_new_event(each, new_id()) for pair in pairs for each in pair]
            for begin in range(0, length, AT_ONCE):
                some = events[begin : begin + AT_ONCE]
                self._store.append(Stream("credit", user), begin, some, metadata())
            WRITER.flush()
            self._reserve(DECIDER, user)
        WRITER.flush()
        return users

    def _reserve(self, decider: Decider[Any, Credit, Any], user: UUID) -> int:
        """Reserves credit for a new order; returns the version that the stream reaches."""
        reached: list[int] = []

        def answer(_: Credit, version: int) -> Answer:
            reached.append(version)
            return Answer(200, {}, {})

        command = Reserve(str(new_id()), PRICE, None)
        handle(self._store, decider, user, command, Call(metadata()), answer)
        return reached[-1]

    @cached_property
    def _store(self) -> Postgres:
        return Postgres(self._bed.store("snapshots", "service"), 2)
