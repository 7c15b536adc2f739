"""All processes on the real servers, while processes are killed and messages lost."""

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pika
import pytest
import urllib3

from eventcore import jsontext
from eventcore.errors import Unavailable
from eventcore.model.event import NewEvent, to_message
from eventcore.model.projection import Document, Projection
from eventcore.model.view import fold
from eventcore.readmodel.mongo import Mongo
from eventcore.readmodel.records import Generation, Parked, generation_of
from eventcore.store.connection import connect
from eventcore.store.port import Stream
from eventcore.store.postgres import Postgres
from local.servers import MongoDB, PostgreSQL, RabbitMQ
from local.services import SERVICES as DECLARED
from local.shop import Shop
from order.projections import orders
from order.projections.customers import VIEW
from tests.conftest import Databases
from tests.integration.scrape import metric
from tests.integration.trouble import transaction
from user.projections import users

USERS, ORDERS, KNOWN = "user_projection_queue", "order_read_model_queue", "order_service_user_sync"
UNKNOWN = "USER_MARRIED"
NOBODY = "01890000-0000-7000-8000-000000000000"
SERVICES = Path(__file__).parents[2] / "services"


class Client:
    """A caller of the gateway."""

    def __init__(self, shop: Shop) -> None:
        self._shop = shop
        self._pool = urllib3.PoolManager(maxsize=16, timeout=15, retries=False)

    def send(
        self, method: str, path: str, body: object = None, at: str = "gateway", **headers: str
    ) -> tuple[int, Any]:
        """The status and the JSON of an answer; headers' underscores become dashes."""
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        data = None if body is None else json.dumps(body).encode()
        if data:
            given["Content-Type"] = "application/json"
        answer = self._pool.request(method, self._shop.url(at) + path, body=data, headers=given)
        return answer.status, jsontext.parse(answer.data) if answer.data else None

    def create_user(self, name: str = "Ada") -> str:
        """A new user's id."""
        status, answer = self.send("POST", "/users", {"name": name, "email": "ada@example.com"})
        assert status == 202, answer
        return str(answer["userId"])

    def place_order(self, user_id: str, key: str = "") -> str:
        """A new order's id; with a key, it asks again until it is answered."""
        headers = {"Idempotency_Key": key} if key else {}
        body = {"userId": user_id, "item": "Laptop", "price": 19.99}
        deadline = time.monotonic() + 30
        while True:
            status, answer = self._try("POST", "/orders", body, **headers)
            if status == 200:
                return str(answer["orderId"])
            assert key, answer
            assert status in (0, 409, 502, 503, 504), answer
            assert time.monotonic() < deadline, answer
            time.sleep(0.05)

    def _try(self, *call: Any, **headers: str) -> tuple[int, Any]:
        try:
            return self.send(*call, **headers)
        except urllib3.exceptions.HTTPError as error:
            return 0, str(error)

    def close(self) -> None:
        self._pool.clear()


@pytest.fixture
def client(shop: Shop) -> Iterator[Client]:
    client = Client(shop)
    yield client
    client.close()


@pytest.fixture
def truth(shop: Shop, databases: Databases, mongodb: MongoDB) -> Iterator["Truth"]:
    truth = Truth(databases, mongodb)
    yield truth
    truth.close()


