"""The parts of the system, in this process, each beside a bare client of its server."""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from threading import Event as Stop
from time import perf_counter
from typing import Any
from uuid import uuid4

import pika
import psycopg2
from pika.adapters.select_connection import SelectConnection
from pymongo import InsertOne

from eventcore.broker import Queue, RabbitMQ
from eventcore.event import NewEvent
from eventcore.feed import StoreFeed
from eventcore.observe import Health
from eventcore.projector import Folder, Projector, Sweep
from eventcore.readmodel import Mongo
from eventcore.relay import Pump, to_broker
from eventcore.settings import Server
from eventcore.store import Postgres, RelaySession, Stream, connect
from order.projections import orders

APPENDS, EVENTS, DOCUMENTS, WINDOW, BATCH = 500, 5000, 3000, 500, 500
PROJECTION = replace(orders.PROJECTION, queue="bench_queue", collection="bench")
QUEUE = Queue(PROJECTION.queue, PROJECTION.binding)
BARE_QUEUE = "bench_bare_queue"


def new_event() -> NewEvent:
    """An order as the order service writes it."""
    data = {"userId": str(uuid4()), "item": "Laptop", "price": 2500}
    return NewEvent(uuid4(), "ORDER_PLACED", 1, data)  # type: ignore[arg-type]


