"""The tree of everything that can go wrong, with a public code for each.

Refused: the command cannot be done. Unavailable: a server cannot be reached now; nothing was lost.
The others concern one message, one event, or settings. `web/problems.py` has the table of their
HTTP status codes. Two more files answer with a status of their own: `web/overload.py`, before the
application is called, and the gateway's `forward.py`.
"""

from collections.abc import Mapping
from uuid import UUID


class Error(Exception):
    """The root: `str(error)` is one sentence for people, `code` one word for programs."""

    code = "error"

    def __init_subclass__(cls, code: str = "") -> None:
        cls.code = code or cls.code


class Refused(Error, code="refused"):
    """A command that cannot be done. Nothing was written."""


class NotFound(Refused, code="not-found"):
    """There is no such stream, or none at the time that was asked for."""


class Invalid(Refused, code="invalid"):
    """The input breaks a rule; `title` names the rule in two or three words, and so the code.

    `fields` has the reason for each field that breaks it, by the field's path.
    """

    title = "Invalid request"

    def __init__(
        self, detail: str, title: str = "", fields: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(detail)
        self.fields = fields or {}
        if title:
            self.title = title
            self.code = title.lower().replace(" ", "-")


class Conflict(Refused, code="conflict"):
    """Another command changed the stream first.

    `versions` are the current ones of an append to several streams, by their places from 0.
    """

    def __init__(self, detail: str, versions: Mapping[int, int] | None = None) -> None:
        super().__init__(detail)
        self.versions = versions or {}


class StaleVersion(Refused, code="stale-version"):
    """The caller's `If-Match` names a version that is not the current one.

    `tag` is that of the current version, `token` the consistency token with which it is read.
    """

    def __init__(self, detail: str, tag: str, token: str) -> None:
        super().__init__(detail)
        self.tag = tag
        self.token = token


class InvalidToken(Refused, code="invalid-token"):
    """A `Consistency-Token` that no answer has had."""


class OtherLog(Refused, code="other-log"):
    """A `Consistency-Token` of another epoch: the log was put back since it was made."""


class KeyReused(Refused, code="key-reused"):
    """An `Idempotency-Key` that stands for another request."""


class Unavailable(Error, code="away"):
    """A server that cannot be reached now. Retry after `retry_after` seconds.

    `unreachable`: there was no answer; if false, the server answered that it cannot do it now.
    `outcome_known`: the call had no effect; if false, it was sent and its answer was lost.
    """

    retry_after = 2
    unreachable = True
    outcome_known = True


class StoreUnavailable(Unavailable, code="store-away"):
    """PostgreSQL cannot be reached, or does not answer within its time limit."""


class StoreSlow(StoreUnavailable):
    """PostgreSQL answered that it could not do it within its time limit, or has no room."""

    unreachable = False


class OutcomeUnknown(StoreUnavailable, code="outcome-unknown"):
    """The answer to an append was lost: the command may be carried out already, or later.

    Without an Idempotency-Key a repeat may do it twice. `aggregate_id` names the stream to look at.
    """

    outcome_known = False

    def __init__(self, detail: str, aggregate_id: UUID) -> None:
        super().__init__(detail)
        self.aggregate_id = aggregate_id


class SequenceBehind(StoreUnavailable):
    """The store would draw positions that its log has already: it was partly restored."""

    unreachable = False


class ReadModelUnavailable(Unavailable, code="read-model-away"):
    """MongoDB cannot be reached, or does not answer within its time limit."""


class BrokerUnavailable(Unavailable, code="broker-away"):
    """RabbitMQ cannot be reached, or the connection to it was lost."""


class FeedUnavailable(Unavailable, code="feed-away"):
    """The service that owns a feed cannot be reached."""


class StoreRestored(Unavailable, code="store-restored"):
    """The log lacks an event that its reader has seen: it is another log, or was restored."""

    unreachable = False


class NotYet(Unavailable, code="not-yet"):
    """Data that another service writes has not arrived here yet."""

    unreachable = False


class Overloaded(Unavailable, code="busy"):
    """So many callers wait already that one more would not be served in time."""

    retry_after = 1
    unreachable = False


class NotAnEvent(Error, code="not-an-event"):
    """Bytes that are not an event: no JSON, or JSON of another shape."""


class CannotApply(Error, code="cannot-apply"):
    """An event that is unknown to a projection, or newer than its code."""


class Misconfigured(Error, code="misconfigured"):
    """Settings or code with which a process must not start."""
