"""The ports of the broker, and the values that go through them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias

from eventcore.model.message import Message

Decision: TypeAlias = Literal["keep", "requeue", "discard"]
"""The decision about a dead letter."""


@dataclass(frozen=True, slots=True)
class Queue:
    """A projection's queue and the routing keys it is bound with, such as `user.#`."""

    name: str
    binding: str

    @property
    def dead_letters(self) -> str:
        """The queue for messages that are not events; only a projector publishes to it."""
        return f"{self.name}.dead-letters"


@dataclass(frozen=True, slots=True)
class Delivery:
    """A message that was taken and is not acknowledged yet."""

    tag: int
    message: Message
    redelivered: bool


class Publisher(Protocol):
    """Publishes in order, with a window of unconfirmed messages."""

    @property
    def returned(self) -> int:
        """Number of messages that came back because no queue was bound for them."""

    def publish(self, messages: Sequence[Message]) -> None:
        """Sends messages; returns as soon as the window has room for the last of them.

        A message that cannot be routed is sent again a few times, with the topology
        declared again, then left to the sweep. Raises BrokerUnavailable.
        """

    def confirmed(self) -> int:
        """Number of messages that are confirmed, from the first on, without a gap.

        Raises BrokerUnavailable after a lost connection, a refusal (nack), or too long a silence.
        """

    def wait(self, more_than: int, timeout: float) -> int:
        """Waits until more than that are confirmed, or `timeout` seconds; returns `confirmed()`.

        Raises BrokerUnavailable as `confirmed` does.
        """

    def close(self) -> None:
        """Closes the connection."""


class Consumer(Protocol):
    """Takes messages from one queue, in batches; several consumers may share a queue."""

    def take(self, limit: int, wait: float) -> list[Delivery]:
        """Takes up to `limit` deliveries; waits up to `wait` seconds for the first."""

    def acknowledge(self, delivery: Delivery) -> None:
        """Acknowledges it and everything taken before it, in one `multiple` ack."""

    def dead_letter(self, delivery: Delivery, reason: str) -> None:
        """Publishes it unchanged to the dead-letter queue; returns once that is confirmed."""

    def depths(self) -> tuple[int, int] | None:
        """Messages ready in the queue and among its dead letters; None: the broker has not said so
        since the last call. It is asked every few seconds; this does not wait.
        """

    def pause(self) -> None:
        """Stops deliveries; those that were not taken yet go back to the queue."""

    def resume(self) -> None:
        """Starts deliveries again."""

    def close(self) -> None:
        """Closes the connection; unacknowledged deliveries go back to the queue."""
