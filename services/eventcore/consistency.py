"""Reading your own writes: the epoch of a log, the lag of a view behind a token, and the waits."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from enum import StrEnum

from eventcore.clock import SYSTEM_CLOCK, Clock
from eventcore.errors import NotYet, OtherLog, Overloaded, Unavailable
from eventcore.model.token import Token, with_epoch
from eventcore.readmodel.port import ReadModel
from eventcore.readmodel.records import Checkpoint, Generation
from eventcore.store.port import Store

FIRST, LAST = 0.01, 0.1
"""Seconds before a waiting request looks again: the first time, and at most."""


class Epoch:
    """The epoch of a service's own log, which a restore changes.

    The service's watch notes it every few seconds; `update` reads it at once.
    """

    def __init__(self, store: Store, aggregate_type: str) -> None:
        self._store = store
        self._aggregate_type = aggregate_type
        self._known = ""

    def note(self, epoch: str) -> None:
        """Takes the epoch as it is in the log now."""
        self._known = epoch

    def update(self) -> None:
        """Reads the epoch; raises StoreUnavailable."""
        self.note(self._store.progress(self._aggregate_type).epoch)

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
            return with_epoch(str(own), self._aggregate_type, self._known)
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


def lag(
    readmodel: ReadModel,
    generation: Generation,
    aggregate_type: str,
    token: Token,
    folded_from: str = "",
) -> Lag:
    """Compares the documents of a generation with a token. Raises ReadModelUnavailable.

    Does not read the checkpoint if the token has the epoch `folded_from`, which is known to be the
    generation's.
    """
    wanted = token.of(aggregate_type)
    if not wanted:
        return Lag.NONE
    found = readmodel.versions(generation.collection, wanted)
    missing = [id for id, version in wanted.items() if found.get(id, 0) < version]
    named = token.epochs.get(aggregate_type, "")
    if not missing and named in ("", folded_from):
        return Lag.NONE
    checkpoint = readmodel.checkpoint(generation.name)
    is_same = token.is_of(aggregate_type, checkpoint.store_epoch)
    if not missing and is_same:
        return Lag.NONE
    if checkpoint.halted:
        return Lag.HALTED
    if readmodel.parked(generation.name, missing):
        return Lag.PARKED
    return Lag.BEHIND if is_same else Lag.OTHER_LOG


def view_lag(checkpoint: Checkpoint, store: str, token: Token) -> Lag:
    """Compares a view's checkpoint of one store with the position in a token.

    Says nothing of parked documents, which the checkpoint has passed.
    """
    if store not in token.positions:
        return Lag.NONE
    is_same = token.is_of(store, checkpoint.store_epoch)
    if is_same and checkpoint.position >= token.positions[store]:
        return Lag.NONE
    if checkpoint.halted:
        return Lag.HALTED
    return Lag.BEHIND if is_same else Lag.OTHER_LOG


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
        self.clock = clock

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
            for _ in self.looks(longest):
                if (reason := look()) not in (Lag.BEHIND, Lag.OTHER_LOG):
                    break
        return reason

    def looks(self, seconds: float) -> Iterator[float]:
        """Sleeps between looks, with backoff, for so long at most.

        Yields before each look the time, by the monotonic clock, at which its sleep began.
        """
        delay, deadline = FIRST, self.clock.monotonic() + seconds
        while (begun := self.clock.monotonic()) < deadline:
            self.clock.sleep(min(delay, deadline - begun))
            yield begun
            delay = min(2 * delay, LAST)
