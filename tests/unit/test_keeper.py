"""`make run` starts a process again that has ended, and ends all where one cannot start."""

import os
import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from honcho.printer import Message, Printer

from local import keeper
from local.child import CannotStart
from local.keeper import Keeper

STAYS = "echo here; exec sleep 100"


class Heard(Printer):  # type: ignore[misc]
    """Keeps the lines; `on_line` is called with each."""

    def __init__(self, on_line: Callable[[str], object]) -> None:
        super().__init__()
        self.lines = list[str]()
        self._on_line = on_line

    def write(self, message: Message) -> None:
        text = message.data if isinstance(message.data, str) else message.data.decode()
        self.lines.append(f"{message.name}: {text.strip()}")
        self._on_line(self.lines[-1])


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    before = {each: signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def stop(_: object = None) -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def test_a_process_that_is_killed_is_started_again_and_the_others_stay() -> None:
    begun = list[int]()

    def hear(line: str) -> None:
        if found := re.search(r"relay started \(pid (\d+)\)", line):
            begun.append(int(found[1]))
        if line == "relay: here":
            if len(begun) == 1:
                os.kill(begun[0], signal.SIGKILL)
            else:
                stop()

    heard = Heard(hear)
    kept = Keeper(heard, 0.2)
    kept.add("relay", STAYS, os.environ)
    kept.add("gateway", STAYS, os.environ)
    kept.run()
    assert "system: relay was ended by SIGKILL; it starts again in 0.2 s" in heard.lines
    assert len(begun) == 2
    assert heard.lines.count("gateway: here") == 1
    assert not any(Path(f"/proc/{pid}").exists() for pid in begun)


def test_each_pause_is_twice_the_one_before_and_short_after_a_steady_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def pauses(steady: float, count: int = 4) -> list[str]:
        monkeypatch.setattr(keeper, "STEADY", steady)
        found = list[str]()

        def hear(line: str) -> None:
            found.extend(re.findall(r"ended with status 0; it starts again in (.*) s", line))
            if len(found) == count:
                stop()

        kept = Keeper(Heard(hear), 0.02)
        kept.add("relay", "true", os.environ)
        kept.run()
        return found

    monkeypatch.setattr(keeper, "LONGEST_PAUSE", 0.05)
    assert pauses(60) == ["0.02", "0.04", "0.05", "0.05"]
    assert pauses(0) == ["0.02"] * 4


def test_an_error_at_the_first_start_ends_all_and_names_the_process() -> None:
    heard = Heard(lambda _: None)
    kept = Keeper(heard)
    kept.add("relay", "echo RABBITMQ_HOST is not set; exit 1", os.environ)
    kept.add("gateway", STAYS, os.environ)
    with pytest.raises(CannotStart, match=r"^relay cannot start"):
        kept.run()
    assert "relay: RABBITMQ_HOST is not set" in heard.lines
    assert "system: gateway was ended by SIGTERM" in heard.lines


def test_an_error_at_a_later_start_is_tried_again(tmp_path: Path) -> None:
    heard = Heard(lambda line: stop() if "status 3; it starts again" in line else None)
    kept = Keeper(heard, 0.01)
    mark = tmp_path / "mark"
    kept.add("relay", f"test -e {mark} && exit 3; touch {mark}; kill -9 $$", os.environ)
    kept.run()
    assert "system: relay ended with status 3; it starts again in 0.02 s" in heard.lines


def test_a_process_that_ignores_sigterm_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeper, "GRACE", 0.3)
    heard = Heard(lambda line: stop() if line == "relay: here" else None)
    kept = Keeper(heard)
    kept.add("relay", "trap '' TERM; echo here; while true; do sleep 0.1; done", os.environ)
    kept.run()
    assert heard.lines[-1] == "system: relay was ended by SIGKILL"
