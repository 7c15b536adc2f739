"""How gathered lines are written: whole, as a pipe takes them, and not too many of them late."""

import io
import logging
import threading
from select import PIPE_BUF

from hypothesis import given
from hypothesis import strategies as st

from eventcore.observe import _Gathering, _pieces

LINE = st.builds(
    lambda letter, length: letter * length + "\n",
    st.sampled_from("aé€😀"),
    st.integers(0, PIPE_BUF),
)


@given(st.lists(LINE, max_size=12))
def test_pieces_are_whole_lines_that_a_pipe_takes_at_once(lines: list[str]) -> None:
    pieces = list(_pieces(lines))
    assert "".join(pieces) == "".join(lines)
    for piece in pieces:
        assert len(piece.encode()) <= PIPE_BUF or piece.count("\n") == 1
        assert piece.endswith("\n") or not lines


def record(message: str) -> logging.LogRecord:
    return logging.makeLogRecord({"msg": message, "levelno": logging.INFO})


class Writes(io.RawIOBase):
    """Keeps what each call of the system would write."""

    def __init__(self) -> None:
        self.made: list[bytes] = []

    def writable(self) -> bool:
        return True

    def write(self, data: object) -> int:
        self.made.append(bytes(data))  # type: ignore[call-overload]
        return len(self.made[-1])


def test_each_write_is_of_whole_lines_and_few_are_needed() -> None:
    writes = Writes()
    handler = _Gathering(io.TextIOWrapper(io.BufferedWriter(writes), "utf-8"))
    handler.MOMENT = 60  # none is written before we say so
    for number in range(1_000):
        handler.emit(record(f"line {number:03}"))
    handler.flush()
    assert b"".join(writes.made) == b"".join(b"line %03d\n" % n for n in range(1_000))
    assert all(len(each) <= PIPE_BUF and each.endswith(b"\n") for each in writes.made)
    assert len(writes.made) < 5


class Stuck(Writes):
    """Takes nothing until somebody reads."""

    def __init__(self) -> None:
        super().__init__()
        self.asked, self.released = threading.Event(), threading.Event()

    def write(self, data: object) -> int:
        self.asked.set()
        assert self.released.wait(60)
        return super().write(data)


def test_while_nobody_reads_so_many_lines_wait_at_most() -> None:
    writes = Stuck()
    handler = _Gathering(io.TextIOWrapper(io.BufferedWriter(writes), "utf-8"))
    handler.MOST = 50

    def talk() -> None:
        for number in range(200):
            handler.emit(record(str(number)))

    talking = threading.Thread(target=talk)
    talking.start()
    try:
        assert writes.asked.wait(30)
        talking.join(0.2)  # long enough for thousands of lines
        assert talking.is_alive()
        assert len(handler._lines) <= handler.MOST
    finally:
        writes.released.set()
    talking.join(30)
    handler.flush()
    assert b"".join(writes.made) == b"".join(b"%d\n" % n for n in range(200))
