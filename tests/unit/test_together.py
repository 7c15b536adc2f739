"""Appends that come at once share a transaction, and each learns what became of it."""

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from time import monotonic, sleep
from typing import Any

import pytest

from eventcore.errors import StoreAway
from eventcore.store import Together

LIMIT = 10
"""Seconds for what takes milliseconds."""


class Log:
    """What was appended, one or many at a time; `held` until it may go on."""

    def __init__(self) -> None:
        self.together = Together(self.append)
        self.alone: list[int] = []
        self.batches: list[list[int]] = []
        self.refused: set[int] = set()
        self.fails: BaseException | None = None
        self.held = threading.Event()
        self.held.set()
        self.waits = threading.Semaphore(0)

    def append(self, values: Sequence[Any]) -> list[int]:
        numbers = [number for (number,) in values]
        self.batches.append(numbers)
        if self.fails:
            raise self.fails
        return [place for place, number in enumerate(numbers, 1) if number not in self.refused]

    def take(self, number: int) -> tuple[bool, bool]:
        """Append one; whether it went along with others, and whether that is unknown."""
        with self.together.turn((number,)) as turn:
            if not turn.is_done:
                self.waits.release()
                assert self.held.wait(LIMIT)
                self.alone.append(number)
            return turn.is_done, turn.outcome_unknown

    def gather(self, pool: ThreadPoolExecutor, count: int) -> list[Any]:
        """As many as may be under way, which are held; and `count` that gather behind them."""
        self.held.clear()
        first = [pool.submit(self.take, -n) for n in range(Together.UNDER_WAY)]
        for _ in first:
            assert self.waits.acquire(timeout=LIMIT)
        others = []
        for number in range(1, count + 1):
            others.append(pool.submit(self.take, number))
            until = monotonic() + LIMIT
            while len(self.together._gathered) < number:
                assert monotonic() < until
                sleep(0.001)
        self.held.set()
        for each in first:
            each.result(LIMIT)
        return [each.result(LIMIT) for each in others]


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> Log:
    monkeypatch.setattr(Together, "UNDER_WAY", 1)
    return Log()


def test_one_at_a_time_goes_alone(log: Log) -> None:
    assert [log.take(number) for number in range(5)] == [(False, False)] * 5
    assert log.batches == []
    assert log.alone == [0, 1, 2, 3, 4]


def test_those_that_gather_go_together_and_in_order(log: Log) -> None:
    with ThreadPoolExecutor(40) as pool:
        found = log.gather(pool, 30)
    assert found == [(True, False)] * 30
    assert log.batches == [list(range(1, 31))]
    assert log.alone == [0]


def test_what_is_not_taken_goes_alone(log: Log) -> None:
    log.refused = {2, 3}
    with ThreadPoolExecutor(20) as pool:
        found = log.gather(pool, 5)
    assert found == [(True, False), (False, False), (False, False), (True, False), (True, False)]
    assert sorted(log.alone) == [0, 2, 3]


def test_where_it_fails_each_goes_alone_and_may_be_there_already(log: Log) -> None:
    log.fails = StoreAway("the connection broke")
    with ThreadPoolExecutor(20) as pool:
        found = log.gather(pool, 5)
    assert found == [(False, True)] * 5
    assert sorted(log.alone) == [0, 1, 2, 3, 4, 5]


def test_nobody_waits_for_one_that_dies(log: Log) -> None:
    log.fails = SystemExit()
    with ThreadPoolExecutor(20) as pool, pytest.raises(SystemExit):
        log.gather(pool, 5)
    log.fails = None
    assert log.take(9) == (False, False)
    assert log.together._under_way == 0


def test_no_more_than_its_most_goes_at_once(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Together, "MOST", 4)
    with ThreadPoolExecutor(40) as pool:
        found = log.gather(pool, 30)
    assert [len(batch) for batch in log.batches] == [4] * 7 + [2]
    assert found == [(True, False)] * 30


def test_all_are_appended_once_where_several_are_under_way(
    log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Together, "UNDER_WAY", 3)
    with ThreadPoolExecutor(40) as pool:
        log.gather(pool, 30)
    batched = [number for batch in log.batches for number in batch]
    assert sorted([*batched, *log.alone]) == list(range(-2, 31))
    assert log.together._under_way == 0
