"""The clients' own record: every request is on the disk before it is sent, and its answer after."""

import json
import os
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

COMMANDS = ("create user", "rename", "place", "cancel")
READS = ("read user", "read order", "list")

GROUPS = {
    "create user": "user commands",
    "rename": "user commands",
    "place": "order commands",
    "cancel": "order commands",
    "read user": "queries",
    "read order": "queries",
    "list": "lists",
}
"""Kinds of requests that need the same servers and processes."""


@dataclass(slots=True)
class Try:
    """One request on its way: when it was sent, and what came back; status 0: nothing."""

    at: float
    took: float
    status: int
    retry_after: bool


@dataclass(slots=True)
class Entry:
    """One command or query: what was asked, under which id, and what was answered at last.

    `subject` is the user or order it is about, or which it has made; `events` how many events
    it must have in the log if it was carried out; `says` what those must contain. `replays` are
    the answers to the same request with the same key, after a good one.
    """

    id: str
    kind: str
    subject: str
    says: dict[str, str]
    events: int
    tries: list[Try] = field(default_factory=list)
    replays: list[str] = field(default_factory=list)
    planted: bool = False

    @property
    def outcome(self) -> str:
        """ok; refused, for certain; or unknown."""
        last = self.tries[-1].status if self.tries else 0
        if 200 <= last < 300:
            return "ok"
        earlier_unknown = any(not 400 <= t.status < 500 for t in self.tries)
        return "refused" if 400 <= last < 500 and not earlier_unknown else "unknown"


class Journal:
    """Entries, in memory and, line by line, on the disk."""

    def __init__(self, file: Path) -> None:
        self.entries: dict[str, Entry] = {}
        self._file = os.open(file, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600)
        self._lock = threading.Lock()

    def begin(self, entry: Entry) -> Entry:
        """Record a request before it is sent; a command's on the disk."""
        self._write({"asks": entry.kind, "id": entry.id, "about": entry.subject} | entry.says)
        if entry.events:
            os.fdatasync(self._file)
        with self._lock:
            self.entries[entry.id] = entry
        return entry

    def answer(self, entry: Entry, tried: Try) -> None:
        """Record what came back."""
        entry.tries.append(tried)
        self._write({"answered": tried.status, "id": entry.id, "about": entry.subject})

    def since(self, began: float) -> list[Entry]:
        """The requests whose first attempt was sent since then."""
        with self._lock:
            return [e for e in self.entries.values() if e.tries and e.tries[0].at >= began]

    def forget(self, commands: Iterable[str]) -> None:
        """Take out what cannot be held to its answer any more: its log was set back."""
        with self._lock:
            for command in commands:
                self.entries.pop(command, None)

    def all(self) -> list[Entry]:
        """All so far."""
        with self._lock:
            return list(self.entries.values())

    def close(self) -> None:
        """Let the file go."""
        os.close(self._file)

    def _write(self, line: Mapping[str, object]) -> None:
        os.write(self._file, json.dumps(line).encode() + b"\n")
