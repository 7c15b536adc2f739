"""Each process's login on each server may do what its process does, and nothing else."""

import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from time import monotonic, sleep

import pika
import pytest
import urllib3
from click.testing import CliRunner
from pika.adapters.blocking_connection import BlockingChannel
from pika.exceptions import ChannelClosedByBroker, ProbableAuthenticationError
from pymongo import DeleteMany, MongoClient
from pymongo.database import Database
from pymongo.errors import OperationFailure
from sqlalchemy.exc import DatabaseError

from eventcore import __main__ as cli
from eventcore.broker.port import Queue
from eventcore.broker.rabbitmq import RabbitMQ
from eventcore.broker.topology import DEAD_LETTERS, EXCHANGE
from eventcore.operate.provision_broker import Limits, provision_broker
from eventcore.readmodel.mongo import Mongo
from eventcore.settings import Secret, Server
from eventcore.store.connection import connect
from gateway.limit_store import SharedCounters
from local.servers import MongoDB, PostgreSQL, free_port
from local.servers import RabbitMQ as Node
from local.services import ROOT
from user.projections import users

Document = dict[str, object]

CHART = ROOT / "charts" / "shop"

PROJECTORS = {
    "user": {
        "user-projector": "users",
        "credit-projector": "credit",
        "user-credit": "user-credit",
    },
    "order": {
        "order-projector": "orders",
        "order-user-sync": "known-users",
        "order-customers": "customers",
        "order-saga": "order-saga",
    },
}


def read_model_of(login: str) -> str:
    """The database of a login of MongoDB: that of its service."""
    own = (service for service, its in PROJECTORS.items() if login in its)
    return f"{next(own, login.split('-')[0])}_read_model"


QUEUES = {
    "user-projector": Queue("user_projection_queue", "user.#"),
    "credit-projector": Queue("user_credit_queue", "credit.#"),
    "user-credit": Queue("user_credit_saga_queue", "order_saga.#"),
    "order-projector": Queue("order_read_model_queue", "order.#"),
    "order-user-sync": Queue("order_service_user_sync", "user.#"),
    "order-customers": Queue("order_customers_queue", "#"),
    "order-saga": Queue("order_saga_queue", "credit.#"),
}
LOGINS = {
    "postgres": [
        f"{service}_{purpose}"
        for service in ("user", "order")
        for purpose in ("owner", "service", "relay")
    ],
    "rabbitmq": ["monitor", "user-relay", "order-relay", *QUEUES],
    "mongodb": ["user-service", "order-service", *QUEUES],
}
PRINTABLE = """~!@#$%^&*()_+`-={}|[]\\:"';<>?,./ äöü€"""
MONITORED = ("postgres", "mongodb")


def password(login: str, turn: int = 1) -> str:
    return f"{login}-secret-{turn}"


def provision(
    service: str,
    folder: Path,
    servers: Mapping[str, Server],
    turn: int = 1,
    monitored: Sequence[str] = (),
    *options: str,
    **told: str,
) -> None:
    """Run the command as the setup Job does, with logins for the exporters of `monitored`."""
    for kind, logins in LOGINS.items():
        (folder / kind).mkdir(parents=True, exist_ok=True)
        for login in [*logins, *(["monitor"] if kind in monitored else [])]:
            (folder / kind / login).write_text(password(login, turn))
    env = {"SERVICE": service, **told}
    for prefix, server in servers.items():
        env |= {
            f"{prefix}_HOST": server.host,
            f"{prefix}_PORT": str(server.port),
            f"{prefix}_{'VHOST' if prefix == 'RABBITMQ' else 'DATABASE'}": server.name,
            f"{prefix}_USER": server.user,
            f"{prefix}_PASSWORD": server.password.read(),
            f"{prefix}_OPTIONS": server.options,
        }
    projectors = [f"--projector={login}={name}" for login, name in PROJECTORS[service].items()]
    monitors = [f"--monitor={kind}" for kind in monitored]
    done = CliRunner().invoke(
        cli.main, ["provision", str(folder), *projectors, *monitors, *options], env=env
    )
    assert done.exit_code == 0, done.output


