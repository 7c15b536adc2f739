"""Applies the events of one store to the documents of a view, in the order of their positions."""

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from uuid import UUID

from eventcore.errors import FeedUnavailable
from eventcore.model.event import Event
from eventcore.model.projection import Document
from eventcore.model.view import View, positions_of
from eventcore.project.fold_result import FoldResult
from eventcore.project.folding import Folding
from eventcore.readmodel.records import Parked, Skip
from eventcore.store.feed import MANY, SWEEP_RANGE
from eventcore.store.port import Stream


@dataclass(eq=False)
class ViewApplier(Folding[View]):
    """Folds pages of the feed of `store` into a view.

    A document holds exactly those events of a store that concern it and are not above its position
    of that store. Proof: a page begins at a checkpoint, below which this holds of every document
    that is not parked, and has all events above it, in order. A write replaces the very document
    that was folded, since it names its version, which only grows; it adds the page's events above
    the document's position, all of them. The checkpoint moves after the writes. So a page that is
    written twice, or by two that both believe to have the lease, adds nothing the second time.

    An event that cannot be applied parks its document, for its store: the later events of the store
    are left out there, and the entry's `highest` is the position of the last one. It is noted
    before the checkpoint moves; so an entry whose `highest` is not above a checkpoint up to which
    the document was folded has left out nothing, and can be released.
    """

    def apply(self, events: Sequence[Event]) -> None:
        """Folds a page; parks what cannot be applied, and notes what is left out since.

        Raises Unavailable; then some documents may be written, and it can be called again.
        """
        last = {name_of(event): event.position for event in events}
        parked = self.parked(last)
        documents, unnamed = self.by_document(events, parked)
        parked |= self.parked(documents)
        last |= {key: concerned[-1].position for key, concerned in documents.items()}
        self.renew([(entry, last[id]) for id, entry in parked.items()])
        self._park(unnamed.values(), {})
        self._advance({key: documents[key] for key in documents.keys() - parked.keys()})

    def by_document(
        self, events: Sequence[Event], stopped: Collection[str] = ()
    ) -> tuple[dict[str, list[Event]], dict[str, FoldResult]]:
        """The events that concern each document; and the streams, by name, that are to be parked.

        The documents of an event cannot be named if it is of a newer schema, or wrong: then its
        stream is parked. The events of such streams are left out, and of those in `stopped`. Raises
        FeedUnavailable.
        """
        firsts = self._firsts(events)
        documents: defaultdict[str, list[Event]] = defaultdict(list)
        unnamed: dict[str, FoldResult] = {}
        for event in self._wanted(events):
            stream = name_of(event)
            if stream in unnamed:
                unnamed[stream].known = event.position
            elif stream not in stopped:
                first = firsts.get(event.aggregate_id)
                try:
                    known = self.projection.on_first(event, first) if first else event
                    for key in self.projection.keys(known):
                        documents[key].append(known)
                except Exception as error:  # noqa: BLE001 - whatever a function raises
                    result = FoldResult(stream, None, event.position, [], is_of_many=True)
                    result.error, result.failed = _reason(error, self.projection.name), event
                    unnamed[stream] = result
        return documents, unnamed

    def parked(self, ids: Iterable[str]) -> dict[str, Parked]:
        """The entries of the parked list among `ids`. Raises ReadModelUnavailable."""
        name = self.generation.name
        return self.readmodel.parked(name, set(ids)) if self.readmodel.count_parked(name) else {}

    def reached(self, ids: Collection[str]) -> Mapping[str, int]:
        found = self.readmodel.find(self.generation.collection, ids)
        return {id: positions_of(document).get(self.store, 0) for id, document in found.items()}

    def retry_by_page(self, entries: Mapping[str, Parked]) -> Iterator[object]:
        """Folds parked documents from the first position at which one of them stopped.

        A stream whose documents could not be named stays parked: the documents are past its events
        by now, so the view is to be rebuilt.
        """
        name = self.generation.name
        left = {id: each for id, each in entries.items() if not id.startswith(f"{self.store} ")}
        position = min((each.version for each in left.values()), default=1) - 1
        while left:
            until = self.readmodel.checkpoint(name).position
            if position >= until:
                self._release(dict.fromkeys(left, until))
                return
            events = self.feed.between(position, min(position + SWEEP_RANGE, until))
            documents, _ = self.by_document(events, self.parked(map(name_of, events)))
            mine = {key: documents[key] for key in documents.keys() & left.keys()}
            folded = self._advance(mine, entries=entries)
            left = {k: v for k, v in left.items() if k not in folded or not folded[k].error}
            position = min(position + SWEEP_RANGE, until)
            yield None

    def stopped_events(self, entry: Parked) -> list[Event]:
        return self.feed.between(entry.version - 1, entry.version)

    def _wanted(self, events: Iterable[Event]) -> list[Event]:
        """The events that the view reads, without those that are skipped."""
        return [
            e for e in events if self.projection.reads(e) and str(e.event_id) not in self._skips
        ]

    def _firsts(self, events: Sequence[Event]) -> Mapping[UUID, Event]:
        """The first events of the streams, for those events that are to have them."""
        known = {event.aggregate_id: event for event in events if event.version == 1}
        wanted = [
            e for e in self._wanted(events) if (on := self.projection.reads(e)) and on.with_first
        ]
        found = {e.aggregate_id: known[e.aggregate_id] for e in wanted if e.aggregate_id in known}
        left = {str(event.aggregate_id) for event in wanted} - {str(each) for each in found}
        while left:
            answer = self.feed.streams(dict.fromkeys(list(left)[:MANY], 0))
            for stream, itself in answer.items():
                if not itself:
                    raise FeedUnavailable(f"the log has no events of {stream} any more")
                found[itself[0].aggregate_id] = itself[0]
            left -= answer.keys()
        return found

    def _key_of(self, skip: Skip) -> str:
        return skip.event_id

    def _fold(
        self, id: str, document: Document | None, events: Sequence[Event], is_log: bool
    ) -> FoldResult:
        result = FoldResult(id, document, events[-1].position, [], is_of_many=True)
        after = positions_of(document).get(self.store, 0)
        for event in events:
            if event.position <= after:
                continue
            try:
                result.document = self.projection.apply(result.document, id, event)
            except Exception as error:  # noqa: BLE001 - whatever a step raises parks its document
                result.error, result.failed = f"{type(error).__name__}: {error}", event
                break
            result.applied.append(event)
        return result


def name_of(event: Event) -> str:
    """The name of a stream in the parked list of a view: the aggregate type and the id."""
    return str(Stream(event.aggregate_type, event.aggregate_id))


def _reason(error: Exception, view: str) -> str:
    return (
        f"{type(error).__name__}: {error}. Its documents cannot be named: once the code can,"
        f" python -m eventcore rebuild {view}"
    )
