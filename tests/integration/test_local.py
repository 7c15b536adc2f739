"""`make run`: the system on one machine, its servers, and its refusals."""

import os
import re
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import urllib3
from pymongo import MongoClient, WriteConcern

from eventcore.settings import Secret, Server
from eventcore.store.connection import connect
from local.child import CannotStart, accepts, is_free
from local.clean import clean
from local.demo import Demo
from local.given import given_mongodb, given_postgres, given_rabbitmq
from local.lock import sole_use
from local.processes import Servers, processes
from local.secretfiles import secret_file
from local.servers import HOST, MongoDB, PostgreSQL, RabbitMQ, free_port
from local.services import ROOT, SERVED

NOWHERE = Server(HOST, 1, "postgres", "nobody", Secret("secret"))


# --- make run ------------------------------------------------------------------------------


class MakeRun:
    """`make run` of the repository at `root`, on a data folder and ports of its own."""

    def __init__(self, folder: Path, root: Path = ROOT, ports: int = len(SERVED)) -> None:
        self.data = folder / "data"
        self.port = _free_ports(ports)
        self._root = root
        self._mark = folder / "tmp"  # a folder that every process it starts is told of
        self._mark.mkdir(parents=True)
        self._log = folder / "log"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, **environ: str) -> None:
        """Start it and wait until it says that everything is ready."""
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "local.run", "--data", self.data, "--port", str(self.port)],
                cwd=self._root,
                env=_environment(self._root) | {"TMPDIR": str(self._mark), **environ},
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        _until(lambda: "Everything is ready" in self.said() or not self._is_running(), 90)
        assert self._is_running(), self.said()

    def send(self, number: signal.Signals) -> int:
        """Send it a signal and return its exit status, once it has ended."""
        assert self._process
        self._process.send_signal(number)
        return self._process.wait(60)

    def said(self) -> str:
        """All that it has said since it was started."""
        return self._log.read_text(errors="replace")

    def left_running(self) -> list[str]:
        """The processes that it has started and that are still there."""
        mark = f"TMPDIR={self._mark}".encode()
        return [_command(each) for each in Path("/proc").glob("[0-9]*") if mark in _environ(each)]

    def url(self, offset: int = 0) -> str:
        """The gateway's URL, or that of a service after it."""
        return f"http://localhost:{self.port + offset}"

    def _is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None


@pytest.fixture
def make_run(data_folder: Path) -> Iterator[MakeRun]:
    run = MakeRun(data_folder / f"make-run-{free_port()}")
    yield run
    if run._is_running():
        run.send(signal.SIGKILL)
        _until(lambda: not run.left_running(), 30)


@pytest.mark.timeout(240)
def test_it_runs_stops_without_a_trace_and_runs_again_on_the_same_data(
    make_run: MakeRun, rabbitmq: RabbitMQ
) -> None:
    make_run.start(http_proxy="http://127.0.0.1:9")
    Demo(make_run.url(), make_run.url(2)).play()
    user_id = _create_user(make_run.url())

    assert make_run.send(signal.SIGINT) == 0
    assert make_run.said().rstrip().endswith("Stopped.")
    assert "has ended" not in make_run.said()
    assert make_run.left_running() == []

    # Again, with a broker that is given this time, and that it must leave alone.
    make_run.start(RABBITMQ_URL=_url("amqp", _own_virtual_host(rabbitmq)))
    assert urllib3.request("GET", f"{make_run.url()}/users/{user_id}").status == 200
    with pytest.raises(CannotStart, match="is running already"):
        clean(make_run.data)

    # A process that is killed is started again, and the others go on.
    begun = re.findall(r"order-relay started \(pid (\d+)\)", make_run.said())
    os.kill(int(begun[0]), signal.SIGKILL)
    again = "order-relay was ended by SIGKILL; it starts again in 1 s"
    _until(lambda: make_run.said().count("order-relay started") == 2, 10)
    assert again in make_run.said()
    Demo(make_run.url(), make_run.url(2)).play()

    # A server that dies is missed at once.
    os.kill(
        int((make_run.data / "postgres/data/postmaster.pid").read_text().split()[0]), signal.SIGINT
    )
    _until(lambda: "PostgreSQL has ended" in make_run.said(), 10)
    assert "`make run` again" in make_run.said()

    # Killed, it cannot stop anything itself.
    make_run.send(signal.SIGKILL)
    _until(lambda: not make_run.left_running(), 30)
    assert rabbitmq.ctl("list_vhosts")

    clean(make_run.data)
    assert not make_run.data.exists()


