"""Faults of RabbitMQ: killed, emptied, its connections closed, refusing what is published."""

from collections.abc import Iterator
from contextlib import contextmanager

import pika.exceptions

from eventcore import jsontext
from eventcore.broker.topology import EXCHANGE
from eventcore.model.event import Event, to_message
from tests.chaos.fault import Scene, Unmet, until
from tests.chaos.system import PROJECTIONS
from tests.chaos.truth import QUEUES, Log
from tests.chaos.witness import QUEUE as WITNESS


@contextmanager
def killed(scene: Scene) -> Iterator[str]:
    """kill -9 of the whole node."""
    scene.system.rabbitmq.kill()
    yield "RabbitMQ killed"
    scene.system.rabbitmq.start()


@contextmanager
def emptied(scene: Scene) -> Iterator[str]:
    """Queues purged, deleted, unbound; the virtual host re-created."""
    how = scene.turn("purged", "deleted", "unbound", "reset")
    if how == "reset":
        ctl = scene.system.rabbitmq.ctl
        ctl("delete_vhost", "/")
        ctl("add_vhost", "/")
        ctl("set_permissions", "-p", "/", "shop", ".*", ".*", ".*")
        yield "the virtual host re-created"
        return
    with scene.system.channel() as channel:
        for projection, _, _ in PROJECTIONS:
            if how == "purged":
                channel.queue_purge(projection.queue)
            elif how == "deleted":
                channel.queue_delete(projection.queue)
            else:
                channel.queue_unbind(projection.queue, EXCHANGE, projection.binding)
    yield f"queues {how}"


@contextmanager
def closed(scene: Scene) -> Iterator[str]:
    """All connections, or all channels, are closed by the broker."""
    if scene.number % 2 == 0:
        scene.system.rabbitmq.ctl("close_all_connections", "maintenance")
        yield "all connections closed"
        return
    shut = "[exit(C, kill) || C <- rabbit_channel:list()], ok."
    scene.system.rabbitmq.ctl("eval", shut)
    yield "all channels closed"


@contextmanager
def alarmed(scene: Scene) -> Iterator[str]:
    """A memory alarm: publishers are blocked."""
    scene.system.rabbitmq.ctl("set_vm_memory_high_watermark", "0")
    yield "publishers blocked by a memory alarm"
    scene.system.rabbitmq.ctl("set_vm_memory_high_watermark", "0.4")


@contextmanager
def refused(scene: Scene) -> Iterator[str]:
    """Messages are nacked, by a full queue beside ours; or returned, for nothing is bound."""
    if scene.number % 2 == 0:
        with scene.system.channel() as channel:
            full = {"x-max-length": 1, "x-overflow": "reject-publish"}
            channel.queue_declare("chaos-full", arguments=full)
            channel.queue_bind("chaos-full", EXCHANGE, "#")
        yield "messages nacked"
        with scene.system.channel() as channel:
            channel.queue_delete("chaos-full")
        return
    with scene.system.channel() as channel:
        for projection, _, _ in PROJECTIONS:
            channel.queue_unbind(projection.queue, EXCHANGE, projection.binding)
        channel.queue_unbind(WITNESS, EXCHANGE, "#")
    yield "messages returned: nothing is bound"
    with scene.system.channel() as channel:
        channel.queue_bind(WITNESS, EXCHANGE, "#")


@contextmanager
def repeated(scene: Scene) -> Iterator[str]:
    """Everything again: some streams ten times over, all shuffled, the last hour once more."""
    log = Log(scene.system)
    log.read()
    how = scene.turn("10 times", "shuffled", "again in order")
    events = log.all()[-2000:]
    if how == "10 times":
        streams = {str(e.aggregate_id) for e in scene.chance.sample(events, min(20, len(events)))}
        events = [e for e in events if str(e.aggregate_id) in streams] * 10
    if how != "again in order":
        scene.chance.shuffle(events)
    with scene.system.channel() as channel:
        for event in events:
            channel.basic_publish(EXCHANGE, event.routing_key, jsontext.render(to_message(event)))
    yield f"{len(events)} messages published {how}"


@contextmanager
def poisoned(scene: Scene) -> Iterator[str]:
    """Publishes messages that are no valid events straight into a projection's queue."""
    how = scene.turn("not JSON", "unknown type", "wrong schema", "10 MB", "NUL", "10 ahead")
    log = Log(scene.system)
    log.read()
    queue = QUEUES[scene.number % 2]
    event = scene.chance.choice(log.events["user" if queue == QUEUES[0] else "order"])
    body = _poison(how, event, _last(log, event))
    with scene.system.channel() as channel:
        channel.confirm_delivery()
        before = _depth(channel, f"{queue}.dead-letters")
        channel.basic_publish("", queue, body)
        if how != "wrong schema":  # an event that was applied is known, whatever this says of it
            until(
                lambda: _depth(channel, f"{queue}.dead-letters") > before, 20,
                f"{how} is a dead letter",
            )  # fmt: skip
    yield f"{how} in {queue}"


def _poison(how: str, event: Event, last: int) -> bytes:
    message = to_message(event)
    text = jsontext.render(message)
    match how:
        case "not JSON":
            return b"{ no json"
        case "unknown type":
            return jsontext.render({**message, "aggregateType": "parcel"})
        case "wrong schema":
            return jsontext.render({**message, "schemaVersion": 99})
        case "10 MB":
            return b'"' + b"x" * 10_000_000 + b'"'
        case "NUL":
            return text[:-1] + b"\x00}"
        case "10 ahead":
            return jsontext.render({**message, "version": last + 10})
    raise Unmet(how)


def _last(log: Log, event: Event) -> int:
    its = log.events[event.aggregate_type]
    return max(e.version for e in its if e.aggregate_id == event.aggregate_id)


def _depth(channel: pika.adapters.blocking_connection.BlockingChannel, queue: str) -> int:
    count: int = channel.queue_declare(queue, passive=True).method.message_count
    return count
