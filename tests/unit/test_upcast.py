"""Old events come out in today's shape, and a broken chain does not start."""

from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import ClassVar
from uuid import UUID

import pytest

from eventcore.errors import CannotApply, Misconfigured
from eventcore.model.decider import Decider
from eventcore.model.event import Event
from eventcore.model.upcast import Upcasters

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
STEPS = {
    ("PARCEL_SENT", 1): lambda data: {"name": data["to"].split(", ")[0], "city": "Paris"},
    ("PARCEL_SENT", 2): lambda data: {**data, "weight": None},
}


def test_an_event_of_version_1_goes_through_every_step() -> None:
    new = Upcasters({"PARCEL_SENT": 3}, STEPS)(EVENT)
    assert new.data == {"name": "Ada", "city": "Paris", "weight": None}
    assert new.schema_version == 3


def test_a_current_event_passes_as_it_is() -> None:
    current = replace(EVENT, schema_version=3, data={"name": "Ada"})
    assert Upcasters({"PARCEL_SENT": 3}, STEPS)(current) is current


def test_a_chain_with_a_hole_does_not_start() -> None:
    with pytest.raises(Misconfigured, match="missing from PARCEL_SENT version 2"):
        Upcasters({"PARCEL_SENT": 3}, {("PARCEL_SENT", 1): dict})


def test_a_step_that_leads_nowhere_does_not_start() -> None:
    with pytest.raises(Misconfigured, match="lead nowhere from PARCEL_SENT version 3"):
        Upcasters({"PARCEL_SENT": 3}, {**STEPS, ("PARCEL_SENT", 3): dict})


@pytest.mark.parametrize(
    "event", [replace(EVENT, event_type="PARCEL_LOST"), replace(EVENT, schema_version=4)]
)
def test_what_this_code_does_not_know_cannot_be_applied(event: Event) -> None:
    with pytest.raises(CannotApply):
        Upcasters({"PARCEL_SENT": 3}, STEPS)(event)


@dataclass(frozen=True)
class ParcelSent:
    schema_version: ClassVar[int] = 2
    name: str


def test_a_decider_folds_old_events_and_checks_its_chain_at_start() -> None:
    def decider(steps: object) -> Decider[None, str, ParcelSent]:
        return Decider(
            "parcel", ParcelSent, "", lambda *_: [], lambda _, sent: sent.name, steps  # type: ignore[arg-type]
        )  # fmt: skip

    steps = {("PARCEL_SENT", 1): lambda data: {"name": data["to"]}}
    assert decider(steps).fold("", [EVENT]) == "Ada, Paris"
    with pytest.raises(Misconfigured):
        decider({})
