"""A view: a projection whose documents are each folded from many streams, of one store or several.

For each event type that it reads, a function names the documents that an event concerns, and a
step makes the fields that change. Pure.

A document has the `positions` of the last event of each store that was applied to it, and counts
in `version` how many were. Events of one store are applied in the order of their positions. Two
stores have no common order, so steps must come to the same document in whatever order the stores'
events arrive: a step keeps what it needs, and expects nothing of another store to be there.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TypeAlias

from eventcore.errors import CannotApply, Misconfigured
from eventcore.model.catalogue import Catalogue, announcement
from eventcore.model.event import Event
from eventcore.model.projection import BOOKKEEPING, Document, Projection, Step, version_of


@dataclass(frozen=True)
class On:
    """The meaning of one event type to a view: the ids of the documents, and the step for each.

    `with_first`: both get the event with the data of its stream's first event under its own.
    """

    keys: Callable[[Event], Iterable[str]]
    step: Step
    with_first: bool = False


@dataclass(frozen=True)
class View:
    """A read model over many streams: what it does on each event type of each store.

    `catalogues` has the events of its stores. It reads no other event type than those in `on`; one
    that its catalogue lacks raises Misconfigured. An event that it cannot apply parks the document;
    one whose documents cannot be named parks its stream.
    """

    name: str
    catalogues: tuple[Catalogue, ...]
    queue: str
    collection: str
    log_message: str
    on: Mapping[str, Mapping[str, On]]
    indexes: tuple[tuple[str, ...], ...] = ()

    binding = "#"
    """The routing keys of its queue: every event, as a hint that there is something to fold."""

    def __post_init__(self) -> None:
        for store, entries in self.on.items():
            known = self._catalogues[store].types if store in self._catalogues else {}
            if strange := sorted(entries.keys() - known):
                raise Misconfigured(
                    f"view {self.name} reads {', '.join(strange)}, which no catalogue of {store}"
                    " has: add the catalogue or the event's class, or delete the entry"
                )

    @property
    def stores(self) -> tuple[str, ...]:
        """The aggregate types that it reads: each counts as a store of its own."""
        return tuple(self.on)

    @property
    def owners(self) -> tuple[str, ...]:
        """The services that own its events."""
        return tuple(dict.fromkeys(map(self.owner_of, self.on)))

    def owner_of(self, aggregate_type: str) -> str:
        """The service that owns the events of an aggregate type that it reads."""
        return self._catalogues[aggregate_type].owner

    @property
    def parts(self) -> tuple[str, ...]:
        """One part for each store: its own checkpoint, lease and parked list."""
        return self.stores

    @property
    def announcements(self) -> Mapping[str, str]:
        """The event versions that it can take, by store; of a type that it does not read, any."""
        return {
            store: announcement(
                f"{self.name}/{store}",
                {"*": "*", **{each: self._catalogues[store].versions[each] for each in read}},
            )
            for store, read in self.on.items()
        }

    def reads(self, event: Event) -> On | None:
        """Its entry for the type of an event; None: the event means nothing to it."""
        return self.on[event.aggregate_type].get(event.event_type)

    def on_first(self, event: Event, first: Event) -> Event:
        """The event in today's schema, with the data of its stream's first event under its own.

        Raises CannotApply.
        """
        known = self._upcast(event)
        begun = self._upcast(first) if self.reads(first) else first
        return replace(known, data={**begun.data, **known.data})

    def keys(self, event: Event) -> Sequence[str]:
        """The ids of the documents that an event concerns; raises whatever the function raises."""
        on = self.reads(event)
        return tuple(dict.fromkeys(on.keys(self._upcast(event)))) if on else ()

    def apply(self, document: Document | None, key: str, event: Event) -> Document:
        """The document after an event of its; raises CannotApply, and whatever the step raises."""
        on, store = self.reads(event), event.aggregate_type
        assert on
        positions = dict(positions_of(document))
        if event.position <= positions.get(store, 0):
            raise CannotApply(f"position {event.position} of {store} is not above the document's")
        version, document = version_of(document), document or {"_id": key}
        fields = on.step(document, self._upcast(event))
        for name in BOOKKEEPING & fields.keys():
            if fields[name] != document.get(name):
                raise CannotApply(f"the step for {event.event_type} sets {name!r}")
        positions = {**positions, store: event.position}
        return {**document, **fields, "version": version + 1, "positions": positions}

    @cached_property
    def _catalogues(self) -> Mapping[str, Catalogue]:
        return {each.aggregate_type: each for each in self.catalogues}

    def _upcast(self, event: Event) -> Event:
        return self._catalogues[event.aggregate_type].upcast(event)


AnyProjection: TypeAlias = Projection | View
"""A projection of either kind."""


def positions_of(document: Document | None) -> Mapping[str, int]:
    """The position of the last event of each store in a view's document."""
    found = document.get("positions", {}) if document else {}
    assert isinstance(found, Mapping)
    return {str(store): position for store, position in found.items() if isinstance(position, int)}


def fold(view: View, events: Iterable[Event], skipped: Collection[str] = ()) -> dict[str, Document]:
    """All documents after these events, which are in order within each store.

    Events with an id in `skipped` are passed over.
    """
    documents: dict[str, Document] = {}
    firsts: dict[str, Event] = {}
    for event in events:
        first = firsts.setdefault(str(event.aggregate_id), event)
        on = view.reads(event)
        if on and str(event.event_id) not in skipped:
            known = view.on_first(event, first) if on.with_first else event
            for key in view.keys(known):
                documents[key] = view.apply(documents.get(key), key, known)
    return documents