@pytest.fixture(scope="module")
def node(data_folder: Path) -> Iterator[tuple[Node, int]]:
    """A RabbitMQ with its management API, and that API's port."""
    port = free_port()
    node = Node(data_folder / "rabbitmq-managed", free_port(), port)
    node.start()
    yield node, port
    node.stop()


@pytest.fixture(scope="module")
def servers(postgres: PostgreSQL, node: tuple[Node, int], mongodb: MongoDB) -> Mapping[str, Server]:
    """The administrators of all three servers, RabbitMQ's at its management API."""
    rabbitmq, management = node
    mongo = replace(mongodb.address, options="retryWrites=false")
    return {
        "POSTGRES": postgres.address,
        "RABBITMQ": replace(rabbitmq.address, port=management),
        "MONGODB": mongo,
    }


@pytest.fixture
def own_postgres(tmp_path: Path) -> Iterator[Server]:
    """The administrator of a PostgreSQL of its own: logins are a whole server's."""
    server = PostgreSQL(tmp_path / "postgres", free_port())
    server.start()
    yield server.address
    server.stop()


@pytest.fixture(scope="module")
def provisioned(
    servers: Mapping[str, Server], tmp_path_factory: pytest.TempPathFactory
) -> Mapping[str, Server]:
    """The brokers and read models with all logins; those of PostgreSQL are tested with it."""
    folder = tmp_path_factory.mktemp("passwords")
    only = {name: server for name, server in servers.items() if name != "POSTGRES"}
    for service in PROJECTORS:
        provision(service, folder, only)
    return servers


@pytest.fixture(scope="module")
def broker(provisioned: Mapping[str, Server], node: tuple[Node, int]) -> Callable[[str], Server]:
    """A login of RabbitMQ; everything is declared, by the processes' own logins."""

    def login(name: str, turn: int = 1) -> Server:
        return replace(node[0].address, user=name, password=Secret(password(name, turn)))

    for process, queue in QUEUES.items():
        rabbitmq = RabbitMQ(login(process), name=process)
        rabbitmq.consumer(queue, prefetch=1).close()
    for service, process in (("user", "user-projector"), ("order", "order-projector")):
        name = f"{service}-relay"
        rabbitmq = RabbitMQ(login(name), name=name)
        rabbitmq.publisher([QUEUES[process]], window=1).close()
    return login


@contextmanager
def channel(server: Server) -> Iterator[BlockingChannel]:
    parameters = pika.ConnectionParameters(
        server.host,
        server.port,
        credentials=pika.PlainCredentials(server.user, server.password.read()),
    )
    with pika.BlockingConnection(parameters) as connection:
        yield connection.channel()


Act = Callable[[BlockingChannel], object]


def _publish(exchange: str) -> Act:
    def act(on: BlockingChannel) -> None:
        on.confirm_delivery()
        on.basic_publish(exchange, "nowhere", b"")

    return act


def _consume(queue: str) -> Act:
    return lambda on: on.basic_get(queue)


def _purge(queue: str) -> Act:
    return lambda on: on.queue_purge(queue)


ACTS: dict[str, Act] = {
    "publish events": _publish(EXCHANGE),
    "publish to any queue": _publish(""),
    "publish dead letters": _publish(DEAD_LETTERS),
    "declare another queue": lambda on: on.queue_declare("another"),
    "declare another exchange": lambda on: on.exchange_declare("another"),
    "have events brought elsewhere": lambda on: on.exchange_bind(DEAD_LETTERS, "amq.topic", "#"),
    "read the server's own log": lambda on: on.queue_bind("any", "amq.rabbitmq.log", "#"),
}
for _process, _queue in QUEUES.items():
    ACTS[f"consume for {_process}"] = _consume(_queue.name)
    ACTS[f"purge for {_process}"] = _purge(_queue.name)
MAY = {
    "user-relay": {"publish events"},
    "order-relay": {"publish events"},
    "monitor": set[str](),
    **{
        process: {"publish dead letters", f"consume for {process}", f"purge for {process}"}
        for process in QUEUES
    },
}


