"""PostgreSQL's errors, by SQLSTATE, as ours."""

from collections.abc import Iterator
from contextlib import contextmanager

import psycopg2
from sqlalchemy.exc import DBAPIError

from eventcore import jsontext
from eventcore.errors import (
    Conflict,
    KeyReused,
    Misconfigured,
    SequenceBehind,
    StoreRestored,
    StoreSlow,
    StoreUnavailable,
)

READ_ONLY = "25006"

CURED_BY_A_NEW_CONNECTION = {READ_ONLY, "25P03", "57P01", "57P02", "57P03", "57P05"}

_SLOW = StoreSlow, "PostgreSQL did not answer in time: {}"

_FORBIDDEN = StoreUnavailable, "PostgreSQL does not let us: {}"

_UNREACHABLE = StoreUnavailable, "PostgreSQL cannot be reached: {}"

_ERRORS: dict[str, tuple[type[Exception], str]] = {
    "ES001": (Conflict, "{}"),
    "ES002": (KeyReused, "this Idempotency-Key was used for another request"),
    "ES004": (SequenceBehind, "{}"),
    "ES005": (StoreRestored, "{}: it was restored to an earlier state, or is another log"),
    READ_ONLY: (StoreUnavailable, "PostgreSQL accepts no writes: {}"),
    **dict.fromkeys(("57014", "55P03", "53300", "40001", "40P01"), _SLOW),
    **dict.fromkeys(("42501", "42883", "28P01", "28000", "3D000"), _FORBIDDEN),
    **dict.fromkeys(("08", "25", "53", "57", "58"), _UNREACHABLE),
}
"""Errors and their texts by SQLSTATE, or by its class. ES003 (a change of an event) is missing on
purpose: no statement of ours changes an event, so it is Misconfigured."""


@contextmanager
def translated() -> Iterator[None]:
    """Turns the driver's errors into ours, by SQLSTATE."""
    try:
        yield
    except DBAPIError as error:
        raise of_driver(error.orig) from error
    except psycopg2.Error as error:
        raise of_driver(error) from error


def of_driver(error: BaseException | None) -> Exception:
    """The driver's error as one of ours."""
    if not isinstance(error, psycopg2.Error):
        return to_error(None, str(error))
    return to_error(error.pgcode, str(error), error.diag.message_detail)


def to_error(sqlstate: str | None, text: str, detail: str | None = None) -> Exception:
    """The error of a SQLSTATE; the detail of a Conflict has its versions."""
    reason = next(iter(text.strip().splitlines()), "no reason given")
    state = sqlstate or "08"
    refused = Misconfigured, f"PostgreSQL refused a statement of ours ({state}): {{}}"
    kind, says = _ERRORS.get(state) or _ERRORS.get(state[:2], refused)
    if kind is Conflict and detail:
        return Conflict(reason, {int(place): at for place, at in jsontext.parse(detail).items()})
    return kind(says.format(reason))
