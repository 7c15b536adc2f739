"""A relay's session: the lock, the checkpoint, and the wait for appends."""

import select
from typing import Any

from eventcore.errors import StoreRestored
from eventcore.model.event import Event, Mark
from eventcore.settings import Server
from eventcore.store.connection import connect, fetch
from eventcore.store.migrate import require_schema
from eventcore.store.port import EXPIRED_AT_ONCE, PAGE
from eventcore.store.rows import SETTLE, observe_log, read_page, relay_halted
from eventcore.store.settling import Settling
from eventcore.store.sqlstates import translated


class RelaySession:
    """A RelayStore: one connection that holds the advisory lock and listens for appends.

    The checkpoint is moved on the connection that holds the lock. A relay that lost its
    lock with its connection can therefore not move it any more.
    """

    def __init__(self, server: Server, name: str) -> None:
        self._name = name
        self._settling = Settling()
        self.head = 0
        with translated():
            self._connection = connect(server).raw_connection()
        self._driver: Any = self._connection.driver_connection
        self._rows("listen events")

    def lock(self) -> bool:
        taken: bool = self._rows(
            "select pg_try_advisory_lock(hashtext('relay'), hashtext(%s))", (self._name,)
        )[0][0]
        return taken

    def checkpoint(self) -> Mark:
        statement = "select position, event_id::text from checkpoints where name = %s"
        rows = self._rows(statement, (self._name,))
        return Mark(rows[0][0], rows[0][1] or "") if rows else Mark()

    def move_checkpoint(self, mark: Mark) -> None:
        values = (self._name, mark.position, mark.event_id)
        self._rows("select move_checkpoint(%s, %s, %s::uuid)", values)

    def settled_event(self) -> Mark:
        [self.head] = observe_log(self._settling, self._rows, SETTLE)
        return self._settling.mark

    def read_page(self, after: Mark, until: Mark, limit: int = PAGE) -> list[Event]:
        page = read_page(self._rows, (after, until), after.position, until.position, limit)
        if page is None:
            raise StoreRestored(relay_halted(after))
        return page

    def require_schema(self) -> None:
        """Raises StoreUnavailable while the schema does not fit; see `migrate.require_schema`."""
        require_schema(self._rows)

    def expire_idempotency_keys(self) -> int:
        statement = "select expire_idempotency_keys(%s)"
        expired: int = self._rows(statement, (EXPIRED_AT_ONCE,))[0][0]
        return expired

    def wait(self, timeout: float) -> None:
        if not self._driver.notifies:
            select.select([self._driver], [], [], timeout)
            with translated():
                self._driver.poll()
        self._driver.notifies.clear()

    def close(self) -> None:
        """Give up the connection, and the lock with it."""
        self._connection.invalidate()
        self._connection.close()

    def _rows(self, statement: str, values: tuple[object, ...] = ()) -> list[Any]:
        with translated():
            return fetch(self._driver, statement, values)
