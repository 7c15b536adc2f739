"""What a projection refuses of its steps."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest

from eventcore.errors import CannotApply
from eventcore.model.event import Event
from eventcore.model.projection import Projection

ID = UUID(int=1)


def projection(fields: Mapping[str, Any]) -> Projection:
    return Projection(
        name="things",
        aggregate_type="thing",
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
