"""Ids of version 7, and the time that they tell."""

from datetime import UTC, datetime
from uuid import UUID

import uuid_utils.compat

_LAST = 253402300799_000  # milliseconds until the end of the year 9999, datetime's last


def new_id() -> UUID:
    """A UUID of version 7: they grow with time, so indexes grow at one end."""
    return uuid_utils.compat.uuid7()


def made_at(made: UUID | None) -> datetime | None:
    """When `new_id` made an id, to the millisecond (RFC 9562, 5.7); None: it did not make it."""
    if made is None or made.version != 7 or (milliseconds := made.int >> 80) > _LAST:
        return None
    return datetime.fromtimestamp(milliseconds / 1000, UTC)