@pytest.mark.parametrize("act", ACTS)
@pytest.mark.parametrize("login", MAY)
def test_a_login_of_the_broker_may_do_what_its_process_does(
    broker: Callable[[str], Server], login: str, act: str
) -> None:
    with channel(broker(login)) as on:
        if act in MAY[login]:
            ACTS[act](on)
        else:
            with pytest.raises(ChannelClosedByBroker) as refusal:
                ACTS[act](on)
            assert refusal.value.reply_code == 403


DECLARE = {
    "user-projector": {"user-relay", "user-projector"},
    "credit-projector": {"user-relay", "credit-projector"},
    "user-credit": {"user-credit"},
    "order-projector": {"order-relay", "order-projector"},
    "order-user-sync": {"order-user-sync"},
    "order-customers": {"order-relay", "order-customers"},
    "order-saga": {"order-saga"},
}
"""Who may declare the queue of each, which for RabbitMQ is to delete it as well."""


@pytest.mark.parametrize(
    ("login", "process"),
    [(login, process) for process in QUEUES for login in MAY if login not in DECLARE[process]],
)
def test_a_login_of_the_broker_deletes_no_queue_that_it_does_not_declare(
    broker: Callable[[str], Server], login: str, process: str
) -> None:
    for name in (QUEUES[process].name, f"{QUEUES[process].name}.dead-letters"):
        with channel(broker(login)) as on, pytest.raises(ChannelClosedByBroker) as refusal:
            on.queue_delete(name)
        assert refusal.value.reply_code == 403


@pytest.mark.parametrize("login", MAY)
def test_a_login_of_the_broker_manages_nothing(
    broker: Callable[[str], Server], node: tuple[Node, int], login: str
) -> None:
    who = urllib3.make_headers(basic_auth=f"{login}:{password(login)}")
    api = urllib3.PoolManager(headers={**who, "Connection": "close"}, retries=False, timeout=10)
    at = f"http://127.0.0.1:{node[1]}/api"
    for method, path, body in (
        ("PUT", "/users/another", {"password": "any", "tags": "administrator"}),
        ("PUT", f"/users/{login}", {"password": "any", "tags": "administrator"}),
        ("PUT", f"/permissions/%2F/{login}", {"configure": ".*", "write": ".*", "read": ".*"}),
        ("PUT", "/vhosts/another", {}),
        ("DELETE", "/vhosts/%2F", {}),
        ("GET", "/definitions", {}),
        ("GET", "/users", {}),
    ):
        assert api.request(method, at + path, json=body).status == 401, path
    assert api.request("GET", f"{at}/queues").status == (200 if login == "monitor" else 401)


def test_the_login_that_every_rabbitmq_comes_with_is_none(broker: Callable[[str], Server]) -> None:
    guest = replace(broker("user-relay"), user="guest", password=Secret("guest"))
    with pytest.raises(ProbableAuthenticationError), channel(guest):
        pass


def test_a_policy_limits_every_queue(
    broker: Callable[[str], Server], node: tuple[Node, int]
) -> None:
    who = urllib3.make_headers(basic_auth=f"monitor:{password('monitor')}")
    api = urllib3.PoolManager(headers={**who, "Connection": "close"})
    key = "effective_policy_definition"

    def limits() -> dict[str, object]:
        """Lists what the management API shows, which it collects every few seconds."""
        found = api.request("GET", f"http://127.0.0.1:{node[1]}/api/queues").json()
        return {each["name"]: each[key] for each in found if key in each}

    names = {name for queue in QUEUES.values() for name in (queue.name, queue.dead_letters)}
    assert until(lambda: set(limits()) >= names)
    common = {"max-length-bytes": 256 * 1024 * 1024, "overflow": "drop-head"}
    for queue in QUEUES.values():
        assert limits()[queue.name] == {**common, "delivery-limit": 20}
        assert limits()[queue.dead_letters] == {**common, "delivery-limit": 1_000_000}


