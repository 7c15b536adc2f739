"""Dead letters: listed, requeued, discarded."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pika
from pika.exceptions import AMQPError, ChannelClosedByBroker

from eventcore.broker.connection import cause_of, to_properties
from eventcore.broker.consumer import to_delivery
from eventcore.broker.port import Decision, Queue
from eventcore.broker.topology import ADDED, DEAD_LETTERS
from eventcore.errors import BrokerUnavailable, Misconfigured
from eventcore.model.message import Message


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A message that the projector refused; `id` is unique within one listing."""

    id: str
    message: Message
    reason: str
    routing_key: str


@dataclass(frozen=True, slots=True)
class DeadLetters:
    """Lists, requeues and discards dead letters of one queue, for an operator's tool."""

    parameters: pika.ConnectionParameters
    queue: Queue

    def go_through(self, decide: Callable[[DeadLetter], Decision], limit: int = 10_000) -> int:
        """Reads up to `limit` letters, oldest first, and does as decided; returns their number.

        "keep" leaves a letter where it is; "requeue" publishes it to the work queue, confirmed,
        and then removes it; "discard" removes it. Raises BrokerUnavailable, Misconfigured.
        """
        try:
            with pika.BlockingConnection(self.parameters) as connection:
                return self._go_through(connection.channel(), decide, limit)
        except ChannelClosedByBroker as error:
            raise Misconfigured(f"RabbitMQ refused: {error.reply_text}") from error
        except AMQPError as error:
            raise BrokerUnavailable(f"RabbitMQ cannot be reached: {cause_of(error)}") from error

    def _go_through(
        self, channel: Any, decide: Callable[[DeadLetter], Decision], limit: int
    ) -> int:
        work, name = self.queue.name, self.queue.dead_letters
        there = channel.queue_declare(name, passive=True).method.message_count
        channel.queue_bind(work, DEAD_LETTERS, work)
        channel.confirm_delivery()
        seen = 0
        while seen < min(there, limit):
            method, properties, body = channel.basic_get(name)
            if method is None:
                break
            seen += 1
            message = to_delivery(method, properties, body).message
            name_of = f"{seen}-{hashlib.sha256(body).hexdigest()[:8]}"
            reason, key = (message.headers.get(each, "") for each in ADDED)
            letter = DeadLetter(name_of, message, reason, key)
            decision = decide(letter)
            if decision == "requeue":
                headers = {k: v for k, v in message.headers.items() if k not in ADDED}
                again = to_properties(message.id, headers)
                channel.basic_publish(DEAD_LETTERS, work, body, again, mandatory=True)
            if decision != "keep":
                channel.basic_ack(method.delivery_tag)
        channel.basic_nack(0, multiple=True, requeue=True)  # the rest goes back to its place
        return seen
