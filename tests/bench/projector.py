"""P9: the projector with a backlog, beside bare pymongo."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from threading import Event as Stop
from time import perf_counter
from typing import Any
from uuid import uuid4

from pymongo import InsertOne

from eventcore.broker.port import Queue
from eventcore.broker.rabbitmq import RabbitMQ
from eventcore.model.projection import Projection
from eventcore.observe.health import Health
from eventcore.project.applier import EventApplier
from eventcore.project.projector import Projector
from eventcore.project.sweep import Sweep
from eventcore.readmodel.mongo import Mongo
from eventcore.readmodel.records import Write
from eventcore.relay import to_broker
from eventcore.store.feed import StoreFeed
from order.projections import orders
from tests.bench.backlog import Backlog
from tests.bench.bed import Bed, Size
from tests.bench.machine import Spent
from tests.bench.rows import Row, Values, require

BATCH = 300
"""Deliveries that are folded at once, as the system's own default has it."""

BARE_BATCH = 500

QUEUE = Queue("bench_projector_queue", "order.#")


class Projecting:
    """Measures on a queue and collections of their own."""

    def __init__(self, bed: Bed, size: Size) -> None:
        self._bed = bed
        self._count = size.projected
        self._spent = ""

    def rows(self) -> Sequence[Row]:
        """The rows of this family."""
        return (
            Row(
                "P9", f"projector, backlog of {self._count:,}", self._project,
                beside=f"bare pymongo `bulk_write` of {BARE_BATCH}", ceiling=self._write,
                notes=lambda: (self._spent,),
            ),
        )  # fmt: skip

    def _project(self) -> Values:
        """Events a second, from the queue to acknowledged, journaled documents."""
        broker = RabbitMQ(self._bed.rabbitmq.address, name="bench")
        self._fill(broker)
        readmodel = _Counting(self._bed.readmodel("bench"))
        projection = replace(orders.PROJECTION, collection=f"orders_{uuid4().hex[:8]}")
        projector = self._projector(projection, readmodel, broker)
        stop = Stop()
        while readmodel.written == 0:  # connecting is not measured
            projector.consume(stop, wait=0.5)
        first = readmodel.written
        began, spent = perf_counter(), Spent()
        while readmodel.written < self._count:
            projector.consume(stop, wait=0.5)
        took, done = perf_counter() - began, self._count - first
        self._spent = spent.each(done, "an event, projector and benchmark being one process")
        projector.disconnect()
        there = self._bed.bare_collection(projection.collection).count_documents({})
        require(there == self._count, f"{self._count} documents are there, not {there}")
        readmodel.close()
        return (done / took,)

    def _projector(self, projection: Projection, readmodel: Mongo, broker: RabbitMQ) -> Projector:
        feed = StoreFeed(self._backlog.store, "order")
        applier = EventApplier(projection, readmodel, feed)
        return Projector(
            applier,
            Sweep(applier, "bench", 60),
            lambda: broker.consumer(QUEUE, BATCH),
            Health(),
            batch=BATCH,
            sweep_interval=3600,
        )

    def _write(self) -> Values:
        """The same documents, in bulks, acknowledged by the journal of a majority."""
        documents = self._documents()
        name = f"bare_{uuid4().hex[:8]}"
        collection = self._bed.bare_collection(name)
        began = perf_counter()
        for start in range(0, len(documents), BARE_BATCH):
            some = [InsertOne(document) for document in documents[start : start + BARE_BATCH]]
            collection.bulk_write(some, ordered=False)
        took = perf_counter() - began
        require(collection.count_documents({}) == len(documents), "all documents are there")
        return (len(documents) / took,)

    def _documents(self) -> list[Any]:
        folded = (orders.PROJECTION.fold([event]) for event in self._backlog.events)
        return [dict(each) for each in folded if each]

    def _fill(self, broker: RabbitMQ) -> None:
        """Put the whole backlog into the queue."""
        publisher = broker.publisher([QUEUE], 1000)
        publisher.publish([to_broker(event) for event in self._backlog.events])
        while publisher.wait(self._count - 1, 30) < self._count:
            pass
        publisher.close()

    @cached_property
    def _backlog(self) -> Backlog:
        return Backlog(self._bed, "projectbench", self._count)


class _Counting(Mongo):
    """A read model that counts the documents that it has written."""

    written = 0

    def write(self, collection: str, writes: Sequence[Write]) -> bool:
        """See Mongo."""
        done = super().write(collection, writes)
        self.written += len(writes)
        return done
