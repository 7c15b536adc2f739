"""Checks for the parts that somebody adds to the repository."""

from collections.abc import Iterable, Sequence

from eventcore.model.event import Event
from eventcore.model.projection import Document
from eventcore.model.view import View, fold


def interleaved(
    view: View, events: Sequence[Event], choices: Iterable[bool]
) -> dict[str, Document]:
    """The documents of a view where the events of its stores arrive as `choices` says.

    They keep their order within a store. A view is right if each order comes to the same.
    """
    waiting = {store: [e for e in events if e.aggregate_type == store] for store in view.stores}
    arrived: list[Event] = []
    for choice in choices:
        left = [store for store, its in waiting.items() if its]
        if left:
            arrived.append(waiting[left[-1 if choice else 0]].pop(0))
    return fold(view, [*arrived, *(event for its in waiting.values() for event in its)])