class Truth:
    """The logs and the read models themselves, side by side."""

    def __init__(self, databases: Databases, mongodb: MongoDB) -> None:
        services = ("user", "order")
        self.stores = {name: Postgres(databases(name, "service"), 2) for name in services}
        self.models = {name: Mongo(mongodb.login(f"{name}_read_model")) for name in services}

    def document(
        self, projection: Projection, key: str, where: str | None = None
    ) -> Document | None:
        """A document of a read model."""
        model = self.models[where or projection.aggregate_type]
        return model.find(self.serving(projection, where).collection, [key]).get(key)

    def serving(self, projection: Projection, where: str | None = None) -> Generation:
        """The generation that serves."""
        model = self.models[where or projection.aggregate_type]
        return generation_of(projection, model.generations(projection.name).serving)

    def parked(self, projection: Projection) -> dict[str, Parked]:
        """The streams that are parked in it."""
        name = self.serving(projection).name
        return self.models[projection.aggregate_type].parked(name)

    def folded(self, projection: Projection) -> dict[str, Document | None]:
        """What the read model must be: each stream of the log, folded.

        Left out are streams with an event that this code does not know.
        """
        unknown: set[str] = set()
        store = self.stores[projection.aggregate_type]
        position, streams = 0, dict[str, list[Any]]()
        settled = store.settled()
        while page := store.read_feed(position, settled):
            for event in page:
                if event.aggregate_type != projection.aggregate_type:
                    continue
                streams.setdefault(str(event.aggregate_id), []).append(event)
                unknown |= {str(event.aggregate_id)} if event.event_type == UNKNOWN else set()
            position = page[-1].position
        return {key: projection.fold(e) for key, e in streams.items() if key not in unknown}

    def converges(self, seconds: float = 20) -> None:
        """Wait until both read models are the fold of their logs, which must have come to rest."""
        for projection in (users.PROJECTION, orders.PROJECTION):
            left = self.folded(projection)
            deadline = time.monotonic() + seconds
            while left := self._still_wrong(projection, left):
                if time.monotonic() > deadline:
                    key, expected = next(iter(left.items()))
                    found = self.document(projection, key)
                    raise AssertionError(f"{len(left)} differ: {found} is not {expected}")
        until(self._view_is_right, seconds)

    def _view_is_right(self) -> bool:
        """Whether the customers are the fold of both logs."""
        events = [
            event
            for store in self.stores.values()
            for event in store.read_feed(0, store.settled(), 10**6)
            if event.aggregate_type in VIEW.on
        ]
        model, wanted = self.models["order"], fold(VIEW, events)
        number = model.generations(VIEW.name).serving
        try:
            return model.find(generation_of(VIEW, number).collection, wanted) == wanted
        except Unavailable:
            return False

    def _still_wrong(
        self, projection: Projection, expected: dict[str, Document | None]
    ) -> dict[str, Document | None]:
        """Those documents that are not what they must be (yet)."""
        model = self.models[projection.aggregate_type]
        try:
            found = model.find(self.serving(projection).collection, expected)
        except Unavailable:
            return expected
        return {key: each for key, each in expected.items() if found.get(key) != each}

    def close(self) -> None:
        for store in self.stores.values():
            store.close()
        for model in self.models.values():
            model.close()