def test_a_new_limit_holds_for_a_queue_that_exists(
    broker: Callable[[str], Server], servers: Mapping[str, Server], tmp_path: Path
) -> None:
    name = QUEUES["user-projector"].name
    only = {"RABBITMQ": servers["RABBITMQ"]}
    with channel(broker("user-relay")) as on, channel(broker("user-projector")) as reader:
        on.confirm_delivery()
        provision("user", tmp_path, only, QUEUE_BYTES="1000")
        for _ in range(30):
            on.basic_publish(EXCHANGE, "user.any", b"x" * 100)
        assert until(lambda: messages_in(reader, name) <= 10)
        provision("user", tmp_path, only)
        for _ in range(30):
            on.basic_publish(EXCHANGE, "user.any", b"x" * 100)
        assert until(lambda: messages_in(reader, name) >= 30)
        reader.queue_purge(name)


def messages_in(on: BlockingChannel, queue: str) -> int:
    count: int = on.queue_declare(queue, passive=True).method.message_count
    return count


def until(condition: Callable[[], bool]) -> bool:
    deadline = monotonic() + 10
    while not condition():
        if monotonic() > deadline:
            return False
        sleep(0.05)
    return True


def test_any_printable_character_may_be_in_a_password_of_the_broker(
    servers: Mapping[str, Server], node: tuple[Node, int], broker: Callable[[str], Server]
) -> None:
    """The login's, and the administrator's."""
    secret = Secret(PRINTABLE)
    admin = replace(servers["RABBITMQ"], user="boss", password=secret)
    node[0].ctl("add_user", "boss", secret.read())
    node[0].ctl("set_user_tags", "boss", "administrator")
    node[0].ctl("set_permissions", "boss", ".*", ".*", ".*")
    logins = dict.fromkeys(("monitor", "user-relay", "user-projector"), secret)
    provision_broker(admin, "user", {"user-projector": users.PROJECTION}, logins, Limits())
    try:
        rabbitmq = RabbitMQ(replace(node[0].address, user="user-relay", password=secret), name="r")
        rabbitmq.publisher([QUEUES["user-projector"]], window=1).close()
    finally:
        usual = {login: Secret(password(login)) for login in logins}
        provision_broker(admin, "user", {"user-projector": users.PROJECTION}, usual, Limits())
        node[0].ctl("delete_user", "boss")


def test_the_chart_brokers_password_may_have_any_printable_character(
    tmp_path: Path, data_folder: Path
) -> None:
    """The chart writes its administrator into a file, which this node reads as well."""
    chart = (CHART / "charts" / "rabbitmq" / "templates" / "rabbitmq.yaml").read_text()
    script = chart.partition("- -euc\n            - |\n")[2].partition("          volumeMounts:")[0]
    folder = data_folder / "rabbitmq-of-the-chart"
    for name in ("conf.d", "config", "secrets"):
        script = script.replace(f"/{name}/", f"{tmp_path}/")
    (tmp_path / "rabbitmq.conf").touch()
    (tmp_path / "admin").write_text(PRINTABLE)
    script = script.replace("20-shop.conf", "copy.conf").replace(
        f"{tmp_path}/advanced.config", f"{folder}/advanced.config"
    )
    folder.mkdir(mode=0o700)
    subprocess.run(["sh", "-euc", script], check=True)
    node = Node(folder, free_port())
    node.start()
    try:
        with channel(replace(node.address, user="admin", password=Secret(PRINTABLE))):
            pass
    finally:
        node.stop()


UNAUTHORIZED = 13
"""MongoDB's code for what somebody may not do."""

MANAGE: dict[str, Callable[[Database[Document], str], object]] = {
    "make a login": lambda db, _: db.command("createUser", "eve", pwd="any", roles=["root"]),
    "have more rights": lambda db, me: db.command("grantRolesToUser", me, roles=["dbOwner"]),
    "change a password": lambda db, me: db.command("updateUser", me, pwd="another"),
    "read the logins": lambda db, _: db.command("usersInfo", {"forAllDBs": True}),
    "make a role": lambda db, _: db.command("createRole", "any", privileges=[], roles=[]),
    "see what others do": lambda db, _: db.client["admin"].command("currentOp"),
    "see the server's state": lambda db, _: db.client["admin"].command("serverStatus"),
    "change the server": lambda db, _: db.client["admin"].command("setParameter", 1, logLevel=1),
    "read all databases' names": lambda db, _: db.client["config"]["any"].find_one(),
}  # fmt: skip


