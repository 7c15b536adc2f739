"""Steps of three protocols at which a link can be cut: a question was heard, its answer is lost."""

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Step:
    """A step of a protocol: the question as the client sends it, and the answer to be lost."""

    question: re.Pattern[bytes]
    answer: re.Pattern[bytes]


COMMITTED = Step(re.compile(rb"append_events\("), re.compile(rb"SELECT 1\x00Z"))
"""PostgreSQL has committed an append, and its CommandComplete is lost."""

CONFIRMED = Step(
    re.compile(rb"\x00\x3c\x00\x28"), re.compile(rb"\x01\x00\x01\x00\x00\x00\x0d\x00\x3c\x00\x50")
)
"""RabbitMQ has taken a message (basic.publish), and its confirm (basic.ack) is lost."""

WRITTEN = Step(
    re.compile(rb"\x02(insert|update)\x00....(orders|users|known_users)", re.DOTALL),
    re.compile(rb".", re.DOTALL),
)
"""MongoDB has done a bulk, and its reply is lost."""

VIEW_WRITTEN = Step(re.compile(rb"\x02(insert|update)\x00....customers", re.DOTALL), WRITTEN.answer)
"""The same, of a bulk of the view."""
