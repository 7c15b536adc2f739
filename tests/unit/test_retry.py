"""Once a server was not there for some calls, the next are told at once, but for one that tries."""

from dataclasses import dataclass

import pytest

from eventcore.errors import Conflict, Overloaded, StoreSlow, StoreUnavailable
from eventcore.retry import FAILURES, PAUSE, CircuitBreaker


@dataclass
class Clock:
    now: float = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def circuit(clock: Clock) -> CircuitBreaker:
    return CircuitBreaker(clock)


def fail(circuit: CircuitBreaker, error: Exception) -> bool:
    """Whether the call was made at all."""
    made = []

    def call() -> None:
        with circuit.call():
            made.append(True)
            raise error

    with pytest.raises(type(error)):
        call()
    return bool(made)


def is_open(circuit: CircuitBreaker) -> bool:
    return not fail(circuit, StoreUnavailable("gone"))


def open_it(circuit: CircuitBreaker) -> None:
    for _ in range(FAILURES):
        assert fail(circuit, StoreUnavailable("gone"))


def test_some_failures_in_a_row_open_it_and_the_next_caller_hears_why(
    circuit: CircuitBreaker,
) -> None:
    open_it(circuit)
    with pytest.raises(StoreUnavailable, match="gone"), circuit.call():
        raise AssertionError("it was asked")


def test_a_success_in_between_keeps_it_closed(circuit: CircuitBreaker) -> None:
    for _ in range(FAILURES):
        for _ in range(FAILURES - 1):
            assert fail(circuit, StoreUnavailable("gone"))
        with circuit.call():
            pass


def test_after_a_pause_one_call_tries_and_the_others_are_told(
    circuit: CircuitBreaker, clock: Clock
) -> None:
    open_it(circuit)
    clock.now += PAUSE
    with circuit.call():  # still on its way
        assert is_open(circuit)
    with circuit.call():
        pass


def test_a_try_that_fails_opens_it_again(circuit: CircuitBreaker, clock: Clock) -> None:
    open_it(circuit)
    clock.now += PAUSE
    assert fail(circuit, StoreUnavailable("gone"))
    assert is_open(circuit)


@pytest.mark.parametrize("error", [Conflict("c"), ValueError("v")])
def test_an_error_that_is_an_answer_counts_as_one(
    circuit: CircuitBreaker, error: Exception
) -> None:
    for _ in range(FAILURES):
        for _ in range(FAILURES - 1):
            assert fail(circuit, StoreUnavailable("gone"))
        fail(circuit, error)
    assert not is_open(circuit)


@pytest.mark.parametrize("error", [Overloaded("b"), StoreSlow("s")])
def test_a_server_that_is_slow_or_a_full_pool_do_not_open_it(
    circuit: CircuitBreaker, error: Exception
) -> None:
    for _ in range(5 * FAILURES):
        assert fail(circuit, error)


def test_a_full_pool_does_not_close_it(circuit: CircuitBreaker, clock: Clock) -> None:
    open_it(circuit)
    clock.now += PAUSE
    assert fail(circuit, Overloaded("all connections wait"))
    assert is_open(circuit)
