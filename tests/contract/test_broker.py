"""The contract of a broker, tested on the one in memory and on RabbitMQ.

Each test has queues of its own and a site: the broker, and ways to do it harm. RabbitMQ
stands behind a proxy that can cut connections, or keep them open and let nothing through.
"""

import os
import select
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from time import monotonic, sleep
from typing import Any, Protocol
from uuid import uuid4

import pika
import pytest

from eventcore.broker import rabbitmq
from eventcore.broker.port import Consumer, Delivery, Publisher, Queue
from eventcore.broker.topology import EXCHANGE
from eventcore.errors import BrokerUnavailable
from eventcore.model.message import Message
from eventcore.settings import Secret, Server
from local.servers import RabbitMQ as Node
from tests.fakes.broker import FakeBroker

WINDOW = 50

OURS = {"traceparent", "x-reason", "x-routing-key"}
"""Headers that we send; a quorum queue adds one of its own."""


class Site(Protocol):
    """A broker, a queue of this test's own, and harm."""

    queue: Queue

    @property
    def broker(self) -> FakeBroker | rabbitmq.RabbitMQ:
        """The one under test."""

    def delete(self, queue: str) -> None:
        """Delete a queue."""

    def cut(self) -> None:
        """Break all connections."""

    def fall_silent(self) -> None:
        """Keep the connections there are, and answer nothing any more."""

    def contents(self, queue: str) -> list[Message]:
        """What is in a queue; takes it out."""


@dataclass
class FakeSite:
    """Nothing but memory."""

    queue: Queue
    broker: FakeBroker = field(default_factory=FakeBroker)

    def delete(self, queue: str) -> None:
        self.broker.delete(queue)

    def cut(self) -> None:
        self.broker.cut()

    def fall_silent(self) -> None:
        self.broker.silent = True

    def contents(self, queue: str) -> list[Message]:
        found = [message for message, _ in self.broker.queues[queue]]
        self.broker.purge(queue)
        return found


class RealSite:
    """A node of RabbitMQ behind a proxy, and a second connection straight to it."""

    def __init__(self, node: Server, queue: Queue) -> None:
        self.queue = queue
        self.proxy = Proxy((node.host, node.port))
        self.server = replace(node, port=self.proxy.port)
        self.broker = rabbitmq_at(self.server)
        self.direct = pika.BlockingConnection(
            pika.ConnectionParameters(
                host=node.host,
                port=node.port,
                credentials=pika.PlainCredentials(node.user, node.password.read()),
            )
        )
        self.channel = self.direct.channel()

    def delete(self, queue: str) -> None:
        self.channel.queue_delete(queue)

    def cut(self) -> None:
        self.proxy.cut()

    def fall_silent(self) -> None:
        self.proxy.silent = True

    def contents(self, queue: str) -> list[Message]:
        found: list[Message] = []
        while True:
            method, properties, body = self.channel.basic_get(queue, auto_ack=True)
            if method is None:
                return found
            headers = {name: value for name, value in properties.headers.items() if name in OURS}
            found.append(Message(properties.message_id, method.routing_key, body, headers))

    def close(self) -> None:
        for queue in (self.queue.name, self.queue.dead_letters):
            self.channel.queue_delete(queue)
        self.direct.close()
        self.proxy.close()


class Proxy:
    """Passes bytes between a port of its own and a server, until told otherwise."""

    def __init__(self, target: tuple[str, int]) -> None:
        self.silent = False
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._pairs: dict[socket.socket, socket.socket] = {}
        self._is_closed = False
        self._thread = threading.Thread(target=self._run, name="proxy")
        self._thread.start()

    def cut(self) -> None:
        """Both ends of each connection see a reset."""
        for end in list(self._pairs):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def drop_all(self) -> None:
        """Forget what was passed on; waits until both ends are closed here."""
        self.silent = False
        self.cut()
        until = monotonic() + 5
        while self._pairs and monotonic() < until:
            sleep(0.01)

    def close(self) -> None:
        self._is_closed = True
        self._thread.join()
        for end in [*self._pairs, self._listener]:
            end.close()

    def _run(self) -> None:
        while not self._is_closed:
            watched = [self._listener, *([] if self.silent else self._pairs)]
            readable, _, _ = select.select(watched, [], [], 0.02)
            for end in readable:
                if end is self._listener:
                    self._accept()
                elif end in self._pairs and not self.silent:
                    self._pass_on(end)

    def _accept(self) -> None:
        near, _ = self._listener.accept()
        far = socket.create_connection(self._target)
        self._pairs |= {near: far, far: near}

    def _pass_on(self, end: socket.socket) -> None:
        other = self._pairs[end]
        try:
            data = end.recv(65536)
            other.sendall(data)
        except OSError:
            data = b""
        if not data:
            for each in (end, other):
                del self._pairs[each]
                each.close()


