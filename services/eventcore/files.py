"""A file that is read again when it has changed, such as a mounted Secret."""

import logging
from collections.abc import Callable
from pathlib import Path
from threading import Lock
from typing import Generic, TypeVar

from eventcore.clock import SYSTEM_CLOCK, Clock
from eventcore.errors import Misconfigured
from eventcore.settings import Secret

LOOK_TIME = 1.0
"""Seconds between two looks at a file."""

log = logging.getLogger(__name__)

Content = TypeVar("Content")


def reader(secret: Secret) -> Callable[[], str]:
    """Returns a function that returns the current value of a secret; raises Misconfigured."""
    if secret.file is None:
        return secret.read
    return Reread(secret.file, lambda text: text.rstrip("\r\n"))


class Reread(Generic[Content]):
    """The parsed content of a file.

    Raises Misconfigured at first for a file that cannot be read; later the last content is kept.
    """

    def __init__(
        self, file: Path, parse: Callable[[str], Content], clock: Clock = SYSTEM_CLOCK
    ) -> None:
        self._file = file
        self._parse = parse
        self._clock = clock
        self._lock = Lock()
        try:
            self._known = self._stamp()
            self._content = parse(file.read_text())
        except OSError as error:
            raise Misconfigured(f"{file} cannot be read: {error.strerror}") from error
        self._looked_at = clock.monotonic()

    def __call__(self) -> Content:
        """The content, at most LOOK_TIME old."""
        if self._clock.monotonic() - self._looked_at > LOOK_TIME:
            with self._lock:
                self._look()
        return self._content

    def _look(self) -> None:
        self._looked_at = self._clock.monotonic()
        try:
            stamp = self._stamp()
            if stamp != self._known:
                self._content = self._parse(self._file.read_text())
                self._known = stamp
        except (OSError, ValueError) as error:
            log.warning(
                "File not read again", extra={"file": str(self._file), "reason": str(error)}
            )

    def _stamp(self) -> tuple[int, int, int]:
        status = self._file.stat()
        return status.st_ino, status.st_mtime_ns, status.st_size
