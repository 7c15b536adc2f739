"""Old events come out in today's shape, and a broken chain does not start."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import ClassVar
from uuid import UUID

import pytest

from eventcore.errors import CannotApply, Misconfigured
from eventcore.model.catalogue import Catalogue, Upcaster
from eventcore.model.decider import Decider
from eventcore.model.event import Event
from eventcore.model.projection import Projection

EVENT = Event(
    position=1,
    event_id=UUID(int=1),
    aggregate_type="parcel",
    aggregate_id=UUID(int=2),
    version=1,
    event_type="PARCEL_SENT",
    schema_version=1,
    data={"to": "Ada, Paris"},
    metadata={},
    recorded_at=datetime(2026, 1, 16, tzinfo=UTC),
)


@dataclass(frozen=True)
class ParcelSent:
    schema_version: ClassVar[int] = 3
    name: str
    city: str = ""
    weight: int | None = None


STEPS: Mapping[tuple[str, int], Upcaster] = {
    ("PARCEL_SENT", 1): lambda data: {"name": str(data["to"]).split(", ")[0], "city": "Paris"},
    ("PARCEL_SENT", 2): lambda data: {**data, "weight": None},
}
CATALOGUE = Catalogue("parcel", ParcelSent, STEPS)


def test_an_event_of_version_1_goes_through_every_step() -> None:
    new = CATALOGUE.upcast(EVENT)
    assert new.data == {"name": "Ada", "city": "Paris", "weight": None}
    assert new.schema_version == 3


def test_a_current_event_passes_as_it_is() -> None:
    current = replace(EVENT, schema_version=3, data={"name": "Ada"})
    assert CATALOGUE.upcast(current) is current


def test_a_chain_with_a_hole_does_not_start() -> None:
    with pytest.raises(Misconfigured, match="missing from PARCEL_SENT version 2"):
        Catalogue("parcel", ParcelSent, {("PARCEL_SENT", 1): dict})


def test_a_step_that_leads_nowhere_does_not_start() -> None:
    with pytest.raises(Misconfigured, match="lead nowhere from PARCEL_SENT version 3"):
        Catalogue("parcel", ParcelSent, {**STEPS, ("PARCEL_SENT", 3): dict})


@pytest.mark.parametrize(
    "event", [replace(EVENT, event_type="PARCEL_LOST"), replace(EVENT, schema_version=4)]
)
def test_what_this_code_does_not_know_cannot_be_applied(event: Event) -> None:
    with pytest.raises(CannotApply):
        CATALOGUE.upcast(event)


def test_a_decider_folds_old_events() -> None:
    decider: Decider[None, str, ParcelSent] = Decider(
        CATALOGUE, "", lambda *_: [], lambda _, sent: sent.name
    )
    assert decider.fold("", [EVENT]) == "Ada"


def test_a_projection_takes_its_versions_from_the_catalogue() -> None:
    parcels = Projection(
        name="parcels",
        catalogue=CATALOGUE,
        queue="parcels",
        collection="parcels",
        log_message="Updating",
        steps={"PARCEL_SENT": lambda _, event: {"city": event.data["city"]}},
        ignores=frozenset({"PARCEL_LOST"}),
    )
    document = parcels.fold([EVENT])
    assert document is not None
    assert document["city"] == "Paris"
    assert parcels.announcement == "parcels; PARCEL_LOST=*; PARCEL_SENT=3"
    with pytest.raises(Misconfigured, match="steps for PARCEL_FOUND, which the catalogue of"):
        replace(parcels, steps={"PARCEL_FOUND": lambda *_: {}})
