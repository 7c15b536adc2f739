"""An event survives its way through a message, exactly; what is no event is refused."""

from datetime import UTC, datetime
from decimal import Decimal
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventcore import jsontext
from eventcore.errors import NotAnEvent
from eventcore.model.event import Event, from_message, to_message

prices = st.decimals(min_value=0, max_value=Decimal("9999999999.99"), places=2)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


def event(data: dict[str, object]) -> Event:
    return Event(
        position=7,
        event_id=UUID(int=1),
        aggregate_type="order",
        aggregate_id=UUID(int=2),
        version=3,
        event_type="ORDER_PLACED",
        schema_version=1,
        data=data,
        metadata={"correlationId": "c"},
        recorded_at=datetime(2026, 1, 16, 10, 0, 0, 123456, UTC),
    )


@given(prices, texts)
def test_an_event_is_the_same_after_a_journey(price: Decimal, text: str) -> None:
    sent = event({"price": price, "item": text})
    received = from_message(jsontext.parse(jsontext.render(to_message(sent))))
    assert received == sent
    assert str(received.data["price"]) == str(price)


def test_the_routing_key_is_type_then_rest_in_lower_case() -> None:
    assert event({}).routing_key == "order.placed"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("specVersion", 2),
        ("eventId", "no uuid"),
        ("version", 0),
        ("version", True),
        ("version", "1"),
        ("position", -1),
        ("data", []),
        ("recordedAt", "yesterday"),
        ("recordedAt", "2026-01-16T10:00:00"),
        ("aggregateType", ""),
        ("eventType", "X" * 201),
    ],
)
def test_a_message_with_a_wrong_field_is_no_event(field: str, value: object) -> None:
    with pytest.raises(NotAnEvent, match=field):
        from_message({**to_message(event({})), field: value})


@pytest.mark.parametrize("message", [None, 3, "text", [], {}])
def test_json_of_another_shape_is_no_event(message: object) -> None:
    with pytest.raises(NotAnEvent):
        from_message(message)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        b"NaN",
        b'{"a":Infinity}',
        b'"\\ud800"',
        b'"\xff"',
        b"[" * 65_000,
        b"1" * 5_000,
        b"{'a':1}",
    ],
)
def test_what_is_no_json_is_refused_with_a_reason(text: bytes) -> None:
    with pytest.raises(ValueError, match="JSON"):
        jsontext.parse(text)
