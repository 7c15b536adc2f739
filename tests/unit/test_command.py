"""Commands that meet on one stream."""

import threading
from concurrent.futures import ThreadPoolExecutor

from eventcore.command import _Turns


def test_one_after_another_on_one_stream_and_side_by_side_on_others() -> None:
    turns, together = _Turns(), threading.Barrier(4)
    inside, most = set[str](), []
    lock = threading.Lock()

    def on(stream: str) -> None:
        with turns.on(stream):
            with lock:
                assert stream not in inside
                inside.add(stream)
                most.append(len(inside))
            together.wait(10)  # so each of four streams has one inside at once
            with lock:
                inside.remove(stream)

    with ThreadPoolExecutor(12) as pool:
        for done in [pool.submit(on, stream) for stream in "abcd" * 3]:
            done.result()
    assert max(most) == 4
    assert not turns._turns


def test_nobody_waits_for_ever() -> None:
    turns = _Turns()
    turns.WAIT = 0.01
    with turns.on("a"), turns.on("a"):
        pass
    assert not turns._turns


def test_a_turn_ends_with_an_error() -> None:
    turns = _Turns()
    for _ in range(2):
        try:
            with turns.on("a"):
                raise KeyError
        except KeyError:
            assert not turns._turns
