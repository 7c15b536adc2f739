"""The pool of connections to PostgreSQL: how many there are, which is taken, and what is lost."""

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

import pytest
from psycopg2 import OperationalError

from eventcore.errors import Busy
from eventcore.store import Hangs, Pool
from tests.conftest import Databases


@pytest.fixture
def pool(spare_databases: Databases) -> Pool:
    return Pool(spare_databases("spare", "service"), 3)


def session(connection: Any) -> int:
    with connection.cursor() as cursor:
        cursor.execute("select pg_backend_pid()")
        return int(cursor.fetchone()[0])


def some_sessions(pool: Pool, number: int) -> set[int]:
    """Those of so many connections in use at once."""
    together = Barrier(number)

    def use(_: int) -> int:
        with pool.connection() as connection:
            together.wait(10)
            return session(connection)

    with ThreadPoolExecutor(number) as threads:
        return set(threads.map(use, range(number)))


def test_one_caller_has_the_same_connection_again_and_again(pool: Pool) -> None:
    assert len({next(iter(some_sessions(pool, 1))) for _ in range(10)}) == 1
    assert len(some_sessions(pool, 3)) == 3
    pool.close()


def test_who_finds_all_in_use_is_told_to_come_back_and_finds_one_later(
    pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Pool, "PATIENCE", 0.05)
    with (
        pool.connection(),
        pool.connection(),
        pool.connection(),
        pytest.raises(Busy, match="nothing was written"),
        pool.connection(),
    ):
        pass
    assert len(some_sessions(pool, 3)) == 3
    pool.close()


def test_when_one_connection_is_lost_the_idle_ones_are_given_up_and_all_are_made_anew(
    pool: Pool,
) -> None:
    before = some_sessions(pool, 3)
    with pool.connection() as connection:
        Hangs._shut(connection.fileno())
        with pytest.raises(OperationalError):
            session(connection)
    after = some_sessions(pool, 3)
    assert len(after) == 3
    assert not after & before
    pool.close()


def test_where_no_connection_can_be_made_none_of_the_places_is_lost(pool: Pool) -> None:
    make, pool._new = pool._new, fails  # type: ignore[method-assign]
    for _ in range(5):
        with pytest.raises(OSError, match="no route"), pool.connection():
            pass
    pool._new = make  # type: ignore[method-assign]
    assert len(some_sessions(pool, 3)) == 3
    pool.close()


def fails() -> Any:
    raise OSError("no route")