@pytest.mark.timeout(240)
def test_it_runs_on_servers_that_are_given_and_leaves_them_alone(
    make_run: MakeRun, rabbitmq: RabbitMQ, data_folder: Path
) -> None:
    folder = data_folder / "given"
    postgres = PostgreSQL(folder / "postgres", free_port())
    mongodb = MongoDB(folder / "mongodb", free_port())
    try:
        postgres.start()
        mongodb.start()
        make_run.start(
            DATABASE_URL=_url("postgresql", postgres.address),
            RABBITMQ_URL=_url("amqp", _own_virtual_host(rabbitmq)),
            MONGODB_URL=_url("mongodb", replace(mongodb.address, name="")),
        )
        assert "Using your PostgreSQL." in make_run.said()
        Demo(make_run.url(), make_run.url(2)).play()
        assert make_run.send(signal.SIGINT) == 0
        assert make_run.left_running() == []
        assert accepts(postgres.address.port)
        assert accepts(mongodb.address.port)
        assert sorted(each.name for each in make_run.data.iterdir()) == ["lock", "secrets"]
    finally:
        mongodb.stop()
        postgres.stop()


def test_dashboards_without_containers_are_refused_in_one_sentence(tmp_path: Path) -> None:
    said = _refusal("--data", str(tmp_path / "data"), "--observability")
    assert "needs SERVERS=compose" in said


def test_a_taken_port_is_one_sentence(tmp_path: Path) -> None:
    with socket.create_server((HOST, 0)) as taken:
        port = taken.getsockname()[1]
        said = _refusal("--data", str(tmp_path / "data"), "--port", str(port - 1))
    assert f"Port {port}, which user-service needs, is taken" in said


def test_an_url_that_leads_nowhere_is_one_sentence(tmp_path: Path) -> None:
    port = _free_ports(len(SERVED))
    said = _refusal(
        "--data",
        str(tmp_path / "data"),
        "--port",
        str(port),
        DATABASE_URL=_url("postgresql", NOWHERE),
    )
    assert "DATABASE_URL leads to 127.0.0.1:1, but" in said


def test_only_one_runs_on_a_data_folder(tmp_path: Path) -> None:
    with (
        sole_use(tmp_path),
        pytest.raises(CannotStart, match="is running already"),
        sole_use(tmp_path),
    ):
        pass
    with sole_use(tmp_path):
        pass


# --- servers that are given ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "name", "url", "complaint"),
    [
        (
            given_postgres,
            "DATABASE_URL",
            "mysql://root:x@localhost/",
            "must begin with postgresql://",
        ),
        (given_postgres, "DATABASE_URL", "localhost", "must begin with postgresql://"),
        (given_postgres, "DATABASE_URL", "postgresql://localhost/", "must have the form"),
        (given_rabbitmq, "RABBITMQ_URL", "amqp://a:b@localhost:port/", "must have the form"),
        (given_rabbitmq, "RABBITMQ_URL", "amqp://a:b@127.0.0.1:1/", "leads to 127.0.0.1:1, but"),
        (given_mongodb, "MONGODB_URL", "mongodb://a:b@one:1,two:2/", "names several hosts"),
        (given_mongodb, "MONGODB_URL", "http://localhost/", "must begin with mongodb://"),
    ],
)
def test_a_wrong_url_says_what_is_wrong_with_it(
    given: Callable[[dict[str, str]], object], name: str, url: str, complaint: str
) -> None:
    with pytest.raises(CannotStart, match=f"^{name} .*{re.escape(complaint)}"):
        given({name: url})


