"""UUIDs of version 7, and the time in them."""

from datetime import UTC, datetime
from uuid import UUID

import uuid_utils.compat

_LAST = 253402300799_000  # milliseconds until the end of the year 9999, datetime's last


def new_id() -> UUID:
    """A UUID of version 7. It increases with time, so that indexes grow at one end."""
    return uuid_utils.compat.uuid7()


def made_at(made: UUID | None) -> datetime | None:
    """The time in a UUIDv7, to the millisecond; None if the id is not a valid UUIDv7 (RFC 9562)."""
    if made is None or made.version != 7 or (milliseconds := made.int >> 80) > _LAST:
        return None
    return datetime.fromtimestamp(milliseconds / 1000, UTC)
