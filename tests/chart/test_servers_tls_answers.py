"""With `global.serversTls`: RabbitMQ's configuration on a node, and the scripts of the probes."""

import json
import re
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pika
import pytest

from local.child import Child
from local.servers import RabbitMQ, free_port
from tests.certificates import make_ca, sign
from tests.chart.render import render
from tests.chart.test_servers_tls import ON

pytestmark = [pytest.mark.servers, pytest.mark.timeout(240)]

HOST = "127.0.0.1"


def configured(server: str, key: str) -> str:
    """A file of a server's ConfigMap."""
    text: str = render(given=ON).named("ConfigMap")[f"shop-{server}"]["data"][key]
    return text


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the Secret has."""
    folder = tmp_path_factory.mktemp("tls")
    make_ca(folder, "ca")
    sign(folder, "ca", "tls", "DNS:shop-rabbitmq,DNS:shop-mongodb")
    return folder


class Probe:
    """The script by which a server's probes ask it, for a server at a port of this machine."""

    def __init__(self, server: str, port: int, certificate: Path) -> None:
        text, found = re.subn(
            r"-connect .* 2>", f"-connect {HOST}:{port} 2>", configured(server, "answers")
        )
        assert found == 1
        self._text = text.replace("/tls/", f"{certificate}/")

    def script(self, name: str = "") -> str:
        """The text, with another `name` to be verified if one is given."""
        return (
            re.sub(r"(-verify_hostname) \S+(?=\))", rf"\1 {name}", self._text)
            if name
            else self._text
        )

    def answers(self, *arguments: str, name: str = "") -> bool:
        """Whether it says yes."""
        argv = ["bash", "-c", self.script(name), "answers", *arguments]
        return subprocess.run(argv, timeout=20, check=False).returncode == 0

    def check(self) -> None:
        """Asserts that it answers, and only by the name that the certificate has."""
        assert self.answers()
        assert self.answers("verified")
        assert not self.answers("verified", name="shop-other")
        assert self.answers(name="shop-other"), "liveness verifies nothing"


class Encrypted(RabbitMQ):
    """RabbitMQ of this machine with the chart's rabbitmq.conf, at ports of its own."""

    def __init__(self, folder: Path, certificate: Path) -> None:
        super().__init__(folder, free_port())
        self._certificate = certificate
        self.tls_port, self.management_port = free_port(), free_port()
        self.probe = Probe("rabbitmq", self.tls_port, certificate)
        for name in ("RABBITMQ_NODE_PORT", "RABBITMQ_NODE_IP_ADDRESS"):
            del self._env[name]

    def _prepare(self) -> None:
        super()._prepare()
        text = configured("rabbitmq", "rabbitmq.conf")
        for old, new in (
            ("/tls/", f"{self._certificate}/"),
            ("default = 5671", f"default = {HOST}:{self.tls_port}"),
            ("ssl.port = 15671", f"ssl.port = {self.management_port}\nmanagement.ssl.ip = {HOST}"),
        ):
            assert old in text
            text = text.replace(old, new)
        file = self._folder / "rabbitmq.conf"
        own = [line for line in file.read_text().splitlines() if not line.startswith("listeners")]
        file.write_text("\n".join([*own, text]))
        (self._folder / "enabled_plugins").write_text("[rabbitmq_management].\n")

    def _answers(self) -> bool:
        return self.probe.answers("verified")


@pytest.fixture(scope="module")
def broker(certificate: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Encrypted]:
    broker = Encrypted(tmp_path_factory.mktemp("rabbitmq"), certificate)
    broker.start()
    yield broker
    broker.stop()


def test_rabbitmq_listens_by_tls_alone(broker: Encrypted, certificate: Path) -> None:
    found = json.loads(broker.ctl("status", "--formatter=json"))["listeners"]
    ports = {each["protocol"]: each["port"] for each in found if each["protocol"] != "clustering"}
    assert ports == {"amqp/ssl": broker.tls_port, "https": broker.management_port}
    context = ssl.create_default_context(cafile=str(certificate / "ca.crt"))
    at = broker.address
    connection = pika.BlockingConnection(
        pika.ConnectionParameters(
            HOST,
            broker.tls_port,
            credentials=pika.PlainCredentials(at.user, at.password.read()),
            ssl_options=pika.SSLOptions(context, "shop-rabbitmq"),
        )
    )
    connection.close()


def test_rabbitmqs_probe_asks_by_tls(broker: Encrypted, certificate: Path) -> None:
    broker.probe.check()
    assert not Probe("rabbitmq", free_port(), certificate).answers()


def test_mongodbs_probe_asks_by_tls(certificate: Path, tmp_path: Path) -> None:
    port = free_port()
    probe = Probe("mongodb", port, certificate)
    assert not probe.answers()
    program = str(Path(sys.executable).parent / "secantusd-py")
    tls = ("--tls-cert-file", certificate / "tls.crt", "--tls-key-file", certificate / "tls.key")
    place = ("--host", HOST, "--port", str(port), "--storage-path", str(tmp_path / "data"))
    server = Child("SecantusDB", [program, *place, *map(str, tls)], tmp_path / "log")
    server.launch()
    try:
        server.await_that(probe.answers, 60)
        probe.check()
    finally:
        server.stop()


ADOPTING = """
import ctypes, os, subprocess, sys
ctypes.CDLL(None).prctl(36, 1)  # PR_SET_CHILD_SUBREAPER: orphans become children of this one
subprocess.run(["bash", "-c", *sys.argv[1:]])
try:
    os.waitpid(-1, 0)
except ChildProcessError:
    print("none is left")
"""


@pytest.mark.parametrize("name", ["shop-rabbitmq", "shop-other"])
def test_a_probe_leaves_no_process_to_the_server_as_process_1(name: str, broker: Encrypted) -> None:
    argv = [sys.executable, "-c", ADOPTING, broker.probe.script(name), "answers", "verified"]
    for _ in range(5):
        done = subprocess.run(argv, capture_output=True, text=True, timeout=20, check=True)
        assert done.stdout == "none is left\n"
