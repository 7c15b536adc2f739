"""A witness of every message: a queue beside the projections', bound to everything.

It remembers the order in which the versions of each stream were delivered for the first time.
"""

import json
import threading
from collections import defaultdict

from pika.exceptions import AMQPError

from eventcore.broker.topology import EXCHANGE
from tests.chaos.system import System

QUEUE = "chaos-witness"


class Witness(threading.Thread):
    """Takes from its queue until told to stop, whatever happens to the broker meanwhile."""

    def __init__(self, system: System) -> None:
        super().__init__(daemon=True)
        self._system = system
        self._enough = threading.Event()
        self._lock = threading.Lock()
        self._first: defaultdict[str, list[int]] = defaultdict(list)
        self._seen: set[tuple[str, int]] = set()
        self.deliveries = 0
        self.bound = threading.Event()

    def first_deliveries(self) -> dict[str, list[int]]:
        """The versions of each stream, in the order of their first deliveries."""
        with self._lock:
            return {stream: list(versions) for stream, versions in self._first.items()}

    def stop(self) -> None:
        self._enough.set()
        self.join(20)

    def run(self) -> None:
        while not self._enough.is_set():
            try:
                self._take()
            except (AMQPError, OSError):
                self.bound.clear()
                self._enough.wait(0.2)

    def _take(self) -> None:
        with self._system.channel() as channel:
            channel.exchange_declare(EXCHANGE, exchange_type="topic", durable=True)
            channel.queue_declare(QUEUE, durable=True)
            channel.queue_bind(QUEUE, EXCHANGE, "#")
            self.bound.set()
            for _, _, body in channel.consume(QUEUE, auto_ack=True, inactivity_timeout=0.2):
                if body is not None:
                    self._note(body)
                elif channel.is_closed or self._enough.is_set():
                    return

    def _note(self, body: bytes) -> None:
        try:
            message = json.loads(body)
            place = f"{message['aggregateType']} {message['aggregateId']}", int(message["version"])
        except (ValueError, KeyError, TypeError):
            return  # poison, which we send ourselves
        with self._lock:
            self.deliveries += 1
            if place not in self._seen:
                self._seen.add(place)
                self._first[place[0]].append(place[1])
