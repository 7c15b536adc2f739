"""What is written to a pipe at once: whole lines, and no more than the pipe takes in one."""

from select import PIPE_BUF

from hypothesis import given
from hypothesis import strategies as st

from eventcore.observe import _pieces

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
    assert len(pieces) <= len(lines) + (not lines)
