"""Checks whether a user may order, and whether their credit is limited, in the read model of known
users; waits for a new user.

Ids are UUIDs of version 7, which contain the time at which they were made. An id older than the
checkpoint that is not in the read model belongs to no user, and neither does an id from the far
future: such an order is refused at once.
"""

import logging
import threading
from collections import Counter, OrderedDict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import islice
from uuid import UUID

from eventcore.consistency import Waits, lag, require_seen
from eventcore.errors import Invalid, NotYet, Overloaded, ReadModelUnavailable
from eventcore.ids import made_at
from eventcore.model.projection import version_of
from eventcore.model.token import Token
from eventcore.readmodel.port import ReadModel
from eventcore.readmodel.serving import Serving
from order.projections.known_users import PROJECTION

log = logging.getLogger(__name__)

REMEMBERED_USERS = 10_000
"""User ids kept in memory, so that their orders are accepted while MongoDB is unavailable."""

LIMIT_TTL = 1.0
"""Seconds for which it is remembered whether a user's credit is limited: unlike a user, a limit may
come and go. While MongoDB is slow or unavailable it is remembered for longer."""

REFRESHED_USERS = 500
"""Users who are loaded again at once, at most, besides those of the request."""

CLOCK_TOLERANCE = timedelta(days=1)
"""Maximum difference between the clock of an id and this service's clock."""


@dataclass(frozen=True, slots=True)
class _Known:
    """A user as the read model had them at a time of the monotonic clock."""

    version: int
    limited: bool | None
    """Whether a limit was set, or none on purpose; None: never set."""
    loaded_at: float


def unknown_user(user_id: str) -> Invalid:
    """The refusal of an order for a user who does not exist, or is another one's."""
    detail = f"There is no user {user_id}. Create one with POST /users, then order."
    return Invalid(detail, "User unknown")


def require_users(ordered_for: Sequence[str], refused: Mapping[str, Invalid]) -> None:
    """Raises Invalid, which names each of several orders whose user is refused."""
    fields = {
        f"orders.{place}.userId": str(refused[user_id])
        for place, user_id in enumerate(ordered_for)
        if user_id in refused
    }
    if fields:
        detail = f"{len(fields)} of the {len(ordered_for)} orders are of no user: none was placed."
        raise Invalid(detail, "User unknown", fields)


