"""Settling, without a database: a position counts once nobody who could be below it is left."""

from hypothesis import given
from hypothesis import strategies as st

from eventcore.store import Settling


def test_with_no_writers_everything_up_to_the_head_has_settled() -> None:
    assert Settling().observe(7, []) == 7


def test_a_head_settles_once_the_writers_seen_with_it_are_gone() -> None:
    settling = Settling()
    assert settling.observe(7, ["a", "b"]) == 0
    assert settling.observe(9, ["b", "c"]) == 0
    assert settling.observe(9, ["c", "d"]) == 7
    assert settling.observe(12, ["e"]) == 9


def test_it_never_goes_back() -> None:
    settling = Settling()
    settling.observe(7, [])
    assert settling.observe(9, ["a"]) == 7


@given(st.lists(st.tuples(st.integers(1, 3), st.booleans()), max_size=60))
def test_nothing_appears_below_what_has_settled(steps: list[tuple[int, bool]]) -> None:
    """Writers take the lock, draw positions, and commit in any order, one act a step."""
    settling = Settling()
    head, visible, settled = 0, set[int](), 0
    open_writers: dict[str, list[int]] = {}
    for number, (act, other) in enumerate(steps):
        if act == 1:
            open_writers[f"w{number}"] = []
        elif open_writers and act == 2:
            head += 1
            open_writers[list(open_writers)[-1 if other else 0]].append(head)
        elif open_writers:
            writer = list(open_writers)[-1 if other else 0]
            drawn = open_writers.pop(writer)
            assert all(position > settled for position in drawn)
            visible.update(drawn)
        settled = settling.observe(head, list(open_writers))
        assert settled <= head