@pytest.mark.parametrize("act", MANAGE)
@pytest.mark.parametrize("login", LOGINS["mongodb"])
def test_a_login_of_the_read_models_manages_nothing(
    provisioned: Mapping[str, Server], mongodb: MongoDB, login: str, act: str
) -> None:
    own = read_model_of(login)
    with mongo_client(mongodb, login, own) as client:
        with pytest.raises(OperationFailure) as refusal:
            MANAGE[act](client[own], login)
        assert refusal.value.code == UNAUTHORIZED


@pytest.mark.parametrize("service", PROJECTORS)
def test_a_service_changes_nothing_in_its_read_models(
    provisioned: Mapping[str, Server], mongodb: MongoDB, service: str
) -> None:
    own = f"{service}_read_model"
    with mongo_client(mongodb, f"{service}-service", own) as client:
        documents = client[own]["orders"]
        for act in (
            lambda: documents.update_one({}, {"$set": {"n": 1}}, upsert=True),
            lambda: documents.replace_one({}, {}, upsert=True),
            lambda: documents.delete_many({}),
            lambda: documents.bulk_write([DeleteMany({})]),
            lambda: documents.find_one_and_delete({}),
            lambda: documents.create_index("n"),
            lambda: documents.drop(),
            lambda: documents.rename("others"),
            lambda: client[own].create_collection("others"),
            lambda: client[own].command("dropDatabase"),
            lambda: list(documents.aggregate([{"$out": "others"}])),
        ):
            with pytest.raises(OperationFailure) as refusal:
                act()
            assert refusal.value.code == UNAUTHORIZED


def mongo_client(mongodb: MongoDB, login: str, own: str) -> MongoClient[Document]:
    return MongoClient(
        mongodb.address.host, mongodb.address.port, username=login, password=password(login),
        authSource=own, retryWrites=False,
    )  # fmt: skip


def test_the_roles_that_are_made_are_these_and_no_more(
    provisioned: Mapping[str, Server], mongodb: MongoDB
) -> None:
    """Whatever the server of the tests enforces: so a MongoDB is told."""
    admin = mongodb.address
    with MongoClient[Document](
        admin.host, admin.port, username=admin.user, password=admin.password.read(),
        authSource="admin", retryWrites=False,
    ) as client:  # fmt: skip
        for login in LOGINS["mongodb"]:
            own = read_model_of(login)
            [found] = client[own].command("usersInfo", login)["users"]
            role = "read" if login.endswith("-service") else "readWrite"
            assert [dict(each) for each in found["roles"]] == [{"role": role, "db": own}]


@pytest.mark.parametrize("login", LOGINS["mongodb"])
@pytest.mark.parametrize("database", ["user_read_model", "order_read_model", "admin"])
def test_a_login_of_the_read_models_may_do_what_its_process_does(
    provisioned: Mapping[str, Server], mongodb: MongoDB, login: str, database: str
) -> None:
    own = read_model_of(login)
    with mongo_client(mongodb, login, own) as client:
        acts: dict[str, Callable[[], object]] = {
            "read": lambda: client[database]["orders"].find_one(),
            "write": lambda: client[database]["orders"].insert_one({}),
            "drop": lambda: client[database].command("dropDatabase"),
        }
        may = set[str]()
        if database == own:
            may = {"read"} if login.endswith("-service") else {"read", "write"}
        for name in ("read", "write"):
            if name in may:
                acts[name]()
            else:
                with pytest.raises(OperationFailure):
                    acts[name]()
        if not may:
            with pytest.raises(OperationFailure):
                acts["drop"]()


def test_a_new_password_is_taken_and_the_old_one_is_no_good(
    servers: Mapping[str, Server], broker: Callable[..., Server], tmp_path: Path
) -> None:
    provision("user", tmp_path, {"RABBITMQ": servers["RABBITMQ"]}, turn=2)
    with channel(broker("user-relay", 2)):
        pass
    with pytest.raises(ProbableAuthenticationError), channel(broker("user-relay", 1)):
        pass
    provision("user", tmp_path, {"RABBITMQ": servers["RABBITMQ"]}, turn=1)


