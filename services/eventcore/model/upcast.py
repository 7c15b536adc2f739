"""Old events in today's shape: one step for each schema version an event type has left. Pure."""

from collections.abc import Callable, Mapping
from dataclasses import replace

from eventcore.errors import CannotApply, Misconfigured
from eventcore.model.event import Data, Event

Upcaster = Callable[[Data], Data]  # data of one schema version in, data of the next one out


class Upcasters:
    """The schema versions that code knows, and the steps that lead to them.

    `current` names each known event type with its schema version; `steps` holds, for a
    type at version 3, the steps from 1 and from 2: `("USER_CREATED", 1)`, `("USER_CREATED", 2)`.
    A missing or a surplus step raises Misconfigured, at start, not at the first old event.
    """

    def __init__(
        self, current: Mapping[str, int], steps: Mapping[tuple[str, int], Upcaster] | None = None
    ) -> None:
        self._current = dict(current)
        self._steps = dict(steps or {})
        needed = {(kind, at) for kind, now in current.items() for at in range(1, now)}
        if missing := sorted(needed - self._steps.keys()):
            raise Misconfigured(f"upcasters are missing from {_list(missing)}")
        if surplus := sorted(self._steps.keys() - needed):
            raise Misconfigured(f"upcasters lead nowhere from {_list(surplus)}")

    def __call__(self, event: Event) -> Event:
        """The event in the schema version that this code knows; raises CannotApply."""
        current = self._current.get(event.event_type)
        if current is None:
            raise CannotApply(f"event type {event.event_type} is unknown to this code")
        if event.schema_version > current:
            raise CannotApply(
                f"{event.event_type} has schema version {event.schema_version},"
                f" this code knows {current}"
            )
        if event.schema_version == current:
            return event
        data = event.data
        for version in range(event.schema_version, current):
            data = self._steps[event.event_type, version](data)
        return replace(event, data=data, schema_version=current)


def _list(steps: list[tuple[str, int]]) -> str:
    return ", ".join(f"{kind} version {version}" for kind, version in steps)