class Customers:
    """The users who may order. A user for whom no limit was set is limited if `limited`.

    Requests wait up to `wait` seconds for a user that the read model does not have yet, and by
    `waits` for one that they have seen; `waits` bounds how many wait at once. Refuses with "User
    unknown" only if the checkpoint is at least `margin` seconds later than the id: clocks differ,
    and an append takes time.
    """

    def __init__(
        self,
        readmodel: ReadModel,
        wait: float,
        margin: float,
        waits: Waits,
        *,
        limited: bool = False,
    ) -> None:
        self._readmodel = readmodel
        self._serving = Serving(PROJECTION, readmodel)
        self._wait = wait
        self._margin = timedelta(seconds=margin)
        self._waits = waits
        self._limited = limited
        self._remembered: OrderedDict[str, _Known] = OrderedDict()
        self._asked: dict[str, None] = {}
        self._awaited: Counter[str] = Counter()
        self._loaded_at = 0.0
        self._load_lock = threading.Lock()
        self._refreshing = threading.Lock()
        self._lock = threading.Lock()

    def knows(self, user_id: str, seen: Token | None = None) -> bool:
        """Whether the read model has the user, at the version that was seen.

        Raises ReadModelUnavailable.
        """
        version = seen.version("user", user_id) if seen else 0
        return self._is_remembered(user_id, version) or self._is_known(user_id, version)

    def unknown(self, user_ids: Collection[str], seen: Token | None = None) -> list[str]:
        """The users that `knows` would not know; asks the read model once."""
        wanted = {id: seen.version("user", id) if seen else 0 for id in user_ids}
        if lacking := [id for id, at in wanted.items() if not self._is_remembered(id, at)]:
            self._load_known(lacking)
        return [id for id in lacking if not self._is_remembered(id, wanted[id])]

    def is_limited(self, user_id: str, seen: Token | None = None) -> bool:
        """Whether the credit of a user who may order is limited; see `limited_among`."""
        return user_id in self.limited_among([user_id], seen)

    def limited_among(self, user_ids: Collection[str], seen: Token | None = None) -> set[str]:
        """The users whose credit is limited, at the versions that were seen.

        Asks the read model once, if an answer is older than LIMIT_TTL. Raises NotYet for a user it
        does not have at that version, and ReadModelUnavailable for one who is not remembered.
        """
        wanted = {id: seen.version("user", id) if seen else 0 for id in user_ids}
        if lacking := [id for id, at in wanted.items() if not self._is_remembered(id, at)]:
            self._load_known(lacking)
        self._refresh(wanted)
        with self._lock:
            found = {id: self._remembered.get(id) for id in wanted}
            self._asked |= dict.fromkeys(id for id, known in found.items() if known)
        return {id for id, at in wanted.items() if self._is_limited(found[id], at)}

    def _refresh(self, user_ids: Collection[str]) -> None:
        """Loads users again whose answers are older than LIMIT_TTL, and with them others who were
        asked about since they were loaded: one query for all requests of a second.

        While it runs, other requests go on with answers of up to 2 LIMIT_TTL. While MongoDB is
        unavailable, all do, with older ones too.
        """
        now = self._waits.clock.monotonic()
        if all(self._is_remembered(id, loaded_at=now - LIMIT_TTL) for id in user_ids):
            return
        is_first = self._refreshing.acquire(blocking=False)
        try:
            if is_first:
                with self._lock:
                    others = list(islice(self._asked, REFRESHED_USERS))
                self._load_known([*{*user_ids, *others}])
            elif not all(self._is_remembered(id, loaded_at=now - 2 * LIMIT_TTL) for id in user_ids):
                self._load_known([*user_ids])
        except ReadModelUnavailable as error:
            log.debug("Whether users' credit is limited is not loaded again: %s", error)
        finally:
            if is_first:
                self._refreshing.release()

    def _is_limited(self, known: _Known | None, version: int) -> bool:
        if known is None or known.version < version:
            raise NotYet(
                "Whether this user's credit is limited cannot be known yet: the order service's"
                " read model of users is behind. Nothing was written; try again."
            )
        return self._limited if known.limited is None else known.limited

    def wait_for(self, user_id: str, seen: Token | None = None, wait: float | None = None) -> None:
        """Returns once a user who is not known yet may order, within the wait.

        A user whom the caller has seen exists. Raises Invalid ("User unknown"), Overloaded if too
        many wait already, NotYet if the read model is behind, OtherLog, and ReadModelUnavailable.
        """
        if seen and (version := seen.version("user", user_id)):
            only = Token({("user", user_id): version}, seen.epochs)
            found = self._waits.until_seen(
                lambda: lag(self._readmodel, self._serving.now(), "user", only), wait
            )
            require_seen(found, "the order service's users")
            return
        if self._cannot_exist(user_id):
            raise unknown_user(user_id)
        with self._waits.place() as taken:
            if not taken:
                raise Overloaded("Too many orders wait for users who are not known yet. Try again.")
            if self._appears(user_id):
                return
        raise NotYet(
            "Whether this user exists cannot be known yet: the order service's read model of users"
            " is behind. Nothing was written; try again."
        )

    def _appears(self, user_id: str) -> bool:
        """Whether the user is known within the wait."""
        with self._lock:
            self._awaited[user_id] += 1
        try:
            return any(
                self._is_known_since(user_id, begun) for begun in self._waits.looks(self._wait)
            )
        finally:
            with self._lock:
                self._awaited -= Counter([user_id])

    def _is_known_since(self, user_id: str, since: float) -> bool:
        """Whether the user is known by now; one query after `since` serves all waiting requests."""
        with self._load_lock:
            if self._loaded_at < since:
                self._loaded_at = self._waits.clock.monotonic()
                with self._lock:
                    awaited = list(self._awaited)
                self._load_known(awaited)
        return self._is_remembered(user_id)

    def _cannot_exist(self, user_id: str) -> bool:
        """Whether no user can have this id: it is covered but not known, or has no valid time."""
        made = made_at(UUID(user_id))
        if made is None or made > datetime.now(UTC) + CLOCK_TOLERANCE:
            return True
        covered_at = self._readmodel.checkpoint(self._serving.now().name).covered_at
        if covered_at is None or min(covered_at, datetime.now(UTC)) <= made + self._margin:
            return False  # ignores a checkpoint time in the future (clock error)
        return not self._is_known(user_id)  # it may have been written since the last query

    def _is_known(self, user_id: str, version: int = 0) -> bool:
        self._load_known([user_id])
        return self._is_remembered(user_id, version)

    def _load_known(self, user_ids: list[str]) -> None:
        """Remembers which of these users the read model has."""
        began = self._waits.clock.monotonic()
        known = self._readmodel.find(self._serving.now().collection, user_ids)
        with self._lock:
            for user_id in user_ids:
                self._asked.pop(user_id, None)
            for user_id, document in known.items():
                limited = document.get("limited")
                self._remembered[user_id] = _Known(version_of(document), limited, began)
                self._remembered.move_to_end(user_id)
            while len(self._remembered) > REMEMBERED_USERS:
                evicted, _ = self._remembered.popitem(last=False)
                self._asked.pop(evicted, None)

    def _is_remembered(
        self, user_id: str, version: int = 0, loaded_at: float = float("-inf")
    ) -> bool:
        """Whether a user is remembered at a version or above, as loaded at a time or later."""
        with self._lock:
            known = self._remembered.get(user_id)
            return known is not None and known.version >= version and known.loaded_at >= loaded_at
