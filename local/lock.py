"""A lock of a data folder: only one `make run` or `make clean` uses it at a time."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from local.child import CannotStart


@contextmanager
def sole_use(data: Path) -> Iterator[None]:
    """Holds the lock of a data folder; raises CannotStart while another process holds it.

    The lock belongs to the process and all it forks: it is free when the last has ended.
    """
    data.mkdir(parents=True, exist_ok=True, mode=0o711)  # PostgreSQL's user passes through
    with (data / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CannotStart(
                f"`make run` is running already on {data}: stop it there with Ctrl-C first."
            ) from None
        yield
