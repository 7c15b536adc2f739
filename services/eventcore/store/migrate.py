"""The schema of the store: applied, and required."""

from pathlib import Path

from eventcore.errors import StoreUnavailable
from eventcore.retry import retry
from eventcore.settings import Server
from eventcore.store.connection import connect
from eventcore.store.rows import Rows
from eventcore.store.sqlstates import translated

SCHEMA_VERSION = 7  # the least that `init.sql` must have recorded for this code to work


def require_schema(rows: Rows) -> None:
    """Raises StoreUnavailable while the schema is older than this code; a newer one is welcome.

    Raises SequenceBehind where the sequence of positions is behind the log.
    """
    there = rows("select to_regclass('public.schema_versions') is not null", ())[0][0]
    found = there and rows("select coalesce(max(version), 0) from schema_versions", ())[0][0]
    if found < SCHEMA_VERSION:
        raise StoreUnavailable(
            f"the schema is at version {found:d}, version {SCHEMA_VERSION} is needed:"
            " apply init.sql (python -m eventcore migrate)"
        )
    rows("select require_sequence()", ())


def migrate(owner: Server, script: Path, wait: float = 30) -> int:
    """Applies `init.sql` as the database's owner and returns the schema version.

    Where a lock cannot be had at once, it lets go and tries again, for `wait` seconds at most, so
    that a live database is not held up. Raises StoreUnavailable.
    """

    def apply() -> int:
        with translated(), connect(owner).connect() as connection:
            plain = connection.execution_options(no_parameters=True)
            plain.exec_driver_sql(script.read_text())
            found = plain.exec_driver_sql("select max(version) from schema_versions")
            return int(found.scalar_one())

    return retry(apply, wait)
