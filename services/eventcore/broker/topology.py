"""Exchanges and quorum queues, and how they are declared.

Limits of queues (bytes, deliveries) are policies of the virtual host, which `provision` sets, so
that they can change under an existing queue.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from eventcore.broker.port import Queue

log = logging.getLogger(__name__)

EXCHANGE = "events"
"""The topic exchange that every event goes through."""

DEAD_LETTERS = "dead-letters"
"""The direct exchange for messages that are not events; its keys are names of queues.

It is not the default exchange, because a login that may publish there may publish to any queue.
"""

ADDED = ("x-reason", "x-routing-key")
"""The headers that a dead letter has beside its own."""

ChannelOperation = Callable[..., Any]
"""A method of a channel; takes a `callback` that is called when the broker has answered."""


@dataclass(slots=True)
class Topology:
    """Exchanges, queues, bindings and dead-letter queues; declared as often as needed."""

    queues: Sequence[Queue]
    _declaring: str = ""
    _accepted: set[str] = field(default_factory=set)

    def steps(self, channel: Any) -> Iterator[ChannelOperation]:
        """The declarations, to be made one after the other."""
        self._declaring = ""
        for name, kind in ((EXCHANGE, "topic"), (DEAD_LETTERS, "direct")):
            yield partial(channel.exchange_declare, name, exchange_type=kind, durable=True)
        for queue in self.queues:
            for name, exchange, key in (
                (queue.name, EXCHANGE, queue.binding),
                (queue.dead_letters, DEAD_LETTERS, queue.dead_letters),
            ):
                self._declaring = name
                yield partial(
                    channel.queue_declare,
                    name,
                    passive=name in self._accepted,
                    durable=True,
                    arguments={"x-queue-type": "quorum"},
                )
                yield partial(channel.queue_bind, name, exchange, key)

    def accept(self) -> bool:
        """Accepts the queue of the last declaration as it is; False if that did not help.

        RabbitMQ refuses to declare a queue of an earlier release, which has its limits as
        arguments (406). A passive declaration checks nothing but its existence.
        """
        name = self._declaring
        if not name or name in self._accepted:
            return False
        self._accepted.add(name)
        log.info("Queue exists with other arguments, used as it is", extra={"queue": name})
        return True
