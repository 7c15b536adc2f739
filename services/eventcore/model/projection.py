"""A projection: a named fold of events into the documents of a read model. Pure.

A document belongs to one stream. Its `_id` is the aggregate's id, its `version` and `eventId`
those of the last event folded into it; a step sets none of them.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from eventcore.errors import CannotApply, Misconfigured
from eventcore.model.catalogue import Catalogue, announcement
from eventcore.model.event import Event

Document: TypeAlias = dict[str, Any]
"""JSON values by field; a step knows their types."""

Step: TypeAlias = Callable[[Document, Event], Document]
"""A document and an event in, the fields that change out; before the first event it is empty."""


def version_of(document: Document | None) -> int:
    """The version of a document; 0 where there is none."""
    version = document["version"] if document else 0
    assert isinstance(version, int)
    return version


def event_id_of(document: Document | None) -> str:
    """The id of the last event in a document; "" where there is none, or it was not kept yet."""
    return str(document.get("eventId", "")) if document else ""


BOOKKEEPING = {"_id", "version", "eventId", "removed", "projectedAt", "positions"}
"""The fields of a document that no step may change."""


@dataclass(frozen=True)
class Projection:
    """One read model: its steps by event type, its queue and its collection.

    `steps` holds a step for each event type it folds, `ignores` the types it knows and
    passes over. Any other type, and a schema version above the one in `catalogue`, cannot be
    applied and parks its stream. A step for a type that the catalogue lacks raises Misconfigured.
    """

    name: str
    catalogue: Catalogue
    queue: str
    collection: str
    log_message: str
    steps: Mapping[str, Step]
    ignores: frozenset[str] = frozenset()
    indexes: tuple[tuple[str, ...], ...] = ()

    def __post_init__(self) -> None:
        if strange := sorted(self.steps.keys() - self.catalogue.types.keys()):
            raise Misconfigured(
                f"projection {self.name} has steps for {', '.join(strange)}, which the catalogue of"
                f" {self.aggregate_type} lacks: add the event's class, or delete the step"
            )

    @property
    def aggregate_type(self) -> str:
        """The aggregate type of its streams."""
        return self.catalogue.aggregate_type

    @property
    def announcement(self) -> str:
        """The event versions that it can take; an ignored type in any version."""
        takes = {name: self.catalogue.versions[name] for name in self.steps}
        return announcement(self.name, {**takes, **dict.fromkeys(self.ignores, "*")})

    @property
    def stores(self) -> tuple[str, ...]:
        """The aggregate types that it reads: its own."""
        return (self.aggregate_type,)

    @property
    def owners(self) -> tuple[str, ...]:
        """The services that own its events: one."""
        return (self.catalogue.owner,)

    def owner_of(self, _aggregate_type: str) -> str:
        """The service that owns the events of an aggregate type that it reads."""
        return self.catalogue.owner

    @property
    def parts(self) -> tuple[str, ...]:
        """One part: one checkpoint, one lease and one parked list."""
        return ("",)

    @property
    def binding(self) -> str:
        """The routing keys its queue is bound with: every event of its streams."""
        return f"{self.aggregate_type}.#"

    def apply(self, document: Document | None, event: Event) -> Document:
        """The document after `event`, which must be the next of its stream.

        Raises CannotApply for a type or schema version that is unknown, and whatever a step raises.
        """
        version = version_of(document)
        if event.version != version + 1:
            raise CannotApply(f"version {event.version} does not follow version {version}")
        document = document or {"_id": str(event.aggregate_id)}
        if event.event_type not in self.ignores:
            known = self._known(event)
            fields = self.steps[known.event_type](document, known)
            for name in BOOKKEEPING & fields.keys():
                if fields[name] != document.get(name):
                    raise CannotApply(
                        f"the step for {known.event_type} sets {name!r}, which is the projector's:"
                        " return other fields"
                    )
            document = {**document, **fields}
        return {**document, "version": event.version, "eventId": str(event.event_id)}

    def skip(self, document: Document | None, event: Event) -> Document:
        """The document after `event` is passed over: nothing of it but its version and id.

        Where it was the first one, the document is removed: it is kept, and not shown.
        """
        return {
            **(document or {"_id": str(event.aggregate_id), "removed": True}),
            "version": event.version,
            "eventId": str(event.event_id),
        }

    def fold(self, events: Iterable[Event], skipped: Collection[int] = ()) -> Document | None:
        """The document after the events of one stream, from its first on; None without any.

        The versions in `skipped` are passed over.
        """
        document = None
        for document in self.states(events, skipped):  # noqa: B007 - the last one is wanted
            pass
        return document

    def states(self, events: Iterable[Event], skipped: Collection[int] = ()) -> Iterator[Document]:
        """The document after each of these events, as `fold` folds them."""
        document = None
        for event in events:
            step = self.skip if event.version in skipped else self.apply
            document = step(document, event)
            yield document

    def _known(self, event: Event) -> Event:
        """The event in the schema version that the steps take; raises CannotApply."""
        if event.event_type not in self.steps:
            raise CannotApply(f"event type {event.event_type} is unknown to this code")
        return self.catalogue.upcast(event)