def until(condition: Callable[[], object], seconds: float = 15) -> None:
    """Wait for a condition; a failure of it counts as no."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return
        time.sleep(0.05)
    assert condition(), f"not within {seconds} s"


@pytest.fixture
def channel(rabbitmq: RabbitMQ) -> Iterator[Any]:
    address = rabbitmq.address
    connection = pika.BlockingConnection(
        pika.ConnectionParameters(
            address.host,
            address.port,
            address.name,
            pika.PlainCredentials(address.user, address.password.read()),
        )
    )
    yield connection.channel()
    connection.close()


def depth(channel: Any, queue: str) -> int:
    """How many messages wait in a queue."""
    count: int = channel.queue_declare(queue, passive=True).method.message_count
    return count


# ── the journey ───────────────────────────────────────────────────────────────────────────


def test_the_six_requests_of_the_guide_to_the_letter(client: Client) -> None:
    status, created = client.send("POST", "/users", {"name": "Ada", "email": "ada@example.com"})
    assert status == 202
    assert list(created) == ["userId"]
    user_id = created["userId"]

    status, user = client.send("GET", f"/users/{user_id}")
    assert status == 200
    assert user == {"_id": user_id, "userId": user_id, "name": "Ada", "email": "ada@example.com"}

    order = {"userId": user_id, "item": "Laptop", "price": 2500}
    status, placed = client.send("POST", "/orders", order)
    assert status == 200
    assert list(placed) == ["orderId"]
    order_id = placed["orderId"]

    status, shown = client.send("GET", f"/queries/orders/{order_id}")
    assert status == 200
    five = {name: shown[name] for name in ("_id", "orderId", "userId", "item", "price")}
    assert five == {"_id": order_id, "orderId": order_id, **order}

    status, _ = client.send("PUT", f"/users/{user_id}", {"name": "Ada Lovelace"})
    assert status == 200

    for at in ("order-service", "gateway"):
        status, again = client.send("GET", f"/queries/orders/{order_id}", at=at)
        assert (status, again) == (200, shown)


def test_an_order_for_a_user_of_a_moment_ago_is_taken(client: Client) -> None:
    for _ in range(10):
        client.place_order(client.create_user())


def test_an_order_for_nobody_is_user_unknown(client: Client) -> None:
    body = {"userId": NOBODY, "item": "Laptop", "price": 1}
    until(lambda: client.send("POST", "/orders", body)[0] == 422)
    _, refused = client.send("POST", "/orders", body)
    assert refused["title"] == "User unknown"


def test_the_ids_of_a_request_are_in_the_history_and_in_the_message(
    client: Client, truth: Truth
) -> None:
    status, created = client.send(
        "POST",
        "/users",
        {"name": "Ada", "email": "a@b"},
        X_Request_ID="request-1",
        X_Correlation_ID="correlation-1",
        traceparent="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    )
    assert status == 202
    _, history = client.send("GET", f"/users/{created['userId']}/events")
    [event] = history["events"]
    assert (event["causationId"], event["correlationId"]) == ("request-1", "correlation-1")
    [stored] = truth.stores["user"].read_stream(Stream("user", UUID(created["userId"])))
    assert str(stored.metadata["traceparent"]).startswith("00-0af7651916cd43dd8448eb211c80319c-")


def test_the_start_up_lines_of_the_guide_are_logged(shop: Shop) -> None:
    assert "Gateway on" in shop.log("gateway")
    assert "User Service on" in shop.log("user-service")
    assert "Order Service on" in shop.log("order-service")
    assert "Connected to Postgres" in shop.log("user-relay")
    assert "Connected to RabbitMQ" in shop.log("order-projector")
    assert "Connected to MongoDB" in shop.log("order-user-sync")


# ── what the broker may do ────────────────────────────────────────────────────────────────


def test_a_relay_killed_between_publish_and_checkpoint_publishes_again(
    shop: Shop, client: Client, truth: Truth, databases: Databases, postgres: PostgreSQL
) -> None:
    user_id = client.create_user()
    before = client.place_order(user_id)
    until(lambda: truth.document(orders.PROJECTION, before))
    with transaction(connect(databases("order", "owner"))) as held:
        held.exec_driver_sql("select * from checkpoints where name = 'order' for update")
        placed = [client.place_order(user_id) for _ in range(5)]
        until(lambda: all(truth.document(orders.PROJECTION, each) for each in placed))
        shop.kill("order-relay")
        end_sessions(postgres, "order_relay")  # its last statement must not be carried out
        checkpoint = held.exec_driver_sql(
            "select position from checkpoints where name = 'order'"
        ).scalar_one()
    assert checkpoint < truth.stores["order"].settled()
    duplicates = counter(client, shop, "order-projector", "projection_events_duplicate_total")
    shop.start("order-relay")
    until(
        lambda: (
            counter(client, shop, "order-projector", "projection_events_duplicate_total")
            >= duplicates + 5
        )
    )
    truth.converges()


def end_sessions(postgres: PostgreSQL, login: str) -> None:
    """End all sessions of a login, and wait until they are gone."""
    with connect(postgres.address).connect() as admin:
        sessions = "from pg_stat_activity where usename = %s"
        admin.exec_driver_sql(f"select pg_terminate_backend(pid) {sessions}", (login,))
        until(lambda: not admin.exec_driver_sql(f"select pid {sessions}", (login,)).all())


def counter(client: Client, shop: Shop, process: str, name: str) -> float:
    """A metric of a process, all labels together."""
    pool = urllib3.PoolManager(timeout=5)
    text = pool.request("GET", shop.url(process) + "/metrics").data.decode()
    pool.clear()
    lines = [line for line in text.splitlines() if line.startswith(name)]
    return sum(float(line.split()[-1]) for line in lines)


@pytest.mark.parametrize("loss", ["purged", "deleted"])
def test_queues_that_are_purged_or_deleted_change_nothing_within_a_sweep(
    shop: Shop, client: Client, truth: Truth, channel: Any, loss: str
) -> None:
    user_id = client.create_user()
    client.place_order(user_id)
    for name in ("user-projector", "order-projector"):
        shop.stop(name)
    client.send("PUT", f"/users/{user_id}", {"name": "Eve"})
    last = client.place_order(user_id)
    until(lambda: depth(channel, ORDERS) >= 1 and depth(channel, USERS) >= 1)
    for queue in (USERS, ORDERS):
        if loss == "purged":
            channel.queue_purge(queue)
        else:
            channel.queue_delete(queue)
    for name in ("user-projector", "order-projector"):
        shop.start(name)
    until(lambda: truth.document(orders.PROJECTION, last))
    truth.converges()


def test_queues_deleted_under_their_consumers_are_declared_again(
    client: Client, truth: Truth, channel: Any
) -> None:
    user_id = client.create_user()
    client.place_order(user_id)
    for queue in (USERS, ORDERS, KNOWN):
        channel.queue_delete(queue)
    client.place_order(client.create_user(), key=str(uuid4()))
    truth.converges()


def test_messages_delivered_twice_and_in_reverse_change_nothing(
    shop: Shop, client: Client, truth: Truth, channel: Any
) -> None:
    user_id = client.create_user()
    shop.stop("user-projector")
    for number in range(20):
        client.send("PUT", f"/users/{user_id}", {"name": f"Ada {number}"})
    events = truth.stores["user"].read_stream(Stream("user", UUID(user_id)))
    for event in [*reversed(events), *reversed(events)]:
        channel.basic_publish("", USERS, jsontext.render(to_message(event)))
    shop.start("user-projector")
    until(lambda: depth(channel, USERS) == 0)
    truth.converges()


def test_a_message_that_is_no_event_is_dead_lettered_with_one_line(
    shop: Shop, client: Client, truth: Truth, channel: Any
) -> None:
    dead_letters = f"{ORDERS}.dead-letters"
    channel.queue_purge(dead_letters)
    lines = shop.log("order-projector").count("Failed to parse message")
    channel.basic_publish("", ORDERS, b"{ no json")
    channel.basic_publish("", ORDERS, b'{"specVersion": 1, "eventType": "ORDER_PLACED"}')
    order_id = client.place_order(client.create_user())
    until(lambda: truth.document(orders.PROJECTION, order_id))
    until(lambda: depth(channel, dead_letters) == 2)
    assert shop.log("order-projector").count("Failed to parse message") == lines + 2
    _, properties, body = channel.basic_get(dead_letters, auto_ack=True)
    assert body == b"{ no json"
    assert properties.headers["x-reason"]


# ── an event that cannot be applied ───────────────────────────────────────────────────────


def test_a_poisoned_stream_is_parked_alone_and_retried_with_fixed_code(
    shop: Shop, client: Client, truth: Truth, tmp_path: Path
) -> None:
    user_id, stream = client.create_user(), None
    stream = Stream("user", UUID(user_id))
    count = metric(shop, "user-service", "projection_parked_streams", "users")
    before = count()
    truth.stores["user"].append(stream, 1, [NewEvent(uuid4(), UNKNOWN, 1, {})], {})
    after = NewEvent(uuid4(), "USER_NAME_CHANGED", 1, {"name": "Eve"})
    truth.stores["user"].append(stream, 2, [after], {})
    until(lambda: user_id in truth.parked(users.PROJECTION))
    until(lambda: count() == before + 1, 5)
    other = client.create_user("Bob")
    until(lambda: truth.document(users.PROJECTION, other))

    listed = eventcore(shop, SERVICES, "parked", "list", "--json")
    assert listed.returncode == 0, listed.stderr
    entries = [json.loads(line) for line in listed.stdout.splitlines()]
    [entry] = [e for e in entries if (e["projection"], e["stream"]) == ("users", user_id)]
    assert (entry["version"], entry["highest"]) == (2, 3)
    assert "USER_MARRIED is unknown" in entry["error"]

    still = eventcore(shop, SERVICES, "parked", "retry", "users", user_id)
    assert (still.returncode, "still parked" in still.stdout) == (1, True)

    fixed = shutil.copytree(SERVICES, tmp_path / "services")
    source = fixed / "user" / "projections" / "users.py"
    source.write_text(
        source.read_text().replace(
            "    steps={", '    ignores=frozenset({"USER_MARRIED"}),\n    steps={'
        )
    )
    healed = eventcore(shop, fixed, "parked", "retry", "users", user_id)
    assert (healed.returncode, healed.stdout) == (0, f"{user_id}: released\n")
    document = truth.document(users.PROJECTION, user_id)
    assert document
    assert (document["name"], document["version"]) == ("Eve", 3)


def eventcore(shop: Shop, services: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run a tool where the user projector runs."""
    return subprocess.run(
        [sys.executable, "-m", "eventcore", *arguments],
        env={**os.environ, **shop.environment("user-projector"), "PYTHONPATH": str(services)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


# ── anything may die ──────────────────────────────────────────────────────────────────────


class Load:
    """Clients that place orders all the while, and keep what was answered."""

    def __init__(self, client: Client, user_id: str) -> None:
        self._client = client
        self._user_id = user_id
        self._stop = threading.Event()
        self.answered = {"the first": client.place_order(user_id)}

    def __enter__(self) -> "Load":
        self._pool = ThreadPoolExecutor(4)
        self._runs = [self._pool.submit(self._run) for _ in range(4)]
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._pool.shutdown()
        for run in self._runs:
            run.result()

    def _run(self) -> None:
        while not self._stop.is_set():
            key = str(uuid4())
            self.answered[key] = self._client.place_order(self._user_id, key)

    def grows(self) -> None:
        """Wait until some more have been answered."""
        wanted = len(self.answered) + 10
        until(lambda: len(self.answered) >= wanted, 40)


def assert_exactly_once(load: Load, truth: Truth, user_id: str) -> None:
    """Every answered order is in the log once, and no other order of this user is."""
    truth.converges(40)
    placed = [key for key, order in truth.folded(orders.PROJECTION).items()
              if order and order["userId"] == user_id]  # fmt: skip
    assert sorted(placed) == sorted(set(load.answered.values()))
    assert len(load.answered) == len(set(load.answered.values()))


@pytest.mark.timeout(300)  # all processes are started again, one after the other
def test_any_process_may_be_killed_under_load_without_loss_or_double(
    shop: Shop, client: Client, truth: Truth
) -> None:
    user_id = client.create_user()
    with Load(client, user_id) as load:
        for name in shop.names:
            shop.kill(name)
            shop.start(name)
            load.grows()
    assert_exactly_once(load, truth, user_id)


@pytest.mark.parametrize("name", ["rabbitmq", "mongodb", "postgres"])
def test_any_server_may_be_killed_under_load_without_loss_or_double(
    client: Client, truth: Truth, request: pytest.FixtureRequest, name: str
) -> None:
    server: PostgreSQL | RabbitMQ | MongoDB = request.getfixturevalue(name)
    user_id = client.create_user()
    with Load(client, user_id) as load:
        load.grows()
        server.kill()
        if name != "postgres":
            load.grows()  # commands go on: the user is remembered, events wait in the log
        server.start()
        load.grows()
    assert_exactly_once(load, truth, user_id)


def test_a_query_is_answered_from_the_stream_while_mongodb_is_away(
    client: Client, mongodb: MongoDB, truth: Truth
) -> None:
    user_id = client.create_user()
    mongodb.kill()
    try:
        status, user = client.send("GET", f"/users/{user_id}")
        assert (status, user["name"]) == (200, "Ada")
    finally:
        mongodb.start()
    truth.converges()


def test_a_stopped_process_ends_within_its_grace_and_the_next_one_sweeps(
    shop: Shop, client: Client, truth: Truth
) -> None:
    began = time.monotonic()
    shop.stop("order-projector")
    assert time.monotonic() - began < 5
    order_id = client.place_order(client.create_user())
    shop.start("order-projector")
    until(lambda: truth.document(orders.PROJECTION, order_id))


def test_everything_may_be_started_before_what_it_depends_on(
    shop: Shop,
    client: Client,
    truth: Truth,
    postgres: PostgreSQL,
    rabbitmq: RabbitMQ,
    mongodb: MongoDB,
) -> None:
    shop.stop()
    servers = (mongodb, rabbitmq, postgres)
    for server in servers:
        server.kill()
    said = {name: len(shop.log(name)) for name in shop.names}

    def new(name: str) -> str:
        return shop.log(name)[said[name] :]

    shop.launch()
    waits = {"user-relay": "Postgres", "order-service": "MongoDB", "order-projector": ""}
    for name, server_name in waits.items():
        until(lambda n=name, s=server_name: f"Waiting for {s}" in new(n))  # type: ignore[misc]
    for server in servers:
        server.start()
    shop.await_ready()
    client.place_order(client.create_user(), key=str(uuid4()))
    truth.converges()
    assert new("user-relay").count("Waiting for Postgres") == 1
    assert new("order-service").count("Waiting for MongoDB") == 1


@pytest.mark.parametrize("name", DECLARED)
def test_a_service_declares_the_paths_that_it_serves(shop: Shop, name: str) -> None:
    described = urllib3.request("GET", f"{shop.url(f'{name}-service')}/openapi.json").json()
    assert set(described["paths"]) == set(DECLARED[name].paths)
