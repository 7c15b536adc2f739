"""P9, P33: the projector with a backlog, beside bare pymongo; a view and rebuilds beside it."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from threading import Event as Stop
from time import perf_counter, sleep
from typing import Any
from uuid import uuid4

from pymongo import InsertOne

from eventcore.broker.port import Queue
from eventcore.broker.rabbitmq import RabbitMQ
from eventcore.model.projection import Projection
from eventcore.model.view import AnyProjection, View
from eventcore.observe.health import Health
from eventcore.operate.rebuilding import begin
from eventcore.project.applier import EventApplier
from eventcore.project.parts import Feeds
from eventcore.project.projector import Projector
from eventcore.project.sweep import Sweep
from eventcore.project.view_applier import ViewApplier
from eventcore.project.view_projector import PartSweep
from eventcore.readmodel.mongo import Mongo
from eventcore.readmodel.records import Write
from eventcore.relay import to_broker
from eventcore.retry import retry
from eventcore.store.feed import StoreFeed
from order.projections import customers, orders
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
        self._spent = self._halves = ""

    def rows(self) -> Sequence[Row]:
        """The rows of this family."""
        return (
            Row(
                "P9", f"projector, backlog of {self._count:,}", self._project,
                beside=f"bare pymongo `bulk_write` of {BARE_BATCH}", ceiling=self._write,
                notes=lambda: (self._spent,),
            ),
            Row(
                "P33", f"view, backlog of {self._count:,}, a document each", self._fold_apart,
                beside="projector with the same backlog (P9)", ceiling=self._project,
            ),
            Row(
                "P33", f"view, backlog of {self._count:,} of one document", self._fold_together,
                notes=lambda: (self._halves,),
            ),
            Row(
                "P33", f"rebuild of a view, {self._count:,} events", self._rebuild_view,
                beside="rebuild of a projection", ceiling=self._rebuild_projection,
            ),
        )  # fmt: skip

    def _project(self) -> Values:
        """Events a second, from the queue to acknowledged, journaled documents."""
        broker = RabbitMQ(self._bed.new_broker(), name="bench")
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

    def _fold_apart(self) -> Values:
        """Events a second, from the feed to journaled documents: as many as the projector has."""
        return self._fold(_apart(), self._count)

    def _fold_together(self) -> Values:
        """The same, of one customer: a page of the feed writes one document."""
        return self._fold(_of_orders(customers.VIEW), 1)

    def _fold(self, view: View, documents: int) -> Values:
        readmodel, name = Mongo(self._bed.readmodel("bench")), f"view_{uuid4().hex[:8]}"
        view = replace(view, name=name, collection=name, indexes=())  # as P9 has none
        applier = ViewApplier(view, readmodel, self._feed, store="order")
        sweep, half = PartSweep(applier, "bench", 60), 0.0
        readmodel.ping()  # connecting is not measured
        began, events = perf_counter(), self._backlog.events
        while retry(sweep.run, 60):  # the stand-in may be late on a busy machine
            if not half and sweep.checkpoint().position >= events[len(events) // 2].position:
                half = perf_counter() - began
        took = perf_counter() - began
        self._halves = f"the first half took {half:.2f} s, the second {took - half:.2f} s"
        self._require_orders(name, documents)
        readmodel.close()
        return (self._count / took,)

    def _rebuild_view(self) -> Values:
        """Events a second of a rebuild, without its comparison."""
        return self._rebuild(_apart(), {"order": self._feed})

    def _rebuild_projection(self) -> Values:
        return self._rebuild(orders.PROJECTION, self._feed)

    def _rebuild(self, projection: AnyProjection, feeds: Feeds) -> Values:
        readmodel, name = Mongo(self._bed.readmodel("bench")), f"rebuilt_{uuid4().hex[:8]}"
        projection = replace(projection, name=name, collection=name)
        build = begin(projection, readmodel, feeds, "bench", sleep)
        began = perf_counter()
        build.fold(lambda _, __: None)
        took = perf_counter() - began
        there = self._bed.bare_collection(build.generation.collection).count_documents({})
        require(there == self._count, f"{self._count} documents are there, not {there}")
        readmodel.close()
        return (self._count / took,)

    def _require_orders(self, collection: str, documents: int) -> None:
        found = list(self._bed.bare_collection(collection).find())
        there = sum(each["orders"] for each in found)
        require(len(found) == documents, f"{documents} documents are there, not {len(found)}")
        require(there == self._count, f"{self._count} are folded, not {there}")

    @property
    def _feed(self) -> StoreFeed:
        return StoreFeed(self._backlog.store, "order")

    def _projector(self, projection: Projection, readmodel: Mongo, broker: RabbitMQ) -> Projector:
        applier = EventApplier(projection, readmodel, self._feed)
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


def _of_orders(view: View) -> View:
    """The view, folded from the orders' log alone."""
    return replace(view, on={"order": view.on["order"]})


def _apart() -> View:
    """The view of customers with a document for each order, as the projection of orders has."""
    view = _of_orders(customers.VIEW)
    placed = replace(view.on["order"]["ORDER_PLACED"], keys=lambda event: [str(event.aggregate_id)])
    return replace(view, on={"order": {**view.on["order"], "ORDER_PLACED": placed}})


class _Counting(Mongo):
    """A read model that counts the documents that it has written."""

    written = 0

    def write(self, collection: str, writes: Sequence[Write]) -> bool:
        """See Mongo."""
        done = super().write(collection, writes)
        self.written += len(writes)
        return done
