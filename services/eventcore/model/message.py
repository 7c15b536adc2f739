"""A message, as the broker carries it."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Message:
    """A message; `id` is the event's id, `headers` carry the traceparent."""

    id: str
    routing_key: str
    body: bytes
    headers: Mapping[str, str]
