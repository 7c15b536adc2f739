"""Rules of a user's credit: given events, when a command, then events."""

from decimal import Decimal
from functools import reduce
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventcore import jsontext
from user.credit import (
    Credit,
    CreditCommand,
    Release,
    Reserve,
    decide,
    evolve,
    from_json,
    to_json,
)
from user.events import CreditEvent, CreditRefused, CreditReleased, CreditReserved

TEN = Decimal(10)
RESERVED = CreditReserved("a", TEN)
REFUSED = CreditRefused("a", TEN, "too much")
RELEASED = CreditReleased("a", TEN)
VOID = CreditReleased("a")


def after(*events: CreditEvent) -> Credit:
    return reduce(evolve, events, Credit())


@pytest.mark.parametrize("limit", [None, TEN, Decimal("10.00"), Decimal(11)])
def test_an_amount_within_the_limit_is_reserved(limit: Decimal | None) -> None:
    assert decide(Reserve("a", TEN, limit), Credit()) == [RESERVED]


def test_an_amount_above_what_is_left_is_refused_with_the_reason() -> None:
    refused = decide(Reserve("b", Decimal("10.50"), Decimal("20.49")), after(RESERVED))
    reason = "The price, 10.50, is above the credit that is left: 10.49."
    assert refused == [CreditRefused("b", Decimal("10.50"), reason)]


def test_a_lowered_limit_takes_nothing_away_and_reserves_nothing_more() -> None:
    credit = after(RESERVED)
    [refused] = decide(Reserve("b", Decimal("0.01"), Decimal(5)), credit)
    assert isinstance(refused, CreditRefused)
    assert refused.reason.endswith("is left: 0.")
    assert evolve(credit, refused).live == {"a": TEN}


@pytest.mark.parametrize(
    "history", [[RESERVED], [REFUSED], [VOID], [RESERVED, RELEASED], [REFUSED, VOID]]
)
def test_a_repeated_reservation_appends_nothing_whatever_the_limit(
    history: list[CreditEvent],
) -> None:
    for limit in (None, Decimal(0)):
        assert decide(Reserve("a", TEN, limit), after(*history)) == []


@pytest.mark.parametrize(
    ("history", "events"),
    [
        ([], [VOID]), ([RESERVED], [RELEASED]), ([REFUSED], [VOID]), ([VOID], []),
        ([RESERVED, RELEASED], []), ([REFUSED, VOID], []),
    ],
)  # fmt: skip
def test_a_release_has_one_answer_whatever_came_before(
    history: list[CreditEvent], events: list[CreditEvent]
) -> None:
    assert decide(Release("a"), after(*history)) == events


def test_what_is_released_can_be_reserved_by_another_order() -> None:
    assert decide(Reserve("b", TEN, TEN), after(RESERVED, RELEASED)) == [CreditReserved("b", TEN)]


class Model:
    """A plain account of what each order has been answered."""

    def __init__(self) -> None:
        self.answers: dict[str, Decimal | None] = {}

    def expected(self, command: CreditCommand) -> type[CreditEvent] | None:
        known, id = command.order_id in self.answers, command.order_id
        if isinstance(command, Release):
            done = self.answers.get(f"{id} released")
            self.answers[f"{id} released"] = self.answers[id] = Decimal(0)
            return None if done is not None else CreditReleased
        if known:
            return None
        is_within = command.limit is None or self.reserved + command.amount <= command.limit
        self.answers[id] = command.amount if is_within else Decimal(0)
        return CreditReserved if is_within else CreditRefused

    @property
    def reserved(self) -> Decimal:
        return sum(filter(None, self.answers.values()), Decimal(0))


orders = st.sampled_from(["a", "b", "ab", "ba", *(str(UUID(int=n)) for n in range(3))])
money = st.decimals(0, 20, places=2)


@given(
    st.lists(
        st.one_of(st.builds(Reserve, orders, money, st.none() | money), st.builds(Release, orders)),
        max_size=40,
    )
)
def test_after_any_commands_the_credit_is_that_of_a_plain_account(
    commands: list[CreditCommand],
) -> None:
    credit, model, freed = Credit(), Model(), Decimal(0)
    for command in commands:
        events = decide(command, credit)
        expected = model.expected(command)
        assert [type(event) for event in events] == ([expected] if expected else [])
        for event in events:
            credit = evolve(credit, event)
            if isinstance(event, CreditReserved):
                assert isinstance(command, Reserve)
                assert command.limit is None or credit.reserved <= command.limit
            freed += (isinstance(event, CreditReleased) and event.amount) or 0
        assert credit.reserved == model.reserved >= 0
        assert from_json(jsontext.parse(jsontext.render(to_json(credit)))) == credit
        assert decide(command, credit) == [], "a repeat appends nothing"