def test_a_login_is_kept_where_the_options_say_that_logins_are(
    servers: Mapping[str, Server], tmp_path: Path
) -> None:
    admin = replace(servers["MONGODB"], options="retryWrites=false&authSource=admin")
    provision("user", tmp_path, {"MONGODB": admin})
    login = replace(
        admin,
        name="user_read_model",
        user="user-projector",
        password=Secret(password("user-projector")),
    )
    Mongo(login).prepare("users", ())


def test_the_exporters_logins_see_a_servers_numbers_and_none_of_its_data(
    servers: Mapping[str, Server], own_postgres: Server, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("passwords")
    asked = {"POSTGRES": own_postgres, "MONGODB": servers["MONGODB"]}
    for turn in (1, 2):  # run again, with another password
        provision("user", folder, asked, turn, MONITORED)
    secret = Secret(password("monitor", 2))
    monitor = replace(own_postgres, user="monitor", password=secret)
    with connect(monitor).connect() as store:
        for numbers in (
            "select pg_database_size('user_event_db')",
            "select 1 / count(*) from pg_stat_activity where state = 'active'",
            "select 1 / count(*) from pg_settings where name = 'max_connections'",
        ):
            assert store.exec_driver_sql(numbers).scalar()
        for more in (
            "create role another", "create database another", "alter role monitor superuser",
            "set role user_owner", "set role postgres", "select * from pg_authid",
            "create table mine (n int)", "select pg_read_file('/etc/passwd')",
            "alter system set work_mem = '4MB'", "grant pg_monitor to user_relay",
        ):  # fmt: skip
            with pytest.raises(DatabaseError, match=r"permission denied|must be"):
                store.exec_driver_sql(more)
    with (
        pytest.raises(DatabaseError, match="permission denied for database"),
        connect(replace(monitor, name="user_event_db")).connect(),
    ):
        pass
    address = servers["MONGODB"]
    with MongoClient[dict[str, object]](
        address.host, address.port, username="monitor", password=password("monitor", 2),
        authSource="admin", retryWrites=False,
    ) as client:  # fmt: skip
        assert client["admin"].command("serverStatus")["ok"]
        for database in ("user_read_model", "admin"):
            with pytest.raises(OperationFailure):
                client[database]["users"].find_one()
            with pytest.raises(OperationFailure):
                client[database]["users"].insert_one({})


def test_the_login_of_the_rate_limits_counts_and_sees_nothing_else(
    servers: Mapping[str, Server], tmp_path: Path
) -> None:
    asked = {"MONGODB": servers["MONGODB"]}
    (tmp_path / "mongodb").mkdir()
    for turn in (1, 2):  # run again, with another password
        (tmp_path / "mongodb" / "gateway").write_text(password("gateway", turn))
        provision("user", tmp_path, asked, turn, (), "--counters=gateway")
    secret = Secret(password("gateway", 2))
    login = replace(
        servers["MONGODB"],
        name="rate_limits", user="gateway", password=secret, options="retryWrites=false",
    )  # fmt: skip
    with closing(SharedCounters(login)) as counters:
        assert counters.acquire_sliding_window_entry("key", 1, 60)
    address = servers["MONGODB"]
    with MongoClient[dict[str, object]](
        address.host, address.port, username="gateway", password=password("gateway", 2),
        authSource="rate_limits", retryWrites=False,
    ) as client:  # fmt: skip
        for database in ("user_read_model", "admin"):
            with pytest.raises(OperationFailure):
                client[database]["users"].find_one()


def test_a_server_that_stays_away_is_named_and_the_command_fails(tmp_path: Path) -> None:
    (tmp_path / "mongodb").mkdir()
    for login in LOGINS["mongodb"]:
        (tmp_path / "mongodb" / login).write_text("any")
    env = {
        "SERVICE": "user",
        "MONGODB_HOST": "127.0.0.1",
        "MONGODB_PORT": str(free_port()),
        "MONGODB_DATABASE": "admin",
        "MONGODB_USER": "admin",
        "MONGODB_PASSWORD": "any",
    }
    done = CliRunner().invoke(
        cli.main,
        ["provision", str(tmp_path), "--wait=0.5", "--projector=user-projector=users"],
        env=env,
    )
    assert done.exit_code != 0
    assert "MongoDB cannot be reached" in str(done.exception)
