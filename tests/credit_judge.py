"""Finds whatever is wrong with the credit of users, in the logs of both services.

It shares no code with the services: it knows the types of the events, and what they must add up to.
"""

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from decimal import Decimal
from typing import Any, TypeAlias

from eventcore.model.event import Event
from eventcore.store.port import Store

Log: TypeAlias = Mapping[tuple[str, str], Sequence[Event]]
"""The events of each stream, by aggregate type and id."""

OUTCOMES: Mapping[tuple[str, ...], Collection[str]] = {
    ("ORDER_CONFIRMED",): {"done"},
    ("ORDER_CONFIRMED", "ORDER_CANCELLED"): {"cancelled"},
    ("ORDER_CANCELLED",): {"cancelled"},
    ("ORDER_REJECTED",): {"refused", "failed"},
}
"""The events that may follow the first one of a pending order, and how its saga may end then."""

ONCE = ("STEP_DONE", "STEP_REFUSED", "STEP_COMPENSATED", "CANCEL_REQUESTED")
"""The events that a saga of one step has at most once."""


def read_log(store: Store) -> Log:
    """All events of a store that have settled."""
    position, settled = 0, store.settled()
    log = dict[tuple[str, str], list[Event]]()
    while page := store.read_feed(position, settled):
        for event in page:
            log.setdefault((event.aggregate_type, str(event.aggregate_id)), []).append(event)
        position = page[-1].position
    return log


def orders_of(users: Collection[str], orders: Log) -> dict[str, Sequence[Event]]:
    """The orders of these users, by id."""
    return {
        id: events
        for (kind, id), events in orders.items()
        if kind == "order" and events[0].data["userId"] in users
    }


def unended(users: Collection[str], orders: Log) -> set[str]:
    """The orders of these users whose saga has not ended."""
    return {
        id
        for id in orders_of(users, orders)
        if (saga := orders.get(("order_saga", id))) and saga[-1].event_type != "SAGA_ENDED"
    }


def wrong(users: Collection[str], orders: Log, credits: Log) -> Iterator[str]:
    """All that is wrong, once every saga has ended; `credits` is the log of the user service."""
    for id, order in orders_of(users, orders).items():
        saga = orders.get(("order_saga", id), ())
        story = [event.event_type for event in (*order, *saga)]
        if error := _wrong_order(order, saga):
            yield f"order {id}: {error}: {story}"
    for user in users:
        for error in _wrong_credit(user, orders, credits):
            yield f"user {user}: {error}"


def _wrong_order(order: Sequence[Event], saga: Sequence[Event]) -> str:
    following = tuple(event.event_type for event in order[1:])
    if order[0].event_type != "ORDER_PLACED":
        return "it does not begin with ORDER_PLACED"
    if not order[0].data.get("pending"):
        is_right = not saga and following in ((), ("ORDER_CANCELLED",))
        return "" if is_right else "it never was pending, and has a saga or an outcome"
    if not saga or saga[-1].event_type != "SAGA_ENDED":
        return "its saga has not ended"
    if following not in OUTCOMES:
        return "it has no outcome, or more than one"
    outcome = saga[-1].data["outcome"]
    counts = Counter(event.event_type for event in saga)
    if outcome not in OUTCOMES[following] or (outcome == "done" and counts["CANCEL_REQUESTED"]):
        return f"its saga ended {outcome}"
    doubled = [name for name in ONCE if counts[name] > 1]
    return f"doubled: {doubled}" if doubled else ""


def _wrong_credit(user: str, orders: Log, credits: Log) -> Iterator[str]:
    reserved = dict[str, Decimal]()
    answers, releases = Counter[str](), Counter[str]()
    for event in credits.get(("credit", user), ()):
        order = event.data["orderId"]
        amount: Any = event.data.get("amount")
        if event.event_type == "CREDIT_RELEASED":
            releases[order] += 1
            if reserved.pop(order, None) != amount:
                yield f"{order} is released with {amount}, which was not reserved"
            continue
        answers[order] += 1
        if event.event_type == "CREDIT_RESERVED":
            reserved[order] = amount
            limit = _limit_at(event.position, credits[("user", user)])
            if limit is not None and sum(reserved.values()) > limit:
                yield f"{order} raises what is reserved to {sum(reserved.values())} of {limit}"
    for counts in (answers, releases):
        if doubled := [order for order, count in counts.items() if count > 1]:
            yield f"doubled: {doubled}"
    own = orders_of([user], orders)
    asked = {id for id in own if ("order_saga", id) in orders}
    if answers.keys() != asked or releases.keys() - asked:
        yield f"its credit answered {answers}, released {releases}, its sagas are {asked}"
    confirmed = {
        id: own[id][0].data["price"] for id in asked if own[id][-1].event_type == "ORDER_CONFIRMED"
    }
    if reserved != confirmed:
        yield f"reserved is {reserved}, its confirmed orders are {confirmed}"


def _limit_at(position: int, user: Sequence[Event]) -> Any:
    """The limit in force at a position of the log; None: unlimited."""
    changes = [e for e in user if e.event_type == "USER_CREDIT_LIMIT_CHANGED"]
    before = [e.data.get("limit") for e in changes if e.position < position]
    return before[-1] if before else None
