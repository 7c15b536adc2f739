"""Reading your own writes: the token of the versions that a client has seen, and the waits for it.

A token names versions of streams, not positions: a document belongs to one stream, so a reader
needs to know only how far that stream is. It is the base64url of lines: `user@EPOCH` names the
epoch of a log, `user/ID/3` a version, newest first. It is not signed: whoever forges one delays
only their own requests.
"""

import re
import threading
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from enum import StrEnum

from eventcore.clock import SYSTEM_CLOCK, Clock
from eventcore.errors import InvalidToken, NotYet, OtherLog, Overloaded, Unavailable
from eventcore.readmodel.port import ReadModel
from eventcore.readmodel.records import Generation
from eventcore.store.port import Store

STREAMS = 8
"""Streams that one token names at most."""

SIZE = 1024
"""Characters of a token at most."""

FIRST, LAST = 0.01, 0.1
"""Seconds before a waiting request looks again: the first time, and at most."""

_LINE = re.compile(
    "([a-z][a-z0-9_]{0,62})(?:@([0-9A-Za-z -]{1,64})"
    "|/([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})/([1-9][0-9]{0,18}))",
    re.ASCII,
)


@dataclass(frozen=True, slots=True)
class Token:
    """Versions by aggregate type and id, newest first, and the epoch of each type's log."""

    streams: dict[tuple[str, str], int] = field(default_factory=dict)
    epochs: dict[str, str] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: str) -> "Token":
        """The token in a header; raises InvalidToken for anything else."""
        token = cls()
        try:
            if len(text) > SIZE:
                raise ValueError("too long")
            lines = _decoded(text).decode("ascii").split("\n")
            for kind, epoch, id, version in (_parts(line) for line in lines):
                if epoch:
                    token.epochs[kind] = epoch
                else:
                    token.streams[kind, id] = int(version)
        except ValueError as error:
            raise InvalidToken(
                "Consistency-Token must be as a command's answer has it. Leave it out, or send the"
                " newest one unchanged. Nothing was done."
            ) from error
        return token

    def of(self, aggregate_type: str) -> dict[str, int]:
        """The versions of one type's streams, by id."""
        return {id: version for (kind, id), version in self.streams.items()
                if kind == aggregate_type}  # fmt: skip

    def version(self, aggregate_type: str, aggregate_id: object) -> int:
        """The version of one stream; 0 if the token does not name it."""
        return self.streams.get((aggregate_type, str(aggregate_id)), 0)

    def over(self, older: "Token") -> "Token":
        """Both tokens as one: the greater version of each stream, the epochs of this one."""
        streams = {each: max(at, older.streams.get(each, 0)) for each, at in self.streams.items()}
        return Token({**streams, **{each: at for each, at in older.streams.items()
                                    if each not in streams}},
                     {**older.epochs, **self.epochs})  # fmt: skip

    def __str__(self) -> str:
        """The text for a header: as many of the newest streams as it may have."""
        kept = [f"{kind}/{id}/{version}" for (kind, id), version in self.streams.items()][:STREAMS]
        while True:
            kinds = dict.fromkeys(line.partition("/")[0] for line in kept)
            lines = [f"{kind}@{self.epochs[kind]}" for kind in kinds if kind in self.epochs] + kept
            text = urlsafe_b64encode("\n".join(lines).encode()).decode().rstrip("=")
            if len(text) <= SIZE:
                return text
            kept.pop()


def _decoded(text: str) -> bytes:
    return urlsafe_b64decode(text.encode("ascii") + b"=" * (-len(text) % 4))


def _parts(line: str) -> tuple[str, str, str, str]:
    if not (found := _LINE.fullmatch(line)):
        raise ValueError(line)
    kind, epoch, id, version = found.groups(default="")
    return kind, epoch, id, version