def test_a_server_that_is_given_is_tried_with_its_password(
    postgres: PostgreSQL, rabbitmq: RabbitMQ, mongodb: MongoDB
) -> None:
    for given, name, scheme, server in (
        (given_postgres, "DATABASE_URL", "postgresql", postgres.address),
        (given_rabbitmq, "RABBITMQ_URL", "amqp", replace(rabbitmq.address, name="%2F")),
        (given_mongodb, "MONGODB_URL", "mongodb", mongodb.address),
    ):
        found = given({name: _url(scheme, server)})
        assert found
        assert (found.address.host, found.address.port) == (server.host, server.port)
        wrong = replace(server, password=Secret("wrong"))
        with pytest.raises(CannotStart, match=f"^{name} leads to .*, but"):
            given({name: _url(scheme, wrong)})


def test_a_server_without_an_url_is_not_given() -> None:
    assert given_postgres({}) is None
    assert given_rabbitmq({"RABBITMQ_URL": ""}) is None
    assert given_mongodb({}) is None


# --- servers of our own --------------------------------------------------------------------


def test_what_postgres_has_committed_outlives_a_kill(postgres: PostgreSQL) -> None:
    with connect(postgres.address).connect() as connection:
        connection.exec_driver_sql("create table if not exists kept (number int)")
        connection.exec_driver_sql("insert into kept values (7)")
    postgres.kill()
    assert not accepts(postgres.address.port)
    postgres.start()
    with connect(postgres.address).connect() as connection:
        assert connection.exec_driver_sql("select number from kept").scalar() == 7
        connection.exec_driver_sql("drop table kept")


def test_what_mongodb_has_confirmed_outlives_a_kill(mongodb: MongoDB) -> None:
    server = mongodb.login("kept")
    with _mongo_client(server) as client:
        kept = client.kept.get_collection("kept", write_concern=WriteConcern(w="majority"))
        for number in range(50):
            kept.insert_one({"_id": number})
        mongodb.kill()
    mongodb.start()
    with _mongo_client(server) as client:
        assert client.kept.kept.count_documents({}) == 50
        client.kept.kept.drop()