def rabbitmq_at(server: Server, **changes: Any) -> rabbitmq.RabbitMQ:
    settings: dict[str, Any] = {
        "name": "test",
        "blocked_timeout": 2,
    }
    return rabbitmq.RabbitMQ(server, **{**settings, **changes})


def own_queue() -> Queue:
    """A queue that no other test has, for routing keys that no other test uses."""
    name = f"test-{uuid4().hex}"
    return Queue(name, f"{name}.#")


@pytest.fixture(params=["fake", pytest.param("real", marks=pytest.mark.servers)])
def site(request: pytest.FixtureRequest) -> Iterator[Site]:
    if request.param == "fake":
        yield FakeSite(own_queue())
    else:
        yield request.getfixturevalue("real")


@pytest.fixture
def real(rabbitmq: Node) -> Iterator[RealSite]:
    """RabbitMQ, for what the one in memory has no part in."""
    with closing(RealSite(rabbitmq.address, own_queue())) as site:
        yield site


Opener = Callable[..., Any]


@pytest.fixture
def opened() -> Iterator[Opener]:
    """Closes what a test has opened."""
    with ExitStack() as stack:
        yield lambda connection: stack.enter_context(closing(connection))


@pytest.fixture
def publisher(site: Site, opened: Opener) -> Publisher:
    found: Publisher = opened(site.broker.publisher([site.queue], WINDOW))
    return found


@pytest.fixture
def consumer(site: Site, opened: Opener) -> Consumer:
    found: Consumer = opened(site.broker.consumer(site.queue, prefetch=100))
    return found


def messages(queue: Queue, count: int) -> list[Message]:
    key = f"{queue.name}.created"
    return [
        Message(str(uuid4()), key, b'{"n": %d}' % n, {"traceparent": "t"}) for n in range(count)
    ]


def publish(publisher: Publisher, messages: Sequence[Message]) -> None:
    """Publish, and wait until all of it is confirmed."""
    before = publisher.confirmed()
    publisher.publish(messages)
    await_confirmed(publisher, before + len(messages))


def await_confirmed(publisher: Publisher, count: int) -> None:
    until = monotonic() + 20
    while publisher.wait(count - 1, timeout=1) < count:
        assert monotonic() < until


def take(consumer: Consumer, count: int, seconds: float = 10) -> list[Delivery]:
    """Take until that many have come."""
    taken: list[Delivery] = []
    until = monotonic() + seconds
    while len(taken) < count and monotonic() < until:
        taken += consumer.take(count - len(taken), wait=0.2)
    return taken


def raises_soon(act: Callable[[], object]) -> BrokerUnavailable:
    """Waits until the loss of the connection is known."""
    until = monotonic() + 10
    while monotonic() < until:
        try:
            act()
        except BrokerUnavailable as away:
            return away
    raise AssertionError("it went on as if nothing had happened")


def assert_soon(condition: Callable[[], bool]) -> None:
    """It comes about within seconds."""
    until = monotonic() + 5
    while not condition():
        assert monotonic() < until
        sleep(0.01)


# ── publishing ────────────────────────────────────────────────────────────────────────────


def test_messages_arrive_whole_and_in_order(
    site: Site, publisher: Publisher, consumer: Consumer
) -> None:
    sent = messages(site.queue, 120)
    publish(publisher, sent)
    assert [delivery.message for delivery in take(consumer, 100)] == sent[:100]


def test_ten_thousand_messages_arrive_in_order(site: Site, opened: Opener) -> None:
    publisher = opened(site.broker.publisher([site.queue], 500))
    consumer = opened(site.broker.consumer(site.queue, prefetch=500))
    sent = messages(site.queue, 10_000)
    for page in range(0, len(sent), 500):
        publisher.publish(sent[page : page + 500])
    arrived: list[Message] = []
    while len(arrived) < len(sent):
        batch = consumer.take(100, wait=5)
        assert batch
        arrived += [delivery.message for delivery in batch]
        consumer.acknowledge(batch[-1])
    assert arrived == sent
    await_confirmed(publisher, len(sent))