class Epoch:
    """The epoch of a service's own log, which a restore changes; `update` reads it anew."""

    def __init__(self, store: Store, aggregate_type: str) -> None:
        self._store = store
        self._aggregate_type = aggregate_type
        self._known = ""

    def update(self) -> None:
        """Reads the epoch; raises StoreUnavailable."""
        self._known = self._store.progress(self._aggregate_type).epoch

    def require(self, seen: Token | None) -> None:
        """Raises OtherLog for a token of another epoch. Reads the log only if it has to."""
        given = seen.epochs.get(self._aggregate_type, "") if seen else ""
        if not self._known or given not in ("", self._known):
            with suppress(Unavailable):  # then nothing can be said against the token
                self.update()
                require_same_log(given, self._known, self._aggregate_type)

    def answered(self, own: object, seen: Token | None) -> str:
        """The token of an answer: the version it names, in this epoch, and what was seen before."""
        if not seen and self._known:  # most calls: only the epoch is added
            line = f"{self._aggregate_type}@{self._known}\n".encode() + _decoded(str(own))
            return urlsafe_b64encode(line).decode().rstrip("=")
        token = Token.parse(str(own))
        if self._known:
            token = replace(token, epochs={self._aggregate_type: self._known})
        return str(token.over(seen) if seen else token)


def require_same_log(given: str, known: str, aggregate_type: str) -> None:
    """Raises OtherLog if a token and a log have different epochs."""
    if given not in ("", known):
        raise OtherLog(
            f"The log of {aggregate_type} events was put back since this Consistency-Token was"
            " made: what it names may be gone. Nothing was done. Leave the token out and read"
            " again."
        )


class Lag(StrEnum):
    """Why a view does not show what a token names."""

    NONE = ""
    BEHIND = "behind"
    OTHER_LOG = "other-log"
    PARKED = "parked"
    HALTED = "halted"
    BUSY = "busy"


def lag(readmodel: ReadModel, generation: Generation, aggregate_type: str, token: Token) -> Lag:
    """Compares the documents of a generation with a token. Raises ReadModelUnavailable."""
    wanted = token.of(aggregate_type)
    if not wanted:
        return Lag.NONE
    found = readmodel.versions(generation.collection, wanted)
    missing = [id for id, version in wanted.items() if found.get(id, 0) < version]
    checkpoint = readmodel.checkpoint(generation.name)
    epochs = {token.epochs.get(aggregate_type, ""), checkpoint.store_epoch} - {""}
    if not missing and len(epochs) < 2:
        return Lag.NONE
    if checkpoint.halted:
        return Lag.HALTED
    if readmodel.parked(generation.name, missing):
        return Lag.PARKED
    return Lag.BEHIND if len(epochs) < 2 else Lag.OTHER_LOG


def require_seen(reason: Lag, what: str) -> None:
    """Raises the refusal of a command that needs what a view does not have."""
    if reason is Lag.BUSY:
        raise Overloaded(f"Too many requests wait for {what}. Nothing was written; try again.")
    if reason is Lag.OTHER_LOG:
        require_same_log("the token's", "the view's", what)
    if reason is not Lag.NONE:
        raise NotYet(f"{what[0].upper()}{what[1:]} {_SAYS[reason]} Nothing was written; try again.")


_SAYS = {
    Lag.BEHIND: "are behind what this request has seen.",
    Lag.PARKED: "stand still for what this request has seen: an event could not be applied. It is"
    " shown once an operator has released it.",
    Lag.HALTED: "stand still: they were made from another log, and are to be rebuilt.",
}


class Waits:
    """Waits of requests, at most `most` at once and `longest` seconds each.

    The other threads of the service stay free, however many requests would wait.
    """

    def __init__(self, longest: float, most: int, clock: Clock = SYSTEM_CLOCK) -> None:
        self._longest = longest
        self._places = threading.BoundedSemaphore(most)
        self._clock = clock

    @contextmanager
    def place(self) -> Iterator[bool]:
        """Takes a place, and says whether there was one."""
        taken = self._places.acquire(blocking=False)
        try:
            yield taken
        finally:
            if taken:
                self._places.release()

    def until_seen(self, look: Callable[[], Lag], seconds: float | None = None) -> Lag:
        """Looks until a view has caught up; returns what the last look found.

        Waits up to `seconds`, or the longest wait if None, with backoff; does not wait for a view
        that stands still.
        """
        longest = self._longest if seconds is None else min(seconds, self._longest)
        reason = look()
        if reason not in (Lag.BEHIND, Lag.OTHER_LOG) or longest <= 0:
            return reason
        with self.place() as taken:
            if not taken:
                return Lag.BUSY
            delay, deadline = FIRST, self._clock.monotonic() + longest
            while reason in (Lag.BEHIND, Lag.OTHER_LOG):
                if (left := deadline - self._clock.monotonic()) <= 0:
                    break
                self._clock.sleep(min(delay, left))
                reason, delay = look(), min(2 * delay, LAST)
        return reason
