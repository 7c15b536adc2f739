"""P11, and P23's projectors: what has no place in the others."""

import multiprocessing
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from os import getpid
from threading import Event as Stop
from typing import Any
from uuid import uuid4

import pymongo
from pymongo import InsertOne

from eventcore.broker import Queue, RabbitMQ
from eventcore.feed import StoreFeed
from eventcore.observe import Health
from eventcore.projector import Folder, Projector, Sweep
from eventcore.readmodel import Mongo
from eventcore.rebuild import begin
from eventcore.relay import to_broker
from eventcore.settings import Server
from eventcore.store import Postgres
from order.projections import orders
from tests.bench.backlog import Backlog
from tests.bench.bed import Bed, Size
from tests.bench.machine import memory_bytes
from tests.bench.rows import Figure, Row, Values, require
from tests.fakes.readmodel import FakeReadModel
from tests.fakes.store import FakeStore

BARE_BATCH = 500

QUEUE = Queue("bench_spread_queue", "order.#")

BATCH = 300


class Rebuilding:
    """Measures on a log of their own, of orders of which each second one is cancelled."""

    def __init__(self, bed: Bed, size: Size) -> None:
        self._bed = bed
        self._count = size.rebuilt
        self._spread = size.relayed
        self._said: Sequence[str] = ()

    def rows(self) -> Sequence[Row]:
        """The rows of this family."""
        return (
            Row(
                "P11", f"rebuild of {self._count:,} events", lambda: (self._rebuild()[0],),
                (Figure("events/s", reach=0.9, stretch=1.5),),
                f"bare `bulk_write` of the final documents, {BARE_BATCH} at once", self._write,
                notes=lambda: self._said,
            ),
            Row(
                "P11", "memory at the end of a rebuild / after its first tenth",
                lambda: (self._rebuild()[1],), (Figure("times", reach=1.1, at_most=True),),
                notes=lambda: self._said,
            ),
            Row(
                "P23", "3 projectors, documents kept in memory", lambda: self._project(3),
                (Figure("events/s"),), "1 projector", lambda: self._project(1), grows=3,
            ),
        )  # fmt: skip

    # ── P11 ───────────────────────────────────────────────────────────────────────────────

    def _rebuild(self) -> Values:
        """Events a second from the log to a whole new generation; and how memory grew.

        In a process of its own, as the tool is: this one holds what it compares with.
        """
        told = self._backlog.login, self._bed.readmodel("rebuild")
        with multiprocessing.get_context("spawn").Pool(1) as process:
            took, documents, memory = process.apply(_rebuilt, told)
        require(documents == self._backlog.count, f"{self._backlog.count} not {documents}")
        events = self._backlog.count + self._backlog.cancelled
        self._said = (
            f"{events:,} events of {self._backlog.count:,} orders; {memory[0] / 2**20:.0f} MiB"
            f" after a tenth of them, {max(memory) / 2**20:.0f} at most,"
            f" {memory[-1] / 2**20:.0f} at the end. The stand-in for MongoDB bounds the amount.",
        )
        return events / took, memory[-1] / memory[0]

    def _write(self) -> Values:
        """The documents that a rebuild ends with, under the same indexes, and nothing else."""
        name = f"final_{uuid4().hex[:8]}"
        self._bed.mongo.prepare(name, orders.PROJECTION.indexes)
        collection = self._bed.bare_collection(name)
        documents = self._documents()
        began = time.perf_counter()
        for start in range(0, len(documents), BARE_BATCH):
            some = [InsertOne(document) for document in documents[start : start + BARE_BATCH]]
            collection.bulk_write(some, ordered=False)
        took = time.perf_counter() - began
        require(count(collection) == len(documents), "all documents are there")
        return (len(documents) / took,)

    def _documents(self) -> list[Any]:
        streams: dict[str, list[Any]] = {}
        for event in self._backlog.events:
            streams.setdefault(str(event.aggregate_id), []).append(event)
        folded = (orders.PROJECTION.fold(events) for events in streams.values())
        return [dict(each) for each in folded if each]

    @cached_property
    def _backlog(self) -> Backlog:
        return Backlog(self._bed, "rebuildbench", self._count * 2 // 3, cancels=True)

    # ── P23 ───────────────────────────────────────────────────────────────────────────────

    def _project(self, projectors: int) -> Values:
        """A full queue, so many projectors in processes of their own, and no server behind them."""
        broker = _broker(self._bed.rabbitmq.address)
        messages = [to_broker(event) for event in self._spread_backlog.events]
        processes = multiprocessing.get_context("spawn")
        applied, begin_all = processes.Value("q", 0), processes.Event()
        ready = processes.Barrier(projectors + 1)
        told = (self._bed.rabbitmq.address, ready, begin_all, applied, len(messages))
        children = [processes.Process(target=_projector, args=told) for _ in range(projectors)]
        for child in children:
            child.start()
        ready.wait(60)
        publisher = broker.publisher([QUEUE], 1000)
        publisher.publish(messages)
        while publisher.wait(len(messages) - 1, 30) < len(messages):
            pass
        publisher.close()
        began = time.perf_counter()
        begin_all.set()
        for child in children:
            child.join(120)
        took = time.perf_counter() - began
        codes = [child.exitcode for child in children]
        require(codes == [0] * projectors, f"all projectors end well: {codes}")
        require(applied.value == len(messages), f"{len(messages)} events are applied once")
        return (len(messages) / took,)

    @cached_property
    def _spread_backlog(self) -> Backlog:
        return Backlog(self._bed, "spreadbench", self._spread)


def count(collection: Any) -> int:
    """Of all its documents, however long that takes."""
    with pymongo.timeout(120):
        return int(collection.count_documents({}))


def _rebuilt(store: Server, readmodel: Server) -> tuple[float, int, list[int]]:
    """Seconds, documents, and bytes of memory from the first tenth on, of one whole rebuild."""
    model, log = Mongo(readmodel), Postgres(store, 2)
    projection = replace(orders.PROJECTION, name=f"orders-{uuid4().hex[:8]}")
    build = begin(projection, model, StoreFeed(log, "order"), "bench", time.sleep)
    memory: list[int] = []

    def tell(position: int, until: int) -> None:
        if position > until / 10:
            memory.append(memory_bytes(getpid()))

    began = time.perf_counter()
    build.fold(tell)
    took = time.perf_counter() - began
    documents = count(model._of(build.generation.collection))
    model.close()
    log.close()
    return took, documents, memory


def _projector(server: Server, ready: Any, begin_all: Any, applied: Any, wanted: int) -> None:
    """A projector with its documents in memory, until all of them together have applied all."""
    readmodel = FakeReadModel()
    feed = StoreFeed(FakeStore(), "order")
    folder = Folder(orders.PROJECTION, readmodel, feed)
    projector = Projector(
        orders.PROJECTION, readmodel, folder,
        Sweep(folder, orders.PROJECTION, readmodel, feed, "bench", 60),
        lambda: _broker(server).consumer(QUEUE, BATCH),
        Health(), batch=BATCH, sweep_interval=3600,
    )  # fmt: skip
    documents = readmodel.collections[orders.PROJECTION.collection]
    ready.wait(60)
    begin_all.wait(60)
    stop, known = Stop(), 0
    deadline = time.monotonic() + 100
    while applied.value < wanted and time.monotonic() < deadline:
        projector.consume(stop, wait=0.05)
        with applied.get_lock():
            applied.value += len(documents) - known
        known = len(documents)
    projector.disconnect()


def _broker(server: Server) -> RabbitMQ:
    return RabbitMQ(server, name="bench")
