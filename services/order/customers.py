"""Checks whether a user may order, in the read model of known users; waits for a new user.

Ids are UUIDs of version 7, which contain the time at which they were made. An id older than the
checkpoint that is not in the read model belongs to no user, and neither does an id from the far
future: such an order is refused at once.
"""

import threading
import time
from collections import Counter, OrderedDict
from datetime import UTC, datetime, timedelta
from uuid import UUID

from eventcore.errors import Invalid, NotYet, Overloaded
from eventcore.ids import made_at
from eventcore.query import Serving
from eventcore.readmodel.port import ReadModel
from order.projections.known_users import PROJECTION

REMEMBERED_USERS = 10_000
"""User ids kept in memory, so that their orders are accepted while MongoDB is unavailable."""

CLOCK_TOLERANCE = timedelta(days=1)
"""Maximum difference between the clock of an id and this service's clock."""

FIRST, LAST = 0.01, 0.1
"""Seconds before the first query of a waiting request, and the maximum between later ones."""


class Customers:
    """The users who may order.

    At most `waiters` requests wait at once, up to `wait` seconds each, for a user that the read
    model does not have yet. Refuses with "User unknown" only if the checkpoint is at least `margin`
    seconds later than the id: clocks differ, and an append takes time.
    """

    def __init__(self, readmodel: ReadModel, wait: float, margin: float, waiters: int) -> None:
        self._readmodel = readmodel
        self._serving = Serving(PROJECTION, readmodel)
        self._wait = wait
        self._margin = timedelta(seconds=margin)
        self._waiters = waiters
        self._remembered: OrderedDict[str, None] = OrderedDict()
        self._awaited: Counter[str] = Counter()
        self._loaded_at = 0.0
        self._load_lock = threading.Lock()
        self._lock = threading.Lock()

    def knows(self, user_id: str) -> bool:
        """Whether the user is in the read model; raises ReadModelUnavailable."""
        return self._is_remembered(user_id) or self._is_known(user_id)

    def wait_for(self, user_id: str) -> None:
        """Return once a user who is not known yet may order, within the wait.

        Raises Invalid ("User unknown"), Overloaded if too many wait already, NotYet if the read
        model is behind, and ReadModelUnavailable.
        """
        if self._cannot_exist(user_id):
            raise Invalid(
                f"There is no user {user_id}. Create one with POST /users, then order.",
                "User unknown",
            )
        with self._lock:
            if self._awaited.total() >= self._waiters:
                raise Overloaded("Too many orders wait for users who are not known yet. Try again.")
            self._awaited[user_id] += 1
        deadline, delay = time.monotonic() + self._wait, FIRST
        try:
            while (begun := time.monotonic()) < deadline:
                time.sleep(min(delay, deadline - begun))
                if self._is_known_since(user_id, begun):
                    return
                delay = min(2 * delay, LAST)
        finally:
            with self._lock:
                self._awaited -= Counter([user_id])
        raise NotYet(
            "Whether this user exists cannot be known yet: the order service's read model of users"
            " is behind. Nothing was written; try again."
        )

    def _is_known_since(self, user_id: str, since: float) -> bool:
        """Whether the user is known by now; one query after `since` serves all waiting requests."""
        with self._load_lock:
            if self._loaded_at < since:
                self._loaded_at = time.monotonic()
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

    def _is_known(self, user_id: str) -> bool:
        self._load_known([user_id])
        return self._is_remembered(user_id)

    def _load_known(self, user_ids: list[str]) -> None:
        """Remembers which of these users the read model has."""
        known = self._readmodel.versions(self._serving.now().collection, user_ids)
        with self._lock:
            for user_id in known:
                self._remembered[user_id] = None
                self._remembered.move_to_end(user_id)
            while len(self._remembered) > REMEMBERED_USERS:
                self._remembered.popitem(last=False)

    def _is_remembered(self, user_id: str) -> bool:
        with self._lock:
            return user_id in self._remembered
