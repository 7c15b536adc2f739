"""Settling, without a database: an event counts once no writer that could be below it is left."""

from hypothesis import given
from hypothesis import strategies as st

from eventcore.model.event import START, Mark
from eventcore.store.settling import Settling


def at(position: int, life: str = "first") -> Mark:
    return Mark(position, f"{life} {position}") if position else START


def test_with_no_writers_everything_up_to_the_head_has_settled() -> None:
    assert Settling().observe(at(7), []) == at(7)


def test_a_head_settles_once_the_writers_seen_with_it_are_gone() -> None:
    settling = Settling()
    assert settling.observe(at(7), ["a", "b"]) == START
    assert settling.observe(at(9), ["b", "c"]) == START
    assert settling.observe(at(9), ["c", "d"]) == at(7)
    assert settling.observe(at(12), ["e"]) == at(9)


def test_it_stays_while_writers_are_at_work() -> None:
    settling = Settling()
    settling.observe(at(7), [])
    assert settling.observe(at(9), ["a"]) == at(7)


def test_the_settled_event_goes_back_with_a_restored_log() -> None:
    settling = Settling()
    settling.observe(at(9), [])
    assert settling.observe(at(5), [], same=False) == at(5)


def test_after_a_restore_a_writer_below_the_old_head_is_waited_for() -> None:
    """Position 8 was settled, and 9 watched; another life of the log draws 8 anew."""
    settling = Settling()
    settling.observe(at(8), [])
    settling.observe(at(9), ["gone with the server"])
    assert settling.observe(at(9, "second"), ["draws 8"], same=False) == START
    assert settling.observe(at(9, "second"), []) == at(9, "second")


@given(st.lists(st.tuples(st.integers(1, 3), st.booleans()), max_size=60))
def test_nothing_appears_below_what_has_settled(steps: list[tuple[int, bool]]) -> None:
    """Writers take the lock, draw positions, and commit in any order, one act a step.

    The head is the last event that is visible, while later positions may have been drawn.
    """
    settling = Settling()
    drawn, visible, settled = 0, set[int](), START
    open_writers: dict[str, list[int]] = {}
    for number, (act, other) in enumerate(steps):
        if act == 1:
            open_writers[f"w{number}"] = []
        elif open_writers and act == 2:
            drawn += 1
            open_writers[list(open_writers)[-1 if other else 0]].append(drawn)
        elif open_writers:
            writer = list(open_writers)[-1 if other else 0]
            committed = open_writers.pop(writer)
            assert all(position > settled.position for position in committed)
            visible.update(committed)
        head = max(visible, default=0)
        settled = settling.observe(at(head), list(open_writers))
        assert settled.position <= head
