"""Two orders at once for the last of a user's credit, on a real PostgreSQL: one of them gets it."""

from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from threading import Barrier
from uuid import UUID, uuid4

from eventcore.command import Call
from eventcore.errors import Conflict, Unavailable
from eventcore.ids import new_id
from eventcore.project.reacting import StoreCommands
from eventcore.store.port import Stream
from eventcore.store.postgres import Postgres
from tests.flow.test_credit_reactor import requested
from user.credit_reactor import REACTOR
from user.events import UserCreated, UserCreditLimitChanged
from user.user import DECIDER as USERS
from user.user import ChangeCreditLimit

TIMES = 1000

AT_ONCE = 8
"""Threads; an even number, since two wait for each other."""

TRIES = 50
"""How often a reaction that met a conflict or an overload is carried out again, at most."""


def create_user(store: Postgres, limit: Decimal) -> UUID:
    user_id, events = (
        new_id(),
        (UserCreated("Ada", "ada@example.com"), UserCreditLimitChanged(limit)),
    )
    user_id, new = new_id(), [USERS.to_new_event(event, uuid4()) for event in events]
    store.append(Stream("user", user_id), 0, new, {})
    return user_id


def reserve(store: Postgres, user_id: UUID, order_id: str, amount: Decimal) -> None:
    """Reacts to a saga's request, again after a conflict or an overload, as its process does."""
    event = requested("STEP_REQUESTED", user_id, order_id, amount)
    for _ in range(TRIES):
        try:
            REACTOR.on["STEP_REQUESTED"](StoreCommands(store, Call({})), event)
            return
        except (Conflict, Unavailable):
            continue
    raise AssertionError(f"{order_id} was not carried out in {TRIES} tries")


def answers(store: Postgres, user_id: UUID) -> list[str]:
    return [event.event_type for event in store.read_stream(Stream("credit", user_id))]


def test_of_two_orders_for_the_last_credit_exactly_one_gets_it_each_time(store: Postgres) -> None:
    amount = Decimal("19.99")

    def race(given: tuple[UUID, str, Barrier]) -> None:
        user_id, order_id, start = given
        start.wait(timeout=20)
        reserve(store, user_id, order_id, amount)

    with ThreadPoolExecutor(AT_ONCE) as pool:
        users = [*pool.map(lambda _: create_user(store, amount), range(TIMES))]
        pairs = [(user, Barrier(2)) for user in users]
        list(pool.map(race, [(user, id, start) for user, start in pairs for id in ("a", "b")]))
        found = [*pool.map(lambda user: answers(store, user), users)]
    assert found == TIMES * [["CREDIT_RESERVED", "CREDIT_REFUSED"]]


def test_a_limit_that_is_lowered_meanwhile_is_never_exceeded(store: Postgres) -> None:
    """Whatever is first: the reservation is in the log before the lower limit, or it is refused."""

    def lower(user_id: UUID, start: Barrier) -> None:
        start.wait(timeout=20)
        StoreCommands(store, Call({})).handle(USERS, user_id, ChangeCreditLimit(Decimal(1)))

    def order(user_id: UUID, start: Barrier) -> None:
        start.wait(timeout=20)
        reserve(store, user_id, "a", Decimal(2))

    outcomes = set()
    with ThreadPoolExecutor(2) as pool:
        for _ in range(25):
            user_id, start = create_user(store, Decimal(2)), Barrier(2)
            for run in (pool.submit(lower, user_id, start), pool.submit(order, user_id, start)):
                run.result()
            [answer] = store.read_stream(Stream("credit", user_id))
            lowered = store.read_stream(Stream("user", user_id))[-1]
            assert lowered.data == {"limit": 1}
            is_first = answer.position < lowered.position
            assert answer.event_type == ("CREDIT_RESERVED" if is_first else "CREDIT_REFUSED")
            outcomes.add(answer.event_type)
    assert outcomes