def test_nothing_is_confirmed_before_anything_is_published(publisher: Publisher) -> None:
    publisher.publish([])
    assert publisher.confirmed() == publisher.wait(0, timeout=0.01) == 0


def test_confirmed_counts_all_that_was_handed_over(site: Site, publisher: Publisher) -> None:
    publish(publisher, messages(site.queue, 7))
    publish(publisher, messages(site.queue, 8))
    assert publisher.confirmed() == 15


def test_more_messages_than_the_window_are_published_in_one_call(
    site: Site, opened: Opener
) -> None:
    publisher = opened(site.broker.publisher([site.queue], 1))
    publish(publisher, messages(site.queue, 30))
    assert len(site.contents(site.queue.name)) == 30


def test_a_silent_broker_is_given_one_window_and_then_is_away(
    site: Site, publisher: Publisher
) -> None:
    site.fall_silent()
    publisher.publish(messages(site.queue, WINDOW))
    with pytest.raises(BrokerUnavailable):
        publisher.publish(messages(site.queue, 1))


def test_a_message_that_finds_no_queue_arrives_in_the_one_declared_again(
    site: Site, publisher: Publisher
) -> None:
    publish(publisher, messages(site.queue, 2))
    site.delete(site.queue.name)
    sent = messages(site.queue, 30)
    publish(publisher, sent)
    assert 1 <= publisher.returned <= 30
    assert publisher.confirmed() == 32
    assert site.contents(site.queue.name) == sent


