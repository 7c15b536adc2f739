"""The result of folding events into the document of one stream."""

import logging
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from eventcore.errors import CannotApply
from eventcore.model.event import Event, ids_of
from eventcore.model.projection import Document, event_id_of, version_of
from eventcore.readmodel.records import Parked, Write


class Later(Exception):
    """Nothing is wrong with an event, but it cannot be applied now."""


log = logging.getLogger(__name__)

IDS_IN_A_LINE = 5
"""Maximum ids of streams in one log line."""


def by_stream(events: Iterable[Event]) -> dict[str, list[Event]]:
    """Events by the stream that they belong to."""
    streams: defaultdict[str, list[Event]] = defaultdict(list)
    for event in events:
        streams[str(event.aggregate_id)].append(event)
    return streams


@dataclass(slots=True)
class FoldResult:
    """The result of folding events into the document of one stream.

    `known` is the last version of the events that follow the document without a gap; `after_gap`
    are the events after such a gap. `error` says why the event after the document, `failed`,
    cannot be applied. Of a document of many streams (`is_of_many`), `known` is a position.
    """

    stream: str
    before: Document | None
    known: int
    after_gap: list[Event]
    error: str = ""
    failed: Event | None = None
    applied: list[Event] = field(default_factory=list)
    document: Document | None = None
    is_of_many: bool = False
    is_delayed: bool = False
    """Whether the event after the document is left to a later sweep, see Later."""

    def __post_init__(self) -> None:
        self.document = self.before

    @property
    def version(self) -> int:
        """The version of the document now."""
        return version_of(self.document)

    @property
    def stopped_at(self) -> int:
        """The version, or the position, that cannot be applied, where there is an error."""
        if self.is_of_many:
            assert self.failed
            return self.failed.position
        return self.version + 1

    @property
    def write(self) -> Write:
        """The document in place of the one before."""
        assert self.document
        return Write(self.document, version_of(self.before))

    def refuse(self, error: CannotApply) -> None:
        """Takes back what was applied: the document cannot be stored."""
        self.document, self.error, self.failed = self.before, str(error), self.applied[0]
        self.applied.clear()


def is_listed(new: Parked, entry: Parked | None) -> bool:
    """Whether the parked list says so already."""
    return entry is not None and entry.version == new.version and entry.highest >= new.highest


def log_sample(streams: Iterable[str]) -> dict[str, object]:
    """How many streams, and the ids of a few."""
    ids = list(streams)
    return {"streams": len(ids), "ids": ",".join(ids[:IDS_IN_A_LINE])}


def continues(document: Document | None, events: Sequence[Event]) -> bool:
    """Whether these events and the document can be of one log, as far as their ids tell."""
    ids = {version_of(document): event_id_of(document)}
    for event in events:
        known = ids.get(event.version) or str(event.event_id)
        if known != str(event.event_id):
            return False
        ids[event.version] = known
    return all(
        event.previous is None or ids.get(event.version - 1, "") in ("", str(event.previous))
        for event in events
    )


def to_contradiction(
    projection: str,
    stream: str,
    document: Document | None,
    events: Sequence[Event],
    is_log: bool,
) -> FoldResult:
    """The result if ids contradict each other: the log itself decides.

    Delivered events are compared with the log, from the document's event on; events that are not in
    the log are ignored. If the document's event is not in the log, its stream is parked.
    """
    version = version_of(document)
    if not is_log:
        return FoldResult(stream, document, max(version - 1, 0), list(events))
    error = (
        f"the document is of event {event_id_of(document)}, version {version}, which the log"
        " does not have: the log was restored to an earlier state. Fold the stream again:"
        f" python -m eventcore rebuild {projection} --stream {stream}"
    )
    return FoldResult(stream, document, version + 1, [], error)


def log_parked(projection: str, parked: Sequence[FoldResult]) -> None:
    """Logs one line for all that are parked now, about the first; at DEBUG one for each."""
    many = log_sample(each.stream for each in parked) if len(parked) > 1 else {}
    for number, each in enumerate(parked):
        fields = {
            "projection": projection,
            "id": each.stream,
            "version": each.stopped_at,
            "error": each.error,
        }
        if each.failed:
            fields |= {"event_type": each.failed.event_type, **ids_of(each.failed)}
        if number:
            log.debug("Stream parked", extra=fields)
        else:
            log.error("Streams parked" if many else "Stream parked", extra={**fields, **many})
