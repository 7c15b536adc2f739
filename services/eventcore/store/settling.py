"""Which events have settled: no event can still appear before them."""

from collections.abc import Sequence

from eventcore.model.event import Mark


class Settling:
    """Which events have settled: the algorithm, apart from the SQL that feeds it.

    `observe` takes what the database's `settle()` answered. A head is settled once none of the
    transactions that were writing when it was the head are left; a fresh head is watched as soon
    as the one before has settled, so an unrelated or even an endless transaction elsewhere never
    holds it back, and a slow writer only what came after it. Where the log has lost the settled
    event or the watched one, nothing is known of it any more.
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
