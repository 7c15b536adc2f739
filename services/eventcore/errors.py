"""The tree of everything that can go wrong, with a public code for each.

Refused: the command cannot be done. Away: a server cannot be reached now; nothing was lost. The
others speak of one message, one event, or of settings. `web.py` turns them into HTTP, in one
table; nothing else knows status codes.
"""

from uuid import UUID


class Error(Exception):
    """The root: `str(error)` is one sentence for people, `code` one word for programs."""

    code = "error"


class Refused(Error):
    """A command that cannot be done. Nothing was written."""

    code = "refused"


class NotFound(Refused):
    """There is no such stream, or none at the time that was asked for."""

    code = "not-found"


class Invalid(Refused):
    """The input breaks a rule; `title` names the rule in two or three words, and so the code."""

    code = "invalid"
    title = "Invalid request"

    def __init__(self, detail: str, title: str = "") -> None:
        super().__init__(detail)
        if title:
            self.title = title
            self.code = title.lower().replace(" ", "-")


class Conflict(Refused):
    """Another command changed the stream first; `actual` is its version where that is known."""

    code = "conflict"

    def __init__(self, detail: str, actual: int | None = None) -> None:
        super().__init__(detail)
        self.actual = actual


class StaleVersion(Refused):
    """The caller's `If-Match` names a version that is not the current one, whose tag is `tag`."""

    code = "stale-version"

    def __init__(self, detail: str, tag: str) -> None:
        super().__init__(detail)
        self.tag = tag


class KeyReused(Refused):
    """An `Idempotency-Key` that stands for another request."""

    code = "key-reused"


class Away(Error):
    """A server that cannot be reached now. Retry after `retry_after` seconds.

    `unreachable`: nothing came back at all; else it answered that it cannot do it now.
    `outcome_known`: the call had no effect. False: it was sent, and its answer was lost.
    """

    code = "away"
    retry_after = 2
    unreachable = True
    outcome_known = True


class StoreAway(Away):
    """PostgreSQL cannot be reached, or does not answer within its time limit."""

    code = "store-away"


class StoreSlow(StoreAway):
    """PostgreSQL answered that it could not do it within its time limit, or has no room."""

    unreachable = False


class OutcomeUnknown(StoreAway):
    """The answer to an append was lost: the command may be carried out already, or later.

    Without an Idempotency-Key a repeat may do it twice. `aggregate_id` names the stream to look at.
    """

    code = "outcome-unknown"
    outcome_known = False

    def __init__(self, detail: str, aggregate_id: UUID) -> None:
        super().__init__(detail)
        self.aggregate_id = aggregate_id


class SequenceBehind(StoreAway):
    """The store would draw positions that its log has already: it was put back in part."""

    unreachable = False


class ReadModelAway(Away):
    """MongoDB cannot be reached, or does not answer within its time limit."""

    code = "read-model-away"


class BrokerAway(Away):
    """RabbitMQ cannot be reached, or the connection to it was lost."""

    code = "broker-away"


class FeedAway(Away):
    """The service that owns a feed cannot be reached."""

    code = "feed-away"


class StoreRestored(Away):
    """The log lacks an event that its reader has seen: it is another one, or was put back."""

    code = "store-restored"
    unreachable = False


class NotYet(Away):
    """Data that another service writes has not arrived here yet."""

    code = "not-yet"
    unreachable = False


class Busy(Away):
    """So many callers wait already that one more would not be served in time."""

    code = "busy"
    retry_after = 1
    unreachable = False


class NotAnEvent(Error):
    """Bytes that are not an event: no JSON, or JSON of another shape."""

    code = "not-an-event"


class CannotApply(Error):
    """An event that is unknown to a projection, or newer than its code."""

    code = "cannot-apply"


class Misconfigured(Error):
    """Settings or code with which a process must not start."""

    code = "misconfigured"
