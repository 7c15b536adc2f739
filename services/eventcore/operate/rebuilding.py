"""Rebuild: folds a projection again from position 0, beside the generation that serves.

    fold      the feed, page by page, into the documents of a new generation
    catch up  by the ordinary sweep, to where the log was when that began
    compare   with the generation that serves: counts, versions, digests
    switch    in one step; queries have the old documents until then, and the new ones after it

The old generation is kept for a rollback: it catches up before it serves again. A
projector that has not noticed the switch yet writes to the old one for a moment; the sweep of
the new one brings what it lacks. A reactor reacts to each event again, so that no step is lost: its
commands change nothing where they were carried out before.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from time import monotonic
from typing import TypeVar

from eventcore.errors import CannotApply, Conflict, NotFound, Refused, Unavailable
from eventcore.failpoints import failpoint
from eventcore.model.event import Event, Mark
from eventcore.model.projection import Document, Projection, version_of
from eventcore.model.view import AnyProjection, View
from eventcore.operate.parity import Comparison, Given, Parity, alike
from eventcore.project.applier import EventApplier
from eventcore.project.fold_result import by_stream
from eventcore.project.parts import Feeds, open_sweeps
from eventcore.project.reacting import ReactingApplier
from eventcore.readmodel.port import ReadModel
from eventcore.readmodel.records import (
    Generation,
    Write,
    generation_of,
    parts_of,
    skipped_versions,
)
from eventcore.retry import retry
from eventcore.store.feed import SWEEP_RANGE, Feed

Wait = Callable[[float], object]

Say = Callable[[str], None]

Tell = Callable[[int, int], None]

Fold = Callable[[Sequence[Event], Collection[int]], Document | None]

Result = TypeVar("Result")

PATIENCE = 60.0
"""Seconds that a server may be away before a rebuild gives up."""

_TRIES = 10
"""Tries to replace a document that keeps changing."""

_SWITCH_SWEEPS = 15
"""Sweeps after a switch, one each 0.2 s: longer than processes cache which generation serves."""


@dataclass(eq=False)
class Rebuild:
    """A generation that is to serve. Every method may raise Unavailable, after PATIENCE."""

    projection: AnyProjection
    readmodel: ReadModel
    feeds: Feeds
    generation: Generation
    holder: str
    wait: Wait
    say: Say = field(default=lambda _: None)
    lease_seconds: float = 30.0
    reacting: ReactingApplier | None = None
    """The applier of a reactor."""

    def __post_init__(self) -> None:
        given = self.projection, self.readmodel, self.feeds, self.holder, self.lease_seconds
        self._sweeps = open_sweeps(*given, fixed=self.generation.number, reacting=self.reacting)
        self._parts = parts_of(self.projection, self.generation.number)

    def fold(self, tell: Tell) -> None:
        """Folds the log as it is now; `tell` hears the position reached and the last one.

        What cannot be applied is parked, as everywhere. Holds one page in memory.
        """
        if isinstance(self.projection, View):  # its sweeps apply all that they read
            self.catch_up(tell)
            return
        applier = self._sweeps[0].applier
        self._retrying(applier.follow)
        into, indexes = self.generation.collection, self.projection.indexes
        self._retrying(self.readmodel.prepare, into, indexes)
        position, until = 0, self._retrying(applier.feed.progress).settled
        renew_at, reached = monotonic(), Mark()
        while position < until:
            end = min(position + SWEEP_RANGE, until)
            last = self._retrying(self._page, applier, position, end)
            position, reached = end, last or reached
            if monotonic() >= renew_at:
                self._retrying(self._move_checkpoint, reached)
                renew_at = monotonic() + self.lease_seconds / 10
            tell(position, until)
        self._retrying(self._move_checkpoint, reached)

    def catch_up(self, tell: Tell = lambda _, __: None) -> None:
        """Sweeps until the generation is where each log was when this began."""
        for sweep in self._sweeps:
            until = self._retrying(sweep.applier.feed.progress).settled
            while (position := self._retrying(sweep.checkpoint).position) < until:
                tell(position, until)
                if not self._retrying(sweep.run):
                    self.wait(0.05)

    def compare(self) -> Parity:
        """Compares all documents with those of the generation that serves, while both go on."""
        generations, feed = (self._serving(), self.generation), self._sweeps[0].applier.feed
        given = self.projection, self.readmodel, *generations, feed
        return Comparison(*given, self.catch_up, self._retrying, self.wait).run()

    def switch(self) -> None:
        """Lets this generation serve; sweeps it until every process has noticed.

        The one that was kept before is dropped. Raises Conflict if another rebuild was faster.
        """
        name, number = self.projection.name, self.generation.number
        known = self._retrying(self.readmodel.generations, name)
        if not self.readmodel.switch(name, known.serving, number):
            raise Conflict(f"another rebuild was faster: another generation of {name} serves now")
        failpoint("rebuild:switched")
        if known.previous not in (0, number):
            for part in parts_of(self.projection, known.previous):
                self._retrying(self.readmodel.drop, part)
        for _, sweep in product(range(_SWITCH_SWEEPS), self._sweeps):
            self._retrying(sweep.run)
            self.wait(0.2)
        for sweep in self._sweeps:
            sweep.release()

    def discard(self) -> None:
        """Drops this generation, unless it serves: it may have begun to before something failed."""
        if self._serving() != self.generation:
            for part in self._parts:
                self.readmodel.drop(part)

    def _page(self, applier: EventApplier, after: int, until: int) -> Mark | None:
        """Folds a page; its last event."""
        events = applier.feed.between(after, until)
        applier.apply(by_stream(events))
        return events[-1].mark if events else None

    def _move_checkpoint(self, mark: Mark) -> None:
        """Moves the checkpoint, and keeps the lease."""
        name = self.generation.name
        lease = self.readmodel.take_lease(name, self.holder, self.lease_seconds)
        if lease is None:
            raise Conflict(f"somebody else has begun to fold {name}")
        self.readmodel.move_checkpoint(lease, mark, None)

    def _serving(self) -> Generation:
        known = self._retrying(self.readmodel.generations, self.projection.name)
        return generation_of(self.projection, known.serving)

    def _retrying(
        self, act: Callable[Given, Result], *given: Given.args, **named: Given.kwargs
    ) -> Result:
        return retry(partial(act, *given, **named), PATIENCE, self.wait, self.say)


def begin(
    projection: AnyProjection, readmodel: ReadModel, feeds: Feeds, holder: str, wait: Wait,
    say: Say = lambda _: None, reacting: ReactingApplier | None = None,
) -> Rebuild:  # fmt: skip
    """A new generation, with nothing in it; what a rebuild that was killed left is dropped.

    `say` gets each new reason for which the rebuild waits. Raises Conflict while another one is
    under way, and Unavailable.
    """
    known = readmodel.generations(projection.name)
    for number in range(1, known.newest + 1):
        if number not in (known.serving, known.previous):
            left = parts_of(projection, number)
            if readmodel.take_lease(left[0].name, holder, 5) is None:
                raise Conflict(f"{projection.name} is being rebuilt already, as {left[0].name}")
            for part in left:
                readmodel.drop(part)
    generation = generation_of(projection, readmodel.begin_generation(projection.name))
    return Rebuild(projection, readmodel, feeds, generation, holder, wait, say, reacting=reacting)


def rollback(
    projection: AnyProjection, readmodel: ReadModel, feeds: Feeds, holder: str, wait: Wait,
    say: Say = lambda _: None, reacting: ReactingApplier | None = None,
) -> Rebuild:  # fmt: skip
    """The generation that served before. Raises NotFound where none is kept, and Unavailable."""
    number = readmodel.generations(projection.name).previous
    if not number:
        raise NotFound(f"no generation of {projection.name} is kept beside the one that serves")
    generation = generation_of(projection, number)
    return Rebuild(projection, readmodel, feeds, generation, holder, wait, say, reacting=reacting)


def rebuild_stream(
    projection: Projection, readmodel: ReadModel, feed: Feed, generation: Generation, stream: str,
    fold: Fold | None = None,
) -> bool:  # fmt: skip
    """Folds one stream again and replaces its document; False: it was right already.

    `fold` takes the events and the versions to pass over; by default it is the projection's.
    Raises NotFound if the log has no such stream, Refused if it cannot be folded, and Unavailable.
    """
    events = feed.stream(stream, after=0)
    if not events:
        raise NotFound(f"the log has no {projection.aggregate_type} {stream}")
    try:
        skips = readmodel.skips(projection.name)
        folded = (fold or projection.fold)(events, skipped_versions(skips, stream))
    except Unavailable:
        raise
    except Exception as error:
        raise Refused(f"{stream} cannot be folded: {type(error).__name__}: {error}") from error
    assert folded
    for _ in range(_TRIES):
        known = readmodel.find(generation.collection, [stream]).get(stream)
        is_right = alike(known, folded)
        if is_right or readmodel.write(generation.collection, [Write(folded, version_of(known))]):
            readmodel.release(generation.name, {stream: version_of(folded)})
            return not is_right
    raise CannotApply(f"the document of {stream} kept changing; try again")