class Parts:
    """Append, relay and projector; every measure returns things done a second."""

    def __init__(
        self, service: Server, relay: Server, owner: Server, broker: Server, mongo: Server
    ) -> None:
        self._store = Postgres(service, connections=2)
        self._relay = relay
        self._owner = owner
        self._broker_server = broker
        self._broker = RabbitMQ(broker, name="bench", delivery_limit=20, queue_bytes=2**28)
        self._readmodel = Mongo(mongo)
        with connect(owner).connect() as connection:
            connection.exec_driver_sql("create table bare (id uuid primary key, data jsonb)")

    def pairs(self) -> Iterator[tuple[str, Callable[[], float], Callable[[], float]]]:
        """What to compare with what."""
        yield "append, 1 writer / bare INSERT and COMMIT", self.append, self.bare_insert
        yield "relay, a backlog / bare pika, window 500", self.relay, self.bare_publish
        yield "projector, a backlog / bare bulk_write", self.project, self.bare_bulk_write

    def close(self) -> None:
        """Give up the connections."""
        self._store.close()
        self._readmodel.close()

    def append(self) -> float:
        """Appends of one event to a new stream, one after the other."""
        began = perf_counter()
        for _ in range(APPENDS):
            self._store.append(Stream("order", uuid4()), 0, [new_event()], {"correlationId": "c"})
        return APPENDS / (perf_counter() - began)

    def bare_insert(self) -> float:
        """Single rows with a key and a JSON value, each in a transaction of its own."""
        owner = self._owner
        connection = psycopg2.connect(
            host=owner.host, port=owner.port, dbname=owner.name,
            user=owner.user, password=owner.password.read(),
        )  # fmt: skip
        connection.autocommit = True
        data = json.dumps({"userId": str(uuid4()), "item": "Laptop", "price": 2500})
        with connection.cursor() as cursor:
            began = perf_counter()
            for _ in range(APPENDS):
                cursor.execute("insert into bare values (%s, %s)", (str(uuid4()), data))
            took = perf_counter() - began
        connection.close()
        return APPENDS / took

    def relay(self) -> float:
        """A backlog from the feed to confirmed messages."""
        session = self._fill(EVENTS)
        publisher = self._broker.publisher([QUEUE], WINDOW)
        pump = Pump("bench", session, publisher)
        began = perf_counter()
        sent = 0
        while sent < EVENTS:
            sent += pump.turn()
        publisher.wait(EVENTS - 1, 30)
        took = perf_counter() - began
        _require(publisher.confirmed() == EVENTS, "every event is confirmed")
        publisher.close()
        self._note(session)
        self._purge()
        return EVENTS / took

    def bare_publish(self) -> float:
        """The same bytes from memory, with pika's asynchronous connection and nothing else."""
        last = self._store.settled()
        feed = self._store.read_feed(last - EVENTS, last, EVENTS)
        return BarePublisher(self._broker_server, [to_broker(e).body for e in feed]).run()

    def project(self) -> float:
        """A backlog in the queue to acknowledged, journaled documents."""
        session = self._fill(DOCUMENTS)
        publisher = self._broker.publisher([QUEUE], WINDOW)
        pump, sent = Pump("bench", session, publisher), 0
        while sent < DOCUMENTS:
            sent += pump.turn()
        publisher.wait(DOCUMENTS - 1, 30)
        publisher.close()
        self._note(session)
        collection = replace(PROJECTION, collection=f"bench_{uuid4().hex[:8]}")
        feed = StoreFeed(self._store, "order")
        folder = Folder(collection, self._readmodel, feed)
        projector = Projector(
            collection,
            self._readmodel,
            folder,
            Sweep(folder, collection, self._readmodel, feed, "bench", 60),
            lambda: self._broker.consumer(QUEUE, BATCH),
            Health(),
            batch=BATCH,
            sweep_interval=3600,
        )
        stop, done = Stop(), self._store.settled() - DOCUMENTS
        newest = self._store.read_feed(done, done + DOCUMENTS, DOCUMENTS)
        ids = [str(event.aggregate_id) for event in newest]
        began = perf_counter()
        while not folder.has_reached(ids[-1], 1):
            projector.consume(stop, wait=0.5)
        took = perf_counter() - began
        _require(
            len(self._readmodel.versions(collection.collection, ids)) == DOCUMENTS, "all there"
        )
        projector.disconnect()
        return DOCUMENTS / took

    def bare_bulk_write(self) -> float:
        """The same documents in bulks of 500, acknowledged by the journal of a majority."""
        documents = [
            {"_id": str(uuid4()), "version": 1, "userId": str(uuid4()), "item": "Laptop",
             "price": 2500, "status": "placed", "placedAt": "2026-01-16T10:00:00.000000Z"}
            for _ in range(DOCUMENTS)
        ]  # fmt: skip
        collection = self._readmodel._of(f"bare_{uuid4().hex[:8]}")  # pymongo's own, w: majority
        began = perf_counter()
        for start in range(0, DOCUMENTS, BATCH):
            some = [InsertOne(document) for document in documents[start : start + BATCH]]
            collection.bulk_write(some, ordered=False)
        took = perf_counter() - began
        return DOCUMENTS / took

    def _fill(self, count: int) -> RelaySession:
        """Append `count` orders, and a session whose checkpoint is just before them."""
        session = RelaySession(self._relay, "bench")
        session.move_checkpoint(self._store.settled())
        for _ in range(count // 50):
            # 50 events a transaction, each the first of its stream
            self._append_many(50)
        return session

    def _append_many(self, count: int) -> None:
        with connect(self._owner).connect() as connection:
            connection.exec_driver_sql(
                "select append_events('order', gen_random_uuid(), 0, array[gen_random_uuid()],"
                " array['ORDER_PLACED'], array[1], array[%s], '{\"correlationId\": \"c\"}')"
                " from generate_series(1, %s)",
                (json.dumps(new_event().data), count),
            )

    def _note(self, session: RelaySession) -> None:
        session.move_checkpoint(self._store.settled())
        session.close()

    def _purge(self) -> None:
        with _blocking(self._broker_server) as connection:
            connection.channel().queue_purge(QUEUE.name)


class BarePublisher:
    """pika's SelectConnection, a quorum queue, a window of unconfirmed messages."""

    def __init__(self, server: Server, bodies: list[bytes]) -> None:
        self._bodies = bodies
        self._sent = self._confirmed = 0
        self._took = 0.0
        self._channel: Any = None
        self._properties = pika.BasicProperties(
            content_type="application/json", delivery_mode=2, message_id=str(uuid4())
        )
        self._connection = SelectConnection(
            _parameters(server),
            on_open_callback=lambda c: c.channel(on_open_callback=self._on_channel),
            on_close_callback=lambda c, _: c.ioloop.stop(),
        )

    def run(self) -> float:
        """Messages confirmed a second."""
        self._connection.ioloop.start()
        _require(self._confirmed == len(self._bodies), "every message is confirmed")
        return len(self._bodies) / self._took

    def _on_channel(self, channel: Any) -> None:
        self._channel = channel
        arguments = {"x-queue-type": "quorum"}
        channel.queue_declare(
            BARE_QUEUE, durable=True, arguments=arguments, callback=self._on_queue
        )

    def _on_queue(self, _frame: Any) -> None:
        self._channel.confirm_delivery(self._on_confirm, callback=self._begin)

    def _begin(self, _frame: Any) -> None:
        self._took = -perf_counter()
        self._fill_window()

    def _fill_window(self) -> None:
        while self._sent < len(self._bodies) and self._sent - self._confirmed < WINDOW:
            self._channel.basic_publish("", BARE_QUEUE, self._bodies[self._sent], self._properties)
            self._sent += 1

    def _on_confirm(self, frame: Any) -> None:
        self._confirmed = frame.method.delivery_tag
        if self._confirmed < len(self._bodies):
            self._fill_window()
        elif self._took < 0:
            self._took += perf_counter()
            self._channel.queue_purge(BARE_QUEUE, callback=lambda _: self._connection.close())


def _parameters(server: Server) -> pika.ConnectionParameters:
    who = pika.PlainCredentials(server.user, server.password.read())
    return pika.ConnectionParameters(server.host, server.port, server.name, who)


def _blocking(server: Server) -> Any:
    return pika.BlockingConnection(_parameters(server))


def _require(condition: bool, what: str) -> None:
    if not condition:
        raise AssertionError(f"the work was not done: not {what}")