def test_a_message_that_no_queue_wants_is_let_go_and_counted_once(
    site: Site, publisher: Publisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("eventcore.broker.publisher.REPUBLISH_AFTER", (0.01, 0.02, 0.03))
    stray = replace(messages(site.queue, 1)[0], routing_key=f"stray-{uuid4()}")
    publish(publisher, [stray, *messages(site.queue, 3)])
    assert publisher.returned == 1
    assert len(site.contents(site.queue.name)) == 3


def test_a_publisher_whose_connection_is_cut_says_so(site: Site, publisher: Publisher) -> None:
    publish(publisher, messages(site.queue, 1))
    site.cut()
    raises_soon(publisher.confirmed)
    with pytest.raises(BrokerUnavailable):
        publisher.publish(messages(site.queue, 1))
    with pytest.raises(BrokerUnavailable):
        publisher.wait(0, timeout=5)


def test_after_a_cut_another_publisher_can_be_opened(
    site: Site, publisher: Publisher, opened: Opener
) -> None:
    site.cut()
    raises_soon(publisher.confirmed)
    publisher.close()
    another = opened(site.broker.publisher([site.queue], WINDOW))
    publish(another, messages(site.queue, 1))


def test_a_closed_publisher_publishes_nothing(site: Site, publisher: Publisher) -> None:
    publisher.close()
    with pytest.raises(BrokerUnavailable):
        publisher.publish(messages(site.queue, 1))
    publisher.close()


@pytest.mark.parametrize(
    ("binding", "key", "is_bound"),
    [
        ("user.#", "user.created", True),
        ("user.#", "user", True),
        ("user.#", "user.name.changed", True),
        ("user.#", "users.created", False),
        ("user.*", "user.created", True),
        ("user.*", "user.name.changed", False),
        ("#", "anything", True),
    ],
)
def test_a_binding_takes_the_keys_it_names(
    site: Site, opened: Opener, binding: str, key: str, is_bound: bool
) -> None:
    own = site.queue.name
    site.queue = Queue(own, f"{own}.{binding}")
    publisher = opened(site.broker.publisher([site.queue], WINDOW))
    wanted = replace(messages(site.queue, 1)[0], routing_key=f"{own}.{key}")
    publisher.publish([wanted])
    if is_bound:
        await_confirmed(publisher, 1)
    assert site.contents(own) == ([wanted] if is_bound else [])


# ── consuming ─────────────────────────────────────────────────────────────────────────────


def test_take_gives_what_is_there_and_no_more_than_asked(
    site: Site, publisher: Publisher, consumer: Consumer
) -> None:
    publish(publisher, messages(site.queue, 5))
    assert len(take(consumer, 2)) == 2
    assert len(take(consumer, 3)) == 3
    assert consumer.take(10, wait=0.01) == []


def test_take_waits_for_the_first_delivery(real: RealSite) -> None:
    with closing(real.broker.consumer(real.queue, prefetch=10)) as consumer:
        started = monotonic()
        assert consumer.take(10, wait=0.3) == []
        assert 0.3 <= monotonic() - started < 2


def test_no_more_than_the_prefetch_is_out_unacknowledged(
    site: Site, publisher: Publisher, opened: Opener
) -> None:
    consumer = opened(site.broker.consumer(site.queue, prefetch=3))
    publish(publisher, messages(site.queue, 5))
    taken = take(consumer, 4, seconds=1)
    assert len(taken) == 3
    consumer.acknowledge(taken[-1])
    assert len(take(consumer, 2)) == 2


def test_one_acknowledgement_covers_all_taken_before(
    site: Site, publisher: Publisher, consumer: Consumer, opened: Opener
) -> None:
    publish(publisher, sent := messages(site.queue, 10))
    taken = take(consumer, 10)
    consumer.acknowledge(taken[5])
    consumer.close()
    successor = opened(site.broker.consumer(site.queue, prefetch=100))
    again = take(successor, 4)
    assert [delivery.message for delivery in again] == sent[6:]
    assert all(delivery.redelivered for delivery in again)
    assert successor.take(10, wait=0.1) == []


def test_what_was_not_acknowledged_comes_again_after_a_cut(
    site: Site, publisher: Publisher, consumer: Consumer, opened: Opener
) -> None:
    publish(publisher, sent := messages(site.queue, 3))
    taken = take(consumer, 3)
    assert not any(delivery.redelivered for delivery in taken)
    site.cut()
    raises_soon(lambda: consumer.take(1, wait=0.1))
    with pytest.raises(BrokerUnavailable):
        consumer.acknowledge(taken[-1])
    consumer.close()
    again = take(opened(site.broker.consumer(site.queue, prefetch=100)), 3)
    assert [delivery.message for delivery in again] == sent


def test_a_paused_consumer_gets_nothing_and_a_resumed_one_goes_on(
    site: Site, publisher: Publisher, consumer: Consumer
) -> None:
    consumer.pause()
    publish(publisher, sent := messages(site.queue, 4))
    assert consumer.take(10, wait=0.3) == []
    consumer.resume()
    assert [delivery.message for delivery in take(consumer, 4)] == sent


def test_what_a_paused_consumer_had_not_taken_goes_to_others(
    site: Site, publisher: Publisher, consumer: Consumer, opened: Opener
) -> None:
    publish(publisher, sent := messages(site.queue, 10))
    taken = take(consumer, 3)
    consumer.pause()
    assert consumer.take(10, wait=0.1) == []
    other = opened(site.broker.consumer(site.queue, prefetch=100))
    assert [delivery.message for delivery in take(other, 7)] == sent[3:]
    consumer.acknowledge(taken[-1])
    consumer.close()
    assert other.take(10, wait=0.2) == []


def test_pause_and_resume_may_be_said_twice(
    site: Site, publisher: Publisher, consumer: Consumer
) -> None:
    for act in (consumer.pause, consumer.pause, consumer.resume, consumer.resume):
        act()
    publish(publisher, sent := messages(site.queue, 5))
    assert [delivery.message for delivery in take(consumer, 5)] == sent
    assert consumer.take(10, wait=0.1) == []


def test_a_consumer_whose_queue_is_deleted_raises_and_the_next_makes_it(
    site: Site, publisher: Publisher, consumer: Consumer, opened: Opener
) -> None:
    site.delete(site.queue.name)
    raises_soon(lambda: consumer.take(1, wait=0.1))
    consumer.close()
    another = opened(site.broker.consumer(site.queue, prefetch=100))
    publish(publisher, sent := messages(site.queue, 1))
    assert [delivery.message for delivery in take(another, 1)] == sent


@pytest.mark.parametrize("body", [b"", b"no JSON \x00\xff\xfe", b"x" * 300_000])
def test_a_dead_letter_is_kept_whole(site: Site, opened: Opener, body: bytes) -> None:
    publisher = opened(site.broker.publisher([site.queue], WINDOW))
    consumer = opened(site.broker.consumer(site.queue, prefetch=10))
    sent = replace(messages(site.queue, 1)[0], body=body)
    publish(publisher, [sent])
    [taken] = take(consumer, 1)
    consumer.dead_letter(taken, "no event")
    consumer.acknowledge(taken)
    [dead] = site.contents(site.queue.dead_letters)
    assert (dead.id, dead.body) == (sent.id, body)
    assert dead.headers == {
        "traceparent": "t",
        "x-reason": "no event",
        "x-routing-key": sent.routing_key,
    }


def test_a_reason_may_quote_anything(site: Site, publisher: Publisher, consumer: Consumer) -> None:
    publish(publisher, messages(site.queue, 1))
    [taken] = take(consumer, 1)
    consumer.dead_letter(taken, "specVersion \ud800\x00 €" + "x" * 10_000)
    [dead] = site.contents(site.queue.dead_letters)
    assert dead.headers["x-reason"].startswith("specVersion")
    assert len(dead.headers["x-reason"]) == 500


def test_dead_letters_are_no_deliveries(
    site: Site, publisher: Publisher, consumer: Consumer
) -> None:
    publish(publisher, messages(site.queue, 1))
    [taken] = take(consumer, 1)
    consumer.dead_letter(taken, "no event")
    assert consumer.take(10, wait=0.1) == []


def test_the_depths_of_a_queue_and_its_dead_letters_are_asked_for_without_waiting(
    site: Site, publisher: Publisher, opened: Opener
) -> None:
    consumer = opened(site.broker.consumer(site.queue, prefetch=2))
    publish(publisher, messages(site.queue, 5))
    taken = take(consumer, 1)
    consumer.dead_letter(taken[0], "no event")
    consumer.pause()
    assert_soon(lambda: consumer.depths() == (4, 1))


# ── what only a real broker does ──────────────────────────────────────────────────────────


def test_a_refused_message_breaks_the_publisher(real: RealSite, opened: Opener) -> None:
    """A queue beside ours that is full refuses (basic.nack), though ours has taken it."""
    publisher = opened(real.broker.publisher([real.queue], WINDOW))
    full = f"{real.queue.name}-full"
    real.channel.queue_declare(
        full, exclusive=True, arguments={"x-max-length": 1, "x-overflow": "reject-publish"}
    )
    real.channel.queue_bind(full, EXCHANGE, real.queue.binding)
    publisher.publish(messages(real.queue, 20))
    away = raises_soon(lambda: publisher.wait(20, timeout=0.1))
    assert "nack" in str(away)


def test_a_queue_of_an_earlier_release_is_used_as_it_is(real: RealSite) -> None:
    """A queue with limits as arguments cannot be declared with others."""
    earlier = {"x-max-length-bytes": 2**24, "x-overflow": "drop-head", "x-delivery-limit": 20}
    kind = {"x-queue-type": "quorum"}
    for name in (real.queue.name, real.queue.dead_letters):
        real.channel.queue_declare(name, durable=True, arguments=kind | earlier)
    with (
        closing(real.broker.publisher([real.queue], WINDOW)) as publisher,
        closing(real.broker.consumer(real.queue, prefetch=10)) as consumer,
    ):
        publish(publisher, sent := messages(real.queue, 3))
        taken = take(consumer, 3)
        assert [delivery.message for delivery in taken] == sent
        consumer.dead_letter(taken[0], "no event")
        assert len(real.contents(real.queue.dead_letters)) == 1
        # accepted once, and then deleted: the next connection declares it again
        real.delete(real.queue.name)
        raises_soon(lambda: consumer.take(1, wait=0.1))
    real.broker.consumer(real.queue, prefetch=10).close()


def test_an_exchange_that_differs_is_named(real: RealSite, rabbitmq: Node) -> None:
    real.channel.exchange_delete(EXCHANGE)
    real.channel.exchange_declare(EXCHANGE, "fanout", durable=True)
    try:
        with pytest.raises(
            BrokerUnavailable, match=f"inequivalent arg 'type' for exchange '{EXCHANGE}'"
        ):
            real.broker.publisher([real.queue], WINDOW)
    finally:
        real.channel.exchange_delete(EXCHANGE)


def test_queues_are_durable_quorum_queues_without_limits_of_their_own(
    real: RealSite, rabbitmq: Node
) -> None:
    real.broker.publisher([real.queue], WINDOW).close()
    listed = rabbitmq.ctl("list_queues", "--silent", "name", "durable", "arguments")
    for name in (real.queue.name, real.queue.dead_letters):
        [line] = [line for line in listed.splitlines() if line.split("\t")[0] == name]
        assert line.split("\t")[1:] == ["true", '[{"x-queue-type","quorum"}]']


def test_nobody_there_is_away(real: RealSite) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(BrokerUnavailable, match="refused"):
        rabbitmq_at(replace(real.server, port=port)).publisher([real.queue], WINDOW)


def test_a_wrong_password_is_away(real: RealSite) -> None:
    wrong = replace(real.server, password=Secret("wrong"))
    with pytest.raises(BrokerUnavailable, match="ACCESS_REFUSED"):
        rabbitmq_at(wrong).publisher([real.queue], WINDOW)


def test_a_password_is_read_again_at_each_connect(real: RealSite, tmp_path: Any) -> None:
    file = tmp_path / "password"
    file.write_text("wrong")
    broker = rabbitmq_at(replace(real.server, password=Secret(file=file)))
    with pytest.raises(BrokerUnavailable):
        broker.publisher([real.queue], WINDOW)
    file.write_text(real.server.password.read())
    broker.publisher([real.queue], WINDOW).close()


def test_a_server_that_answers_nothing_is_away_within_its_limit(real: RealSite) -> None:
    real.fall_silent()
    started = monotonic()
    with pytest.raises(BrokerUnavailable):
        real.broker.publisher([real.queue], WINDOW)
    assert monotonic() - started < 15


def test_a_blocked_publisher_is_away_within_its_limit(real: RealSite, rabbitmq: Node) -> None:
    with closing(real.broker.publisher([real.queue], WINDOW)) as publisher:
        rabbitmq.ctl("set_vm_memory_high_watermark", "0.0000001")
        try:
            publisher.publish(messages(real.queue, 1))
            started = monotonic()
            raises_soon(lambda: publisher.wait(1, timeout=0.1))
            assert monotonic() - started < 8
        finally:
            rabbitmq.ctl("set_vm_memory_high_watermark", "0.4")


@pytest.mark.parametrize("harm", ["none", "cut", "silence", "nack", "deleted"])
def test_close_leaves_neither_thread_nor_socket(real: RealSite, harm: str) -> None:
    def open_files() -> int:
        return len(os.listdir("/proc/self/fd"))

    files, threads = open_files(), set(threading.enumerate())
    publisher = real.broker.publisher([real.queue], WINDOW)
    consumer = real.broker.consumer(real.queue, prefetch=10)
    do_harm: dict[str, Callable[[], object]] = {
        "none": lambda: None,
        "cut": real.cut,
        "silence": real.fall_silent,
        "nack": partial(publisher._break, BrokerUnavailable("refused")),
        "deleted": lambda: real.delete(real.queue.name),
    }
    do_harm[harm]()
    started = monotonic()
    publisher.close()
    consumer.close()
    assert monotonic() - started < 7
    assert set(threading.enumerate()) <= threads
    real.proxy.drop_all()
    assert_soon(lambda: open_files() <= files)  # what other tests left may come and go meanwhile


def test_foreign_messages_do_not_stop_the_consumer(real: RealSite) -> None:
    """No id, an id and headers that are no text: taken as they are, and kept whole."""
    with closing(real.broker.consumer(real.queue, prefetch=10)) as consumer:
        key = f"{real.queue.name}.x"
        for properties in (
            pika.BasicProperties(),
            pika.BasicProperties(message_id=b"\xff", headers={"n": 1, "b": b"\xff", "t": "t"}),
        ):
            real.channel.basic_publish(EXCHANGE, key, b"foreign", properties)
        first, second = take(consumer, 2)
        assert (first.message.id, first.message.headers) == ("", {})
        assert (second.message.id, second.message.headers) == (
            "\N{REPLACEMENT CHARACTER}",
            {"t": "t"},
        )
        for each in (first, second):
            consumer.dead_letter(each, "no event")
        assert [dead.body for dead in real.contents(real.queue.dead_letters)] == [b"foreign"] * 2
