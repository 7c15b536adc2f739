"""Each projection covers the events of its streams; a step changes no field of the projector."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest

from eventcore.errors import CannotApply
from eventcore.model.catalogue import Catalogue
from eventcore.model.event import Event
from eventcore.model.projection import Projection
from local.services import SERVICES

ID = UUID(int=1)

PROJECTIONS = [
    each
    for service in SERVICES.values()
    for each in service.projections
    if isinstance(each, Projection)  # a view reads the event types that it names, and no other
]


@pytest.mark.parametrize("projection", PROJECTIONS, ids=lambda each: each.name)
def test_a_projection_has_a_step_or_ignores_each_event_of_its_streams(
    projection: Projection,
) -> None:
    known, covered = (
        {*projection.catalogue.types},
        {*projection.steps, *projection.ignores},
    )
    missing, strange = sorted(known - covered), sorted(covered - known)
    assert not missing, (
        f"{projection.name} has no step for {', '.join(missing)}, which parks its streams:"
        " add the type to `steps` or to `ignores`"
    )
    assert not strange, (
        f"{projection.name} names {', '.join(strange)}, but an event of"
        f" {projection.aggregate_type} is one of {', '.join(sorted(known))}"
    )


@dataclass(frozen=True)
class ThingMade:
    """A thing was made."""


def projection(fields: Mapping[str, Any]) -> Projection:
    return Projection(
        name="things",
        catalogue=Catalogue("thing", ThingMade),
        queue="things",
        collection="things",
        log_message="Updating",
        steps={"THING_MADE": lambda document, _event: {**document, **fields}},
    )


def made(version: int) -> Event:
    now = datetime.now(UTC)
    return Event(1, UUID(int=version), "thing", ID, version, "THING_MADE", 1, {}, {}, now)


@pytest.mark.parametrize("name", ["_id", "version", "eventId", "removed", "projectedAt"])
def test_a_step_that_changes_a_field_of_the_projector_is_refused(name: str) -> None:
    with pytest.raises(CannotApply, match=f"THING_MADE sets '{name}'"):
        projection({name: "mine"}).apply(None, made(1))


def test_a_step_may_return_the_document_that_it_was_given() -> None:
    things = projection({"name": "Ada"})
    first = things.apply(None, made(1))
    second = things.apply(first, made(2))
    assert second == {
        "_id": str(ID),
        "name": "Ada",
        "version": 2,
        "eventId": str(UUID(int=2)),
    }
