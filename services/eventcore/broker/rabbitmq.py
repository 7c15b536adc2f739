"""RabbitMQ as a broker: opens publishers, consumers and dead letters.

None of them reconnects: after BrokerUnavailable the caller closes it and opens another, which
declares the topology again.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import pika

from eventcore.broker.connection import BLOCKED_TIMEOUT, KEEPALIVE, tls_options
from eventcore.broker.consumer import BatchConsumer
from eventcore.broker.dead_letters import DeadLetters
from eventcore.broker.port import Queue
from eventcore.broker.publisher import ConfirmedPublisher
from eventcore.broker.topology import Topology
from eventcore.settings import Server


@dataclass(frozen=True, slots=True)
class RabbitMQ:
    """One virtual host of RabbitMQ 3.10 or later; `name` is its connections' name there.

    Each method opens a connection, declares the topology, and raises BrokerUnavailable.
    """

    server: Server
    name: str
    blocked_timeout: float = BLOCKED_TIMEOUT

    def publisher(self, queues: Sequence[Queue], window: int) -> ConfirmedPublisher:
        """A publisher that has up to `window` messages unconfirmed."""
        return ConfirmedPublisher(self._parameters(), Topology(queues), window)

    def consumer(self, queue: Queue, prefetch: int) -> BatchConsumer:
        """A consumer that has up to `prefetch` deliveries unacknowledged."""
        return BatchConsumer(self._parameters(), Topology([queue]), queue, prefetch)

    def dead_letters(self, queue: Queue) -> DeadLetters:
        """The dead letters of a queue; opens nothing yet."""
        return DeadLetters(self._parameters(), queue)

    def _parameters(self) -> pika.ConnectionParameters:
        server = self.server
        return pika.ConnectionParameters(
            host=server.host,
            port=server.port,
            virtual_host=server.name,
            credentials=pika.PlainCredentials(server.user, server.password.read()),
            ssl_options=tls_options(server) if server.tls else None,
            heartbeat=10,
            socket_timeout=3,
            stack_timeout=5,
            blocked_connection_timeout=self.blocked_timeout,
            client_properties={"connection_name": self.name},
            tcp_options=KEEPALIVE,
        )
