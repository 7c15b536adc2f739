"""TLS to each server by setting: its certificate and its name are verified, or nobody is told a
password.

RabbitMQ and the server of read models speak TLS themselves. The PostgreSQL of the tests is built
without it, so one stands before it that does what PostgreSQL's protocol says (SSLRequest) and
passes on all else: who verifies is the client.
"""

import socket
import ssl
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import urllib3

from eventcore.broker.port import Queue
from eventcore.broker.rabbitmq import RabbitMQ as Broker
from eventcore.errors import (
    BrokerUnavailable,
    FeedUnavailable,
    Misconfigured,
    ReadModelUnavailable,
    StoreUnavailable,
)
from eventcore.operate.provision_broker import _Management
from eventcore.readmodel.mongo import Mongo
from eventcore.settings import (
    BrokerSettings,
    ReadModelSettings,
    Secret,
    Server,
    ServeSettings,
    Settings,
    StoreSettings,
)
from eventcore.store.http_feed import HttpFeed
from eventcore.store.postgres import Postgres
from eventcore.web.sockets import SOCKET_TIME, tls_options
from gateway.journey import play
from local.child import Child
from local.processes import Process, Servers, processes
from local.servers import MongoDB, PostgreSQL, RabbitMQ, free_port
from local.services import SERVED, SERVICES
from local.shop import Shop
from tests.certificates import make_ca, sign
from tests.conftest import Databases
from tests.environment import settings_from

pytestmark = pytest.mark.timeout(240)  # the first test of a fixture waits until all have started

HOST = "127.0.0.1"


@dataclass(frozen=True)
class Certificates:
    """A CA of our own, what it has signed, and a CA that has signed nothing."""

    folder: Path

    @property
    def ca(self) -> str:
        return str(self.folder / "ours.crt")

    @property
    def stranger(self) -> str:
        return str(self.folder / "strangers.crt")

    def server(self, name: str) -> tuple[Path, Path]:
        """The certificate and the key of a server: `here`, or `elsewhere`."""
        return self.folder / f"{name}.crt", self.folder / f"{name}.key"


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    folder = tmp_path_factory.mktemp("certificates")
    for ca in ("ours", "strangers"):
        make_ca(folder, ca)
    for name, alternative in (("here", f"IP:{HOST},DNS:localhost"), ("elsewhere", "DNS:elsewhere")):
        sign(folder, "ours", name, alternative)
    return Certificates(folder)


# ── three servers that speak it ───────────────────────────────────────────────────────────


class Encrypting:
    """Stands before a server, and speaks TLS as whom its certificate names.

    `greeted` does what the protocol has before TLS begins.
    """

    def __init__(
        self, port: int, certificate: tuple[Path, Path], greeted: Callable[[socket.socket], None]
    ) -> None:
        self._behind = port
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(*certificate)
        self._greeted = greeted
        self._listening = socket.create_server((HOST, 0))
        self.port = self._listening.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listening.close()

    def _accept(self) -> None:
        with suppress(OSError):  # closed
            while True:
                connection, _ = self._listening.accept()
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with (
            suppress(OSError),
            connection,
            socket.create_connection((HOST, self._behind)) as server,
        ):
            self._greeted(connection)
            with self._context.wrap_socket(connection, server_side=True) as client:
                back = threading.Thread(target=_pass_on, args=(server, client), daemon=True)
                back.start()
                _pass_on(client, server)
                back.join(5)


def _pass_on(source: socket.socket, sink: socket.socket) -> None:
    with suppress(OSError):
        while some := source.recv(65536):
            sink.sendall(some)
    with suppress(OSError):
        sink.shutdown(socket.SHUT_RDWR)


def _as_postgresql(connection: socket.socket) -> None:
    asked = connection.recv(8)
    assert asked == b"\x00\x00\x00\x08\x04\xd2\x16\x2f", "it did not ask for TLS"
    connection.sendall(b"S")


class EncryptedRabbitMQ(RabbitMQ):
    """A node that takes TLS alone, at its management API as well."""

    def __init__(self, folder: Path, certificate: tuple[Path, Path]) -> None:
        super().__init__(folder, free_port())
        self._certificate = certificate
        self.tls_port, self.management_port = free_port(), free_port()

    def _prepare(self) -> None:
        super()._prepare()
        crt, key = self._certificate
        (self._folder / "enabled_plugins").write_text("[rabbitmq_management].\n")
        with (self._folder / "rabbitmq.conf").open("a") as config:
            for place in ("ssl_options", "management.ssl"):
                config.write(f"{place}.certfile = {crt}\n{place}.keyfile = {key}\n")
            config.write(f"listeners.ssl.1 = {HOST}:{self.tls_port}\n")
            config.write(f"management.ssl.ip = {HOST}\n")
            config.write(f"management.ssl.port = {self.management_port}\n")


