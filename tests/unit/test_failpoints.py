"""Points between two steps: nothing happens at them unless a file says so."""

import os
import signal
from multiprocessing import get_context
from pathlib import Path

from eventcore.failpoints import failpoint


def test_without_a_folder_nothing_happens_at_any_point(tmp_path: Path) -> None:
    (tmp_path / "relay:published").touch()
    failpoint("relay:published", "")
    failpoint("relay:published")
    assert (tmp_path / "relay:published").exists()


def test_a_process_dies_at_the_point_that_is_armed_and_only_once(tmp_path: Path) -> None:
    (tmp_path / "relay:published").touch()

    def lives(exit_code: int) -> None:
        process = get_context("fork").Process(target=_passes, args=(str(tmp_path),))
        process.start()
        process.join(20)
        assert process.exitcode == exit_code

    lives(-signal.SIGKILL)
    assert os.listdir(tmp_path) == []
    lives(0)


def _passes(folder: str) -> None:
    failpoint("relay:read", folder)
    failpoint("relay:published", folder)
