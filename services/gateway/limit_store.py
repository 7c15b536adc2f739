"""The counters of rate limits: in MongoDB, which all replicas share, and in memory.

Storages of the `limits` library. Its own one for MongoDB needs update pipelines with `$$NOW`; this
one needs `$inc` and an upsert, which every server that speaks MongoDB's protocol has. Its own one
in memory starts threads and keeps any number of clients.
"""

import time
from abc import abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from math import floor, inf
from threading import Lock
from typing import Any, NamedTuple

from limits.storage import SlidingWindowCounterSupport, Storage
from limits.storage.base import TimestampedSlidingWindow
from limits.strategies import SlidingWindowCounterRateLimiter
from pymongo import MongoClient
from pymongo.errors import DuplicateKeyError, PyMongoError

from eventcore.readmodel.client import to_url
from eventcore.settings import Server

TIME = 250
"""Milliseconds for each of: finding the server, connecting, an answer. A slower store is no use."""

WINDOWS = 20_000
"""Counters that are kept in memory; the one that was used least lately goes first."""

FRESH = 1.0
"""Seconds for which a read of a counter serves; meanwhile other processes may have added hits."""

MARGIN = 0.001
"""Seconds that are added to a wait, for the rounding of floating-point numbers."""


class Window(NamedTuple):
    """The hits of the previous and the current window of `expiry` seconds, and what is left of it.

    Of those of the previous window, as large a part counts as is left of the current one.
    """

    previous: int
    current: int
    left: float
    expiry: float

    def remaining(self, limit: int) -> int:
        """How many hits are admitted now."""
        return max(0, floor(limit - self.previous * self.left / self.expiry) - self.current)

    def wait(self, limit: int, cost: int) -> float:
        """Seconds until `cost` hits are admitted, if there are no others meanwhile."""
        free = limit - cost - self.current
        if free >= self.previous * self.left / self.expiry:
            return 0.0
        if free > 0:
            return self.left - self.expiry * free / self.previous + MARGIN
        over = 1 - (limit - cost) / self.current if self.current else 0.0
        return self.left + self.expiry * min(1.0, max(0.0, over)) + MARGIN


class _Seen(NamedTuple):
    """The hits of a key, read at a time; those that this process has added since are among them.

    The previous window has ended, so its hits do not change.
    """

    window: str
    previous: int
    current: int
    read_at: float


class Counters(Storage, SlidingWindowCounterSupport, TimestampedSlidingWindow):
    """Counts the hits of each key in the current and the previous window."""

    STORAGE_SCHEME = None

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        super().__init__()
        self._clock = clock
        self._seen: OrderedDict[str, _Seen] = OrderedDict()
        self._seen_lock = Lock()
        self.strategy = SlidingWindowCounterRateLimiter(self)

    @abstractmethod
    def counts(self, *windows: str) -> Mapping[str, int]:
        """The hits of windows; one without hits may be left out."""

    @abstractmethod
    def add(self, window: str, room: int, amount: int, expires: float) -> bool:
        """Adds hits to a window that has `room` at most, atomically; False if it has more.

        It may be forgotten at the time `expires`.
        """

    def acquire_sliding_window_entry(
        self, key: str, limit: int, expiry: int, amount: int = 1
    ) -> bool:
        """Counts `amount` hits, unless the two windows would then have more than `limit`."""
        now = self._clock()
        previous, current = self.sliding_window_keys(key, expiry, now)
        seen = self._seen.get(key)
        if not seen or seen.window != current:
            seen = _Seen(current, self.counts(previous).get(previous, 0), 0, -inf)
        room = floor(limit - seen.previous * (1 - now % expiry / expiry)) - amount
        is_added = room >= 0 and self.add(current, room, amount, now + 2 * expiry)
        if is_added:
            self._see(key, seen._replace(current=seen.current + amount))
        return is_added

    def get_sliding_window(self, key: str, expiry: int) -> tuple[int, float, int, float]:
        """Hits of the previous window and how long they count (s), then those of the current."""
        now = self._clock()
        previous, current = self.sliding_window_keys(key, expiry, now)
        counts = self.counts(previous, current)
        seen = _Seen(current, counts.get(previous, 0), counts.get(current, 0), now)
        self._see(key, seen)
        left = expiry - now % expiry
        return seen.previous, left, seen.current, left + expiry

    def _see(self, key: str, seen: _Seen) -> None:
        with self._seen_lock:
            self._seen[key] = seen
            self._seen.move_to_end(key)
            if len(self._seen) > WINDOWS:
                self._seen.popitem(last=False)

    def windows(self, key: str, expiry: int) -> Iterator[Window]:
        """The hits of a key: as seen less than FRESH seconds ago, if they were; then as read."""
        now = self._clock()
        seen = self._seen.get(key)
        window = self.sliding_window_keys(key, expiry, now)[1]
        if seen and seen.window == window and 0 <= now - seen.read_at < FRESH:
            yield Window(seen.previous, seen.current, expiry - now % expiry, expiry)
        yield self.window(key, expiry)

    def window(self, key: str, expiry: int) -> Window:
        """The hits of a key that count now, and later."""
        previous, left, current, _ = self.get_sliding_window(key, expiry)
        return Window(previous, current, left, expiry)

    def close(self) -> None:
        """Closes connections, if there are any; the next call makes others."""

    def check(self) -> bool:
        """Whether the store answers; raises its error."""
        self.counts("")
        return True

    def _unsupported(self, *_: object, **__: object) -> Any:
        raise NotImplementedError("only sliding windows are counted")

    incr = get = get_expiry = clear = reset = clear_sliding_window = _unsupported