@pytest.fixture(scope="module")
def node(data_folder: Path, certificates: Certificates) -> Iterator[EncryptedRabbitMQ]:
    node = EncryptedRabbitMQ(data_folder / "rabbitmq-tls", certificates.server("here"))
    node.start()
    yield node
    node.stop()


@pytest.fixture(scope="module")
def places(
    spare_databases: Databases,
    node: EncryptedRabbitMQ,
    certificates: Certificates,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[dict[str, dict[str, Server]]]:
    """Each server as one that is who it says, `here`, and as one that is not, `elsewhere`."""
    folder = tmp_path_factory.mktemp("servers")
    store = spare_databases("spare", "service")
    found: dict[str, dict[str, Server]] = {"POSTGRES": {}, "RABBITMQ": {}, "MONGODB": {}}
    ends: list[Callable[[], None]] = []
    for name in ("here", "elsewhere"):
        crt, key = certificates.server(name)
        before = Encrypting(store.port, (crt, key), _as_postgresql)
        found["POSTGRES"][name] = replace(store, port=before.port)
        away = Encrypting(node.address.port, (crt, key), lambda _: None)
        at = {"here": node.tls_port, "elsewhere": away.port}
        found["RABBITMQ"][name] = replace(node.address, port=at[name])
        port = free_port()
        program = [str(Path(sys.executable).parent / "secantusd-py"), "--host", HOST]
        place = ["--port", str(port), "--storage-path", str(folder / name)]
        tls = ["--tls-cert-file", str(crt), "--tls-key-file", str(key)]
        mongo = Child("SecantusDB", [*program, *place, *tls], folder / f"{name}.log")
        mongo.launch()
        address = Server(HOST, port, "spare", "", Secret(), "retryWrites=false")
        found["MONGODB"][name] = address
        ends += [before.close, away.close, mongo.kill]
        mongo.await_that(lambda port=port: _listens(port), 60)  # type: ignore[misc]
    yield found
    for end in ends:
        end()


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((HOST, port)) == 0


# ── who is believed ───────────────────────────────────────────────────────────────────────


def _use_postgres(server: Server) -> None:
    with closing(Postgres(server, 1)) as store:
        store.require_schema()


def _use_rabbitmq(server: Server) -> None:
    broker = Broker(server, name="tls")
    broker.consumer(Queue("tls", "tls.#"), prefetch=1).close()


def _use_mongodb(server: Server) -> None:
    with closing(Mongo(server)) as readmodel:
        readmodel.ping()


USES = {"POSTGRES": _use_postgres, "RABBITMQ": _use_rabbitmq, "MONGODB": _use_mongodb}
AWAY = (StoreUnavailable, BrokerUnavailable, ReadModelUnavailable)

READ_AS: Mapping[str, tuple[str, type[Settings]]] = {
    "POSTGRES": ("store", StoreSettings),
    "RABBITMQ": ("broker", BrokerSettings),
    "MONGODB": ("readmodel", ReadModelSettings),
}


def told(kind: str, server: Server, **more: str) -> Server:
    """A server as a process reads it from its environment."""
    role, settings = READ_AS[kind]
    name = "VHOST" if kind == "RABBITMQ" else "DATABASE"
    environment = {
        "SERVICE": "user", f"{kind}_HOST": server.host, f"{kind}_PORT": str(server.port),
        f"{kind}_{name}": server.name, f"{kind}_USER": server.user,
        f"{kind}_PASSWORD": server.password.read(), f"{kind}_OPTIONS": server.options,
        **{f"{kind}_{setting}": value for setting, value in more.items()},
    }  # fmt: skip
    found = getattr(settings_from(environment, settings), role)
    assert isinstance(found, Server)
    return found


@pytest.mark.parametrize("host", [HOST, "localhost"])
@pytest.mark.parametrize("kind", USES)
def test_a_server_with_a_certificate_of_the_ca_and_its_name_is_used(
    places: dict[str, dict[str, Server]], certificates: Certificates, kind: str, host: str
) -> None:
    here = replace(places[kind]["here"], host=host)
    USES[kind](told(kind, here, TLS="on", CA_FILE=certificates.ca))


@pytest.mark.parametrize(
    ("place", "ca", "said"),
    [
        ("elsewhere", "ca", r"(?i)certificate|does not match host name"),
        ("here", "stranger", r"(?i)certificate"),
    ],
    ids=["another name", "another CA"],
)
@pytest.mark.parametrize("kind", USES)
def test_a_server_of_another_name_or_ca_is_not(
    places: dict[str, dict[str, Server]],
    certificates: Certificates,
    kind: str,
    place: str,
    ca: str,
    said: str,
) -> None:
    with pytest.raises(AWAY, match=said):
        USES[kind](told(kind, places[kind][place], TLS="on", CA_FILE=getattr(certificates, ca)))


@pytest.mark.parametrize("kind", USES)
def test_without_a_ca_the_systems_own_are_used_and_refuse_ours(
    places: dict[str, dict[str, Server]], kind: str
) -> None:
    with pytest.raises(AWAY, match=r"(?i)certificate"):
        USES[kind](told(kind, places[kind]["here"], TLS="on"))


@pytest.mark.parametrize("kind", USES)
def test_those_of_the_system_are_believed(
    places: dict[str, dict[str, Server]],
    certificates: Certificates,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", certificates.ca)
    USES[kind](told(kind, places[kind]["here"], TLS="on"))


def test_postgresqls_client_is_told_where_the_cas_of_the_system_are(
    places: dict[str, dict[str, Server]],
    certificates: Certificates,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It comes with an OpenSSL that was built elsewhere, and looks where there are none."""
    known = ssl.get_default_verify_paths()._replace(cafile=certificates.ca)
    monkeypatch.setattr(ssl, "get_default_verify_paths", lambda: known)
    _use_postgres(told("POSTGRES", places["POSTGRES"]["here"], TLS="on"))


@pytest.mark.parametrize("kind", USES)
def test_a_ca_that_is_not_there_is_no_reason_to_do_without(
    places: dict[str, dict[str, Server]], certificates: Certificates, kind: str
) -> None:
    with pytest.raises((*AWAY, Misconfigured)):
        USES[kind](told(kind, places[kind]["here"], TLS="on", CA_FILE=f"{certificates.ca}.none"))


def test_a_server_that_speaks_no_tls_is_told_nothing(
    spare_databases: Databases, node: EncryptedRabbitMQ, certificates: Certificates
) -> None:
    plain = {"POSTGRES": spare_databases("spare", "service"), "RABBITMQ": node.address}
    for kind, server in plain.items():
        with pytest.raises(AWAY):
            USES[kind](told(kind, server, TLS="on", CA_FILE=certificates.ca))
        USES[kind](told(kind, server))


@pytest.mark.parametrize(("ca", "known"), [("ours", True), ("strangers", False)])
def test_setup_verifies_rabbitmqs_management_api_too(
    node: EncryptedRabbitMQ, certificates: Certificates, ca: str, known: bool
) -> None:
    file = str(certificates.folder / f"{ca}.crt")
    admin = replace(node.address, port=node.management_port, tls=True, ca_file=file)
    if known:
        assert _Management(admin).has("vhosts/%2F")
    else:
        with pytest.raises(BrokerUnavailable, match=r"(?i)certificate"):
            _Management(admin).has("vhosts/%2F")


@pytest.mark.parametrize("kind", USES)
@pytest.mark.parametrize("word", ["verify-full", "require", "2"])
def test_a_word_that_is_neither_yes_nor_no_is_refused(kind: str, word: str) -> None:
    with pytest.raises(Misconfigured, match=f"{kind}_TLS is '{word}': input should be a valid"):
        told(kind, Server(HOST, 1, "any", "any", Secret("any")), TLS=word)


@pytest.mark.parametrize("kind", USES)
@pytest.mark.parametrize("word", ["on", "true", "yes", "1"])
def test_each_usual_word_for_yes_switches_tls_on(kind: str, word: str) -> None:
    assert told(kind, Server(HOST, 1, "any", "any", Secret("any")), TLS=word).tls


# ── the services themselves, as the gateway and projectors call them ──────────────────────


def _with_tls(process: Process, certificates: Certificates) -> Process:
    """A process whose services speak TLS, and which trusts their CA; `make run` has none."""
    env = {
        name: value.replace("http://", "https://")
        if name == "UPSTREAMS" or name.endswith("_URL")
        else value
        for name, value in process.env.items()
    } | {"SSL_CERT_FILE": certificates.ca}
    if process.name.endswith("-service"):
        crt, key = certificates.server("here")
        env |= {"TLS_CERT_FILE": str(crt), "TLS_KEY_FILE": str(key)}
    probes = f"http://{HOST}:{process.env['METRICS_PORT']}/readyz"
    return replace(process, env=env, ready_url=probes)


@pytest.fixture(scope="module")
def encrypted(
    databases: Databases,
    postgres: PostgreSQL,
    rabbitmq: RabbitMQ,
    mongodb: MongoDB,
    data_folder: Path,
    certificates: Certificates,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Shop]:
    """All processes, with TLS between them."""
    readmodels = {name: mongodb.login(f"{name}_read_model") for name in SERVICES}
    plain = processes(
        Servers(postgres.address, rabbitmq.address, readmodels),
        data_folder / "secrets",
        ports={name: free_port() for name in SERVED},
        free_port=free_port,
        settings={"SWEEP_INTERVAL": "0.5"},
    )
    another = Shop(
        [_with_tls(each, certificates) for each in plain], tmp_path_factory.mktemp("logs")
    )
    try:
        another.start()
        yield another
    finally:
        another.stop()


def _port(shop: Shop, name: str) -> int:
    port = urlsplit(shop.url(name)).port
    assert port
    return port


def test_the_whole_journey_is_played_over_tls(encrypted: Shop) -> None:
    play(encrypted.url("gateway"), lambda _: None)
    for name in encrypted.names:
        assert '"level": "error"' not in encrypted.log(name), name


@pytest.mark.parametrize("sent", [b"", b"GET /healthz HTTP/1.1\r\nHost: x\r\nX-Slow: "])
def test_a_peer_that_stops_within_tls_is_cut_off(
    encrypted: Shop, certificates: Certificates, sent: bytes
) -> None:
    """Within the handshake and within a request: neither holds a thread for long."""
    context = ssl.create_default_context(cafile=certificates.ca)
    place = (HOST, _port(encrypted, "user-service"))
    with socket.create_connection(place, timeout=3 * SOCKET_TIME) as plain:
        if not sent:
            plain.sendall(b"\x16\x03\x01")  # the first bytes of a handshake
            assert plain.recv(100) == b""
            return
        with context.wrap_socket(plain, server_hostname=HOST) as peer:
            peer.sendall(sent)
            with suppress(ssl.SSLEOFError):
                assert peer.recv(100) == b""


def test_who_speaks_no_tls_is_refused_and_nothing_is_logged(encrypted: Shop) -> None:
    before = len(encrypted.log("user-service"))
    with socket.create_connection((HOST, _port(encrypted, "user-service")), timeout=20) as plain:
        plain.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        assert b" 200 " not in plain.recv(1000)
    assert '"level": "error"' not in encrypted.log("user-service")[before:]


def test_a_service_of_another_ca_is_told_nothing(
    encrypted: Shop, certificates: Certificates, tmp_path: Path
) -> None:
    stranger = {"SSL_CERT_FILE": certificates.stranger, "SSL_CERT_DIR": str(tmp_path)}
    env = {**encrypted.environment("gateway"), **stranger}
    place = {"PORT": str(free_port()), "METRICS_PORT": str(free_port())}
    url = f"http://{HOST}:{place['METRICS_PORT']}/readyz"
    argv = (sys.executable, "-m", "eventcore", "serve")
    gateway = Shop([Process("gateway", argv, env | place, int(place["PORT"]), url)], tmp_path)
    gateway.start()
    try:
        answer = urllib3.request("GET", f"{gateway.url('gateway')}/users/x", retries=False)
        assert answer.status == 503
        assert b"upstream-away" in answer.data
    finally:
        gateway.stop()
    feed = HttpFeed(f"https://{HOST}:{_port(encrypted, 'user-service')}", Secret("none"))
    with pytest.raises(FeedUnavailable, match=r"(?i)certificate"):
        feed.progress()


@pytest.mark.parametrize("wrong", ["TLS_CERT_FILE", "TLS_KEY_FILE"])
def test_a_certificate_that_cannot_be_read_ends_the_start_with_its_name(
    certificates: Certificates, wrong: str
) -> None:
    crt, key = certificates.server("here")
    told = {"TLS_CERT_FILE": str(crt), "TLS_KEY_FILE": str(key), wrong: "/nowhere"}
    environment = {"SERVICE": "any", "PORT": "1", **told}
    with pytest.raises(Misconfigured, match=rf"{wrong} '/nowhere'.* cannot be used"):
        tls_options(settings_from(environment, ServeSettings))
