"""NOTIFY after appends, coalesced."""

import threading
import time
from collections.abc import Callable

from eventcore.failpoints import failpoint
from eventcore.observe.background import repeat


class Wakeup:
    """Sends NOTIFY after an append, coalesced under load, so that the relay need not poll often.

    Sent within the append's transaction it would take a lock of the whole PostgreSQL instance at
    commit. A lost one costs a little time, since the relay polls as well.
    """

    DELAY, MAX_DELAY = 0.005, 0.015  # seconds between two NOTIFYs: for each append, and at most

    def __init__(self, notify: Callable[[], object]) -> None:
        self._notify = notify
        self._appends = 0  # approximate: it is counted without a lock
        self._requested = threading.Event()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def schedule(self) -> None:
        """Wakes the relay soon. Never blocks, never fails."""
        self._appends += 1
        self._requested.set()
        if self._thread is None:
            with self._lock:
                self._thread = self._thread or repeat(self._send, "wakeup")

    def _send(self) -> None:
        self._requested.wait()
        self._requested.clear()
        appends, self._appends = self._appends, 0
        failpoint("wakeup:begin")
        self._notify()
        time.sleep(min(self.DELAY * appends, self.MAX_DELAY))
