"""The chaos suite in short: six rows of its table, on a system of its own."""

from collections.abc import Iterator

import pytest

from tests.chaos.fault import Fault
from tests.chaos.faults import FAULTS, SHORT
from tests.chaos.run import Run, started

SEED = "short"
ROWS = [fault for fault in FAULTS if fault.row in SHORT]


@pytest.fixture(scope="module")
def run() -> Iterator[Run]:
    with started(SEED, rate=30, warm_up=3, slack=10) as run:
        yield run


@pytest.mark.timeout(300)
@pytest.mark.parametrize("fault", ROWS, ids=[f"row {fault.row}" for fault in ROWS])
def test_nothing_is_lost_doubled_or_diverged_by(run: Run, fault: Fault) -> None:
    result = run.row(fault, SHORT[fault.row])
    assert result.wrong == []
    assert len(result.times) == SHORT[fault.row]
    assert result.counts("A")["acknowledged"] > 10
    assert result.counts("E")["documents"] > 10


@pytest.mark.timeout(300)
def test_in_the_end_both_logs_and_all_documents_are_right(run: Run) -> None:
    assert [text for finding in run.whole() for text in finding.wrong] == []
