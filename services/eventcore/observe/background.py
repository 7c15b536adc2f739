"""Background threads that outlive unexpected errors, which are logged and counted."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Event as Stop
from threading import Thread

from eventcore.errors import Unavailable
from eventcore.observe.metrics import BACKGROUND_ERRORS

PAUSE = 1.0  # seconds before the next turn after an unexpected error

log = logging.getLogger(__name__)


@contextmanager
def log_errors(thread: str) -> Iterator[None]:
    """Ends the block at an error: logs Unavailable, logs and counts an unexpected error."""
    try:
        yield
    except Unavailable as error:
        log.debug("Server unavailable", extra={"of": thread, "reason": str(error)})
    except Exception:
        BACKGROUND_ERRORS.labels(thread).inc()
        log.exception("Unexpected error in a background thread", extra={"of": thread})


def repeat(
    turn: Callable[[], object], name: str, every: float = 0.0, stop: Stop | None = None
) -> Thread:
    """Starts a daemon thread that calls `turn`, `every` seconds after the last one ended.

    A `turn` with `every=0` waits for its work by itself. After an unexpected error the next one
    follows a second later. The thread ends once `stop` is set.
    """
    stop = stop or Stop()
    BACKGROUND_ERRORS.labels(name)

    def run() -> None:
        while not stop.wait(every):
            with log_errors(name):
                turn()
                continue
            stop.wait(PAUSE)

    thread = Thread(target=run, name=name, daemon=True)
    thread.start()
    return thread
