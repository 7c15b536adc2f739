"""The sweeps of a projection: one, or one for each store that a view is folded from."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, TypeAlias

from eventcore.model.view import AnyProjection, View
from eventcore.project.applier import EventApplier
from eventcore.project.reacting import ReactingApplier
from eventcore.project.sweep import LeasedSweep, Sweep
from eventcore.project.view_applier import ViewApplier
from eventcore.project.view_projector import PartSweep
from eventcore.reactor import Reactor
from eventcore.readmodel.port import ReadModel
from eventcore.readmodel.records import generation_of
from eventcore.store.feed import Feed

Feeds: TypeAlias = Feed | Mapping[str, Feed]
"""The feed of a projection; the feeds of a view, by store."""


def open_sweeps(
    projection: AnyProjection,
    readmodel: ReadModel,
    feeds: Feeds,
    holder: str,
    lease_seconds: float,
    fixed: int | None = None,
    reacting: ReactingApplier | None = None,
) -> list[LeasedSweep[Any]]:
    """The sweeps of the generation that serves, or of the one with the number `fixed`.

    A reactor's sweep reacts as the applier `reacting` does.
    """
    if isinstance(projection, View):
        assert isinstance(feeds, Mapping)
        return [
            PartSweep(part, holder, lease_seconds)
            for part in open_parts(projection, readmodel, feeds, fixed)
        ]
    assert not isinstance(feeds, Mapping)
    generation = generation_of(projection, fixed) if fixed else None
    if isinstance(projection, Reactor):
        assert reacting, f"{projection.name} needs an applier that reacts"
        return [Sweep(replace(reacting, fixed=generation), holder, lease_seconds)]
    applier = EventApplier(projection, readmodel, feeds, fixed=generation)
    return [Sweep(applier, holder, lease_seconds)]


def open_parts(
    view: View, readmodel: ReadModel, feeds: Mapping[str, Feed], fixed: int | None = None
) -> list[ViewApplier]:
    """The appliers of a view, one for each store."""
    return [
        ViewApplier(
            view,
            readmodel,
            feeds[store],
            fixed=generation_of(view, fixed, store) if fixed else None,
            store=store,
        )
        for store in view.stores
    ]