def test_postgres_runs_below_a_folder_that_is_closed_to_others(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    server = PostgreSQL(tmp_path / "postgres", free_port())
    try:
        server.start()
        assert accepts(server.address.port)
    finally:
        server.stop()


def test_a_secret_is_made_once_and_for_its_owner_alone(tmp_path: Path) -> None:
    secret = secret_file(tmp_path / "secrets", "some_login")
    assert secret.read() == secret_file(tmp_path / "secrets", "some_login").read()
    assert secret.file
    assert stat.S_IMODE(secret.file.stat().st_mode) == 0o600


# --- the processes -------------------------------------------------------------------------


def test_a_process_is_told_only_what_it_needs(tmp_path: Path) -> None:
    ports = {"gateway": 3000, "user-service": 3001, "order-service": 3002}
    servers = Servers(NOWHERE, NOWHERE, {"user": NOWHERE, "order": NOWHERE})
    told = {
        each.name: {name.partition("_")[0] for name in each.env if name.endswith("_HOST")}
        | {
            f"{each.env[name].rpartition('/')[2]}"
            for name in each.env
            if re.fullmatch("FEED(_[A-Z]+)?_TOKEN_FILE", name)
        }
        for each in processes(servers, tmp_path, ports=ports, free_port=free_port)
    }
    assert told == {
        "gateway": set(),
        "user-service": {"POSTGRES", "MONGODB", "user_feed_token"},
        "order-service": {"POSTGRES", "MONGODB", "order_feed_token"},
        "user-relay": {"POSTGRES", "RABBITMQ"},
        "order-relay": {"POSTGRES", "RABBITMQ"},
        "user-projector": {"MONGODB", "RABBITMQ", "user_feed_token"},
        "credit-projector": {"MONGODB", "RABBITMQ", "user_feed_token"},
        "user-credit": {"POSTGRES", "MONGODB", "RABBITMQ", "order_feed_token"},
        "order-projector": {"MONGODB", "RABBITMQ", "order_feed_token"},
        "order-user-sync": {"MONGODB", "RABBITMQ", "user_feed_token"},
        "order-customers": {"MONGODB", "RABBITMQ", "user_feed_token", "order_feed_token"},
        "order-saga": {"POSTGRES", "MONGODB", "RABBITMQ", "user_feed_token"},
    }


def test_the_demo_beside_nothing_is_one_sentence() -> None:
    done = _run(sys.executable, "-m", "local.demo", "--gateway", f"http://localhost:{free_port()}")
    assert done.returncode == 1
    assert "is `make run` running?" in done.stderr
    assert done.stderr.count("\n") == 1


# --- the Makefile --------------------------------------------------------------------------


def test_make_alone_lists_its_targets() -> None:
    done = _run("make", "--no-print-directory")
    listed = set(re.findall(r"^  make ([\w-]+) +[A-Z].+", done.stdout, re.MULTILINE))
    targets = set(re.findall(r"^([a-z][a-z0-9-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert listed == targets
    assert re.findall(r"^\w.*", done.stdout, re.MULTILINE)[0] == "Run it on this machine"


def test_without_a_python_that_is_new_enough_there_is_one_sentence(tmp_path: Path) -> None:
    old = tmp_path / "python3"
    old.write_text("#!/bin/sh\nexit 1\n")
    old.chmod(0o755)
    where = {"PATH": str(tmp_path), "PYENV_ROOT": str(tmp_path)}
    done = _run("/bin/bash", "local/make-venv", str(tmp_path / "venv"), "none", **where)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("Python 3.11 or newer is needed: install it")


# --- what the tests above share ------------------------------------------------------------


def _run(*argv: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        argv,
        cwd=ROOT,
        env=_environment() | environ,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def _refusal(*options: str, **environ: str) -> str:
    """What `make run` says when it refuses to start: exactly one line."""
    done = _run(sys.executable, "-m", "local.run", *options, **environ)
    assert done.returncode == 1
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    return line


def _environment(root: Path = ROOT) -> dict[str, str]:
    """Ours, without what the caller may have set for a system of their own."""
    given = ("DATABASE_URL", "RABBITMQ_URL", "MONGODB_URL")
    kept = {name: value for name, value in os.environ.items() if name not in given}
    return kept | {"PYTHONPATH": f"{root / 'services'}:{root}"}


def _url(scheme: str, server: Server) -> str:
    where = f"{server.user}:{server.password.read()}@{server.host}:{server.port}/{server.name}"
    return f"{scheme}://{where}" + (f"?{server.options}" if server.options else "")


def _own_virtual_host(rabbitmq: RabbitMQ) -> Server:
    """A part of the broker where no other test's messages are."""
    if "elsewhere" not in rabbitmq.ctl("list_vhosts").split():
        rabbitmq.ctl("add_vhost", "elsewhere")
        rabbitmq.ctl("set_permissions", "--vhost", "elsewhere", "shop", ".*", ".*", ".*")
    return replace(rabbitmq.address, name="elsewhere")


def _mongo_client(server: Server) -> MongoClient[dict[str, object]]:
    return MongoClient(_url("mongodb", server), serverSelectionTimeoutMS=5000)


def _create_user(gateway: str) -> str:
    person = {"name": "Grace Hopper", "email": "grace@example.com"}
    answer = urllib3.request("POST", f"{gateway}/users", json=person)
    assert answer.status == 202
    return str(answer.json()["userId"])


def _free_ports(count: int) -> int:
    """The first of some ports in a row."""
    while True:
        port = free_port()
        if all(is_free(port + place) for place in range(1, count)):
            return port


def _until(condition: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(0.05)


def _environ(process: Path) -> bytes:
    """A process's environment; empty where it has ended, or is not ours to see."""
    try:
        return (process / "environ").read_bytes()
    except OSError:
        return b""


def _command(process: Path) -> str:
    try:
        return (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return process.name
