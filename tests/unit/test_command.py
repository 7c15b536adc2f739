"""Commands that meet on one stream."""

import threading
from concurrent.futures import ThreadPoolExecutor
from uuid import uuid4

import pytest

from eventcore import command
from eventcore.command import _one_at_a_time


def test_one_after_another_on_one_stream_and_side_by_side_on_others() -> None:
    streams = [uuid4() for _ in range(4)]
    while len({hash(each) % len(command._STREAM_LOCKS) for each in streams}) < 4:
        streams = [uuid4() for _ in range(4)]  # two of them share a lock
    together = threading.Barrier(4)
    inside, most = set[object](), []
    lock = threading.Lock()

    def on(stream: object) -> None:
        with _one_at_a_time(stream):
            with lock:
                assert stream not in inside
                inside.add(stream)
                most.append(len(inside))
            together.wait(10)  # so each of four streams has one inside at once
            with lock:
                inside.remove(stream)

    with ThreadPoolExecutor(12) as pool:
        for done in [pool.submit(on, stream) for stream in streams * 3]:
            done.result()
    assert max(most) == 4


def test_nobody_waits_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "_LOCK_WAIT", 0.01)
    stream = uuid4()
    with _one_at_a_time(stream), _one_at_a_time(stream):
        pass
    with _one_at_a_time(stream):
        pass


def test_a_lock_is_released_after_an_error() -> None:
    stream = uuid4()
    with pytest.raises(KeyError), _one_at_a_time(stream):
        raise KeyError
    lock = command._STREAM_LOCKS[hash(stream) % len(command._STREAM_LOCKS)]
    assert lock.acquire(blocking=False)
    lock.release()