class MemoryCounters(Counters):
    """The counters of one process, of WINDOWS windows at most."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        super().__init__(clock)
        self._counts: OrderedDict[str, int] = OrderedDict()
        self._lock = Lock()

    @property
    def base_exceptions(self) -> type[Exception]:
        """Nothing fails."""
        return OSError

    def counts(self, *windows: str) -> Mapping[str, int]:
        return {each: self._counts.get(each, 0) for each in windows}

    def add(self, window: str, room: int, amount: int, expires: float) -> bool:
        with self._lock:
            count = self._counts.pop(window, 0)
            is_added = count <= room
            self._counts[window] = count + amount if is_added else count
            if len(self._counts) > WINDOWS:
                self._counts.popitem(last=False)
        return is_added


class SharedCounters(Counters):
    """Documents {_id: the window, count, expireAt} in a database of their own."""

    def __init__(self, server: Server, clock: Callable[[], float] = time.time) -> None:
        super().__init__(clock)
        self._server = server
        self._lock = Lock()
        self._client: MongoClient[dict[str, Any]] | None = None

    @property
    def base_exceptions(self) -> type[Exception]:
        """The errors of a store that is away."""
        return PyMongoError

    def counts(self, *windows: str) -> Mapping[str, int]:
        found = self._windows.find({"_id": {"$in": windows}}, {"count": 1})
        return {each["_id"]: each["count"] for each in found}

    def add(self, window: str, room: int, amount: int, expires: float) -> bool:
        return any(self._add(window, room, amount, expires) for _ in range(2))

    def _add(self, window: str, room: int, amount: int, expires: float) -> bool:
        """As `add`; also False where another process begins the window at this moment."""
        begun = {"expireAt": datetime.fromtimestamp(expires, UTC)}
        try:
            self._windows.update_one(
                {"_id": window, "count": {"$lte": room}},
                {"$inc": {"count": amount}, "$setOnInsert": begun},
                upsert=True,
            )
        except DuplicateKeyError:
            return False
        return True

    def close(self) -> None:
        """Closes the connections; the next call reads the password again."""
        with self._lock:
            client, self._client = self._client, None
        if client is not None:
            client.close()

    @property
    def _windows(self) -> Any:
        with self._lock:
            known = self._client
            client = self._client = known or self._connect()
        windows = client[self._server.name]["windows"]
        if known is None:
            windows.create_index("expireAt", expireAfterSeconds=0)
        return windows

    def _connect(self) -> MongoClient[dict[str, Any]]:
        return MongoClient(
            to_url(self._server, self._server.password.read()),
            serverSelectionTimeoutMS=TIME,
            connectTimeoutMS=TIME,
            socketTimeoutMS=TIME,
            w=1,  # a failover may forget some hits
        )
