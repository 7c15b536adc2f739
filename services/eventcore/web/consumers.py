"""Which event versions the running consumers of a service's events can take.

A projector announces them with every call to the feed, so a service that is ahead of its consumers
knows it within a sweep of its start, and needs no right beyond its own.
"""

import logging
import re
from collections.abc import Iterable

from eventcore.clock import SYSTEM_CLOCK, Clock
from eventcore.model.catalogue import Catalogue
from eventcore.observe.metrics import CONSUMERS_BEHIND

RUNNING = 60.0
"""Seconds after its last call in which a consumer is taken to be running."""

MANY = 1000
"""Announcements that are kept at most."""

log = logging.getLogger(__name__)


class Consumers:
    """The announcements of running consumers, compared with the events that a service appends."""

    def __init__(self, catalogues: Iterable[Catalogue], clock: Clock = SYSTEM_CLOCK) -> None:
        self._catalogues = {each.aggregate_type: each for each in catalogues}
        self._clock = clock
        self._seen: dict[tuple[str, str], float] = {}

    def note(self, announcement: str, aggregate_type: str) -> None:
        """Takes what a consumer of an aggregate type says of itself; logs once if it is behind.

        See `announcement`. A type that the service does not have is ignored.
        """
        seen = aggregate_type, announcement
        is_new = seen not in self._seen
        if aggregate_type in self._catalogues and (not is_new or len(self._seen) < MANY):
            self._seen[seen] = self._clock.monotonic()
            if is_new:
                self._warn(*seen)

    def update(self) -> None:
        """Sets the metric, and forgets the consumers that have stopped."""
        oldest = self._clock.monotonic() - RUNNING
        behind: dict[str, int] = {}
        for (aggregate_type, announcement), seen_at in list(self._seen.items()):
            name = _name_of(announcement)
            behind.setdefault(name, 0)
            if seen_at < oldest:
                del self._seen[aggregate_type, announcement]
            else:
                behind[name] = max(behind[name], len(self._behind(aggregate_type, announcement)))
        for name, types in behind.items():
            CONSUMERS_BEHIND.labels(name).set(types)

    def _warn(self, aggregate_type: str, announcement: str) -> None:
        if behind := self._behind(aggregate_type, announcement):
            name = _name_of(announcement)
            reason = (
                f"{name} does not know {', '.join(behind)}. It parks the streams of these events;"
                " nothing is lost. Upgrade it: a projection then releases them, a view is to be"
                " rebuilt. Upgrade consumers before producers."
            )
            log.warning("Consumer behind", extra={"projection": name, "reason": reason})
            CONSUMERS_BEHIND.labels(name).set(len(behind))

    def _behind(self, aggregate_type: str, announcement: str) -> list[str]:
        """The events that this service appends to such streams and the consumer does not know."""
        takes: dict[str, str] = dict(re.findall(r"([A-Z0-9_]+|\*)=(\d{1,9}|\*)", announcement))
        others = takes.get("*", "0")
        return [
            f"{event_type} v{version}"
            for event_type, version in self._catalogues[aggregate_type].versions.items()
            if (known := takes.get(event_type, others)) != "*" and int(known) < version
        ]


def _name_of(announcement: str) -> str:
    return announcement.partition(";")[0][:100]
