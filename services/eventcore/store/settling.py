"""Finds which events have settled: no event can still appear before them."""

from collections.abc import Sequence

from eventcore.model.event import Mark


class Settling:
    """The algorithm that finds the settled event, without its SQL.

    `observe` takes the result of the database's `settle()`. It records the head and its open
    writers. The head is settled when those writers have finished; then the next head is watched. So
    a transaction that does not write events delays nothing, and a slow writer delays only later
    events. If the log has lost the settled event or the watched one, it begins again.
    """

    def __init__(self) -> None:
        self._forget()

    def _forget(self) -> None:
        self.mark = Mark()
        self.watched = Mark()
        self._holders: frozenset[str] = frozenset()

    def observe(self, head: Mark, holders: Sequence[str], same: bool = True) -> Mark:
        """The settled event after an observation of the head and its writers.

        `same`: the log still has `mark` and `watched`.
        """
        if not same:
            self._forget()
        if not self._holders & set(holders):
            self.mark = self.watched
            self.watched, self._holders = head, frozenset(holders)
        if not holders:
            self.mark = head
        return self.mark
