"""The log of every process under load, while processes and servers are taken away and given back:
lines that a machine can read, with the ids by which they are found, and nobody's name in any.
"""

import json
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pika
import pytest
import urllib3

from eventcore.model.event import NewEvent
from eventcore.store.connection import connect
from eventcore.store.port import Stream
from eventcore.store.postgres import Postgres
from local.servers import MongoDB, PostgreSQL, RabbitMQ
from local.shop import Shop
from tests.conftest import Databases
from tests.integration.conftest import AnotherShop
from tests.integration.wire import Wire

PATIENCE = 60.0

pytestmark = pytest.mark.timeout(400)  # all processes are restarted, some of them often

NAME, HOST = "Zebedee", "private.example"
"""A text in every name and e-mail of the load, and in no log line."""

UNLUCKY = "Zebedee Unlucky"
"""A user whom the database refuses, with the whole row in its error."""

Line = dict[str, Any]


@dataclass
class Said:
    """The lines of a run, and what happened in it."""

    shop: Shop
    trail: str
    secrets: dict[str, str]
    lines: dict[str, list[str]] = field(default_factory=dict)

    def parsed(self, process: str) -> list[Line]:
        return [json.loads(line) for line in self.lines[process]]

    def all(self) -> Iterator[tuple[str, Line]]:
        for process in self.lines:
            for line in self.parsed(process):
                yield process, line


APPLYING = ("user-projector", "order-user-sync", "order-customers")
"""Processes that apply the event of a new user, each in its own time."""


class Callers:
    """Some who go on calling, whatever they are answered."""

    def __init__(self, shop: Shop) -> None:
        self._gateway = shop.url("gateway")
        self._stop = threading.Event()

    def call(
        self, method: str, path: str, body: object, name: str = ""
    ) -> urllib3.BaseHTTPResponse:
        headers = {"X-Correlation-ID": name, "X-Request-ID": f"zebedee@{HOST}"} if name else {}
        return urllib3.request(
            method, self._gateway + path, json=body, headers=headers, timeout=12, retries=False
        )

    @contextmanager
    def calling(self) -> Iterator[None]:
        threads = [threading.Thread(target=self._run, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self._stop.set()
            for thread in threads:
                thread.join()

    def _run(self, number: int) -> None:
        count = 0
        while not self._stop.wait(0.05):
            count += 1
            try:
                self._some_calls(f"{number}.{count}")
            except urllib3.exceptions.HTTPError:
                continue  # what it called is down

    def _some_calls(self, number: str) -> None:
        person = {"name": f"{NAME} {number}", "email": f"zebedee.{number}@{HOST}"}
        created = self.call("POST", "/users", person)
        self.call("POST", "/users", {**person, "name": f"{NAME}\n{{}}"})
        self.call("POST", "/users", {**person, "unknown": person})
        self.call("GET", f"/users/zebedee.{number}@{HOST}", None)
        if created.status == 202:
            user = created.json()["userId"]
            self.call("PUT", f"/users/{user}", {"name": f"{NAME} the {number}."})
            order = {"userId": user, "item": f"A bust of {NAME}", "price": 1}
            self.call("POST", "/orders", order)


@pytest.fixture(scope="module")
def said(
    another_shop: AnotherShop,
    postgres: PostgreSQL,
    rabbitmq: RabbitMQ,
    mongodb: MongoDB,
    databases: Databases,
    data_folder: Path,
) -> Said:
    """A run with all of it, to its end."""
    with another_shop(LOG_FORMAT="json", OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:9") as shop:
        callers = Callers(shop)
        with callers.calling():
            _kill_processes(shop)
            _take_servers_away(
                shop, {"RabbitMQ": rabbitmq, "MongoDB": mongodb, "Postgres": postgres}
            )
            _send_nonsense(shop, rabbitmq)
        _append_what_no_code_knows(shop, callers, databases)
        _let_the_database_refuse(callers, databases)
        trail = f"trail-{uuid4()}"
        person = {"name": NAME, "email": f"zebedee@{HOST}"}
        assert callers.call("POST", "/users", person, trail).status == 202
        for process in APPLYING:
            until(lambda at=process: trail in shop.log(at))  # type: ignore[misc]
        secrets = {
            file.name: file.read_text().strip() for file in (data_folder / "secrets").iterdir()
        }
    lines = {name: shop.log(name).removesuffix("\n").split("\n") for name in shop.names}
    return Said(shop, trail, secrets, lines)


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.05)


def _kill_processes(shop: Shop) -> None:
    service = shop.pid("user-service")
    workers = Path(f"/proc/{service}/task/{service}/children")
    os.kill(int(workers.read_text().split()[0]), signal.SIGKILL)
    for process in ("user-relay", "user-projector", "order-user-sync", "order-service"):
        shop.kill(process)
        shop.start(process)
    shop.restart("gateway", "order-relay", "order-projector")


def _take_servers_away(shop: Shop, servers: dict[str, RabbitMQ | MongoDB | PostgreSQL]) -> None:
    who = {"RabbitMQ": "user-relay", "MongoDB": "user-projector", "Postgres": "user-relay"}
    for name, server in servers.items():
        seen = shop.log(who[name]).count(f"Waiting for {name}")
        server.stop()
        until(lambda n=name, s=seen: shop.log(who[n]).count(f"Waiting for {n}") > s)  # type: ignore[misc]
        server.start()
        shop.await_ready()


def _send_nonsense(shop: Shop, rabbitmq: RabbitMQ) -> None:
    """To the services, to the port of probes and to the broker; each with somebody's e-mail."""
    mail = f"zebedee@{HOST}".encode()
    wire = Wire(shop)
    for at in ("gateway", "user-service"):
        wire.exchange(b"GET /users/" + mail + b" HTTP/9.9\r\n\r\n", at)
        wire.exchange(b"GET /" + mail + b"\r\n\r\n", at)
        wire.exchange(b"\x16\x03\x01" + mail + b"\r\n\r\n", at)
        wire.exchange(b"GET /users HTTP/1.1\r\nHost: x\r\n" + mail + b"\r\n\r\n", at)
        wire.exchange(b"GET /users HTTP/1.1\r\nHost: x\r\nX-\x00: " + mail + b"\r\n\r\n", at)
        chunks = b"Transfer-Encoding: chunked\r\n\r\n" + mail + b"\r\n\r\n"
        wire.exchange(b"POST /users HTTP/1.1\r\nHost: x\r\n" + chunks, at)
        wire.send("POST", "/users", b'{"name": "' + mail, at=at)
        wire.send("POST", "/users", b"{}", {"X-Correlation-ID": mail.decode()}, at=at)
    for process in ("user-service", "user-relay", "user-projector"):
        _hang_up(int(shop.environment(process)["METRICS_PORT"]))
    address = rabbitmq.address
    who = pika.PlainCredentials(address.user, address.password.read())
    place = pika.ConnectionParameters(address.host, address.port, address.name, who)
    connection = pika.BlockingConnection(place)
    connection.channel().basic_publish("events", "user.made-up", b'{"specVersion": "%b"}' % mail)
    connection.close()
    until(lambda: "Failed to parse message" in shop.log("user-projector"))


def _hang_up(port: int) -> None:
    """Ask, and be gone before the answer."""
    with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n" * 50)


def _append_what_no_code_knows(shop: Shop, callers: Callers, databases: Databases) -> None:
    person = {"name": NAME, "email": f"zebedee@{HOST}"}
    user_id = callers.call("POST", "/users", person).json()["userId"]
    with closing(Postgres(databases("user", "service"), 1)) as store:
        event = NewEvent(uuid4(), "USER_MARRIED", 1, person)
        store.append(Stream("user", UUID(user_id)), 1, [event], {})
    until(lambda: "Stream parked" in shop.log("user-projector"))


def _let_the_database_refuse(callers: Callers, databases: Databases) -> None:
    """An error that nobody expects, which the database explains with all that was to be written."""
    with closing(connect(databases("user", "owner")).connect()) as owner:
        owner.exec_driver_sql(
            "alter table events add constraint nobody check (data->>'name' is distinct from"
            f" '{UNLUCKY}') not valid"
        )
        try:
            person = {"name": UNLUCKY, "email": f"zebedee@{HOST}"}
            assert callers.call("POST", "/users", person).status == 500
        finally:
            owner.exec_driver_sql("alter table events drop constraint nobody")


def test_every_line_is_one_json_object_that_says_when_who_and_what(said: Said) -> None:
    for process, lines in said.lines.items():
        environment = said.shop.environment(process)
        for line in lines:
            found = json.loads(line)
            moment = datetime.fromisoformat(found["time"])
            assert moment.utcoffset() is not None, line
            assert found["level"] in ("info", "warning", "error", "critical"), line
            assert found["message"], line
            assert found["service"] == environment["SERVICE"], line
            assert found["process"], line
    assert {line["level"] for _, line in said.all()} >= {"info", "warning", "error"}


IDS = {
    "Answered": "method route status ms request_id correlation_id trace_id span_id",
    "User Event [USER_CREATED] saved to Postgres":
        "id event_id request_id correlation_id trace_id span_id",
    "Order Event [ORDER_PLACED] saved to Postgres":
        "id event_id request_id correlation_id trace_id span_id",
    "Updating User Projection": "id version event_id correlation_id trace_id",
    "User cached in Order Service": "id version event_id correlation_id trace_id",
    "Order Read Model updated": "id version event_id correlation_id trace_id",
    "Stream parked": "projection id version event_type event_id error",
    "Failed to parse message": "projection id error",
    "Unexpected error": "request_id correlation_id trace_id span_id exception",
}  # fmt: skip


REFUSED = {400, 408, 413, 414, 415, 417, 431, 501, 503}
"""Statuses of requests that the server refuses before the application sees them."""


@pytest.mark.parametrize("message", IDS)
def test_a_line_has_its_ids(said: Said, message: str) -> None:
    found = [line for _, line in said.all() if line["message"] == message]
    assert found, "nobody has said so"
    for line in found:
        if message == "Updating User Projection" and "correlation_id" not in line:
            continue  # appended by no request
        if line.get("route") == "(no route)" and line["status"] in REFUSED:
            continue  # refused before the application saw it, so in no trace
        assert set(IDS[message].split()) <= set(line), line


def test_the_routes_of_the_access_log_have_no_ids_in_them(said: Said) -> None:
    answered = [line for _, line in said.all() if line["message"] == "Answered"]
    assert {line["status"] for line in answered} >= {200, 202, 404, 422, 500}
    assert not [line for line in answered if re.search("[0-9@]", line["route"])]


def test_one_request_is_found_in_all_processes_by_its_ids(said: Said) -> None:
    trail = [(p, line) for p, line in said.all() if line.get("correlation_id") == said.trail]
    processes = {process for process, _ in trail}
    assert processes == {"gateway", "user-service", *APPLYING}
    assert len({line["trace_id"] for _, line in trail}) == 1
    assert len({line["event_id"] for _, line in trail if "event_id" in line}) == 1


def test_nobodys_name_and_no_e_mail_is_in_any_line(said: Said) -> None:
    for process, lines in said.lines.items():
        told = [line for line in lines if NAME.lower() in line.lower() or HOST in line]
        assert told == [], process


def test_no_password_is_in_any_line(said: Said) -> None:
    assert len(said.secrets) > 8
    for process, lines in said.lines.items():
        text = "\n".join(lines)
        assert [name for name, secret in said.secrets.items() if secret in text] == [], process


GUIDE = {
    "gateway": "Gateway on {port}",
    "user-service": "User Service on {port}|Connected to Postgres|Connected to MongoDB"
    "|User Event [USER_CREATED] saved to Postgres",
    "order-service": "Order Service on {port}|Connected to Postgres|Connected to MongoDB"
    "|Order Event [ORDER_PLACED] saved to Postgres",
    "user-relay": "Connected to Postgres|Connected to RabbitMQ",
    "user-projector": "Connected to RabbitMQ|Connected to MongoDB|Updating User Projection"
    "|Failed to parse message",
    "order-projector": "Connected to RabbitMQ|Connected to MongoDB|Order Read Model updated",
    "order-user-sync": "Connected to RabbitMQ|User cached in Order Service",
}


@pytest.mark.parametrize("process", GUIDE)
def test_the_guides_lines_are_kept_as_messages(said: Said, process: str) -> None:
    port = said.shop.environment(process).get("PORT", "")
    wanted = set(GUIDE[process].format(port=port).split("|"))
    assert wanted - {line["message"] for line in said.parsed(process)} == set()


# ── one process alone ─────────────────────────────────────────────────────────────────────


def spoken(code: str) -> list[Line]:
    """The lines of a process that runs `code` once its log is set up; nothing is on stderr."""
    begin = (
        "from eventcore.observe import logs\nlogs.start_logging('shop', 'test', 'json', 'info')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", begin + code],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.stderr == ""
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.parametrize(
    ("code", "level", "part"),
    [
        ("import warnings; warnings.warn('is old', DeprecationWarning)", "warning", "is old"),
        ("raise ValueError('no\\nmore')", "critical", "ValueError: no"),
        (
            "import threading\ndef end(): raise KeyError('a')\n"
            "thread = threading.Thread(target=end); thread.start(); thread.join()",
            "critical",
            "in end",
        ),
        (
            "class Gone:\n    def __del__(self): raise KeyError('b')\nGone()",
            "critical",
            "KeyError: 'b'",
        ),
        (
            "import logging\ntry:\n    1 / 0\nexcept ZeroDivisionError:\n"
            "    logging.getLogger('x').exception('odd')",
            "error",
            "ZeroDivisionError",
        ),
        ("import logging; logging.getLogger('x').info('a\\nb')", "info", "a\nb"),
    ],
    ids=["warning", "uncaught", "in a thread", "in a finalizer", "logged", "a line break"],
)
def test_whatever_python_itself_would_print_is_a_line_like_any_other(
    code: str, level: str, part: str
) -> None:
    [line] = spoken(code)
    assert line["level"] == level
    assert part in line["message"] + line.get("exception", "")


@pytest.mark.parametrize("background", ["", "logs.write_lines_in_background()\n"])
def test_lines_of_many_threads_are_each_there_once_and_in_order(background: str) -> None:
    lines = spoken(
        background + "import logging, threading\n"
        "def talk(name):\n"
        "    for n in range(2_000): logging.info('%s %s', name, n)\n"
        "threads = [threading.Thread(target=talk, args=(str(n),)) for n in range(8)]\n"
        "for each in threads: each.start()\n"
        "for each in threads: each.join()"
    )
    for name in map(str, range(8)):
        told = [line["message"] for line in lines if line["message"].startswith(f"{name} ")]
        assert told == [f"{name} {n}" for n in range(2_000)]


def test_background_lines_have_their_error_and_the_ids_of_their_request() -> None:
    [line] = spoken(
        "logs.write_lines_in_background()\nimport logging\n"
        "with logs.log_fields(request_id='r'):\n"
        "    try:\n        1 / 0\n    except ZeroDivisionError:\n"
        "        logging.getLogger('x').exception('odd %s', 'thing', extra={'id': 'i'})"
    )
    assert (line["message"], line["request_id"], line["id"]) == ("odd thing", "r", "i")
    assert "ZeroDivisionError" in line["exception"]


def test_while_nobody_reads_a_process_that_logs_waits() -> None:
    program = (
        "import logging\nfrom eventcore.observe import logs\n"
        "logs.WAITING_LINES = 10\n"
        "logs.start_logging('shop', 'test', 'json', 'info')\n"
        "logs.write_lines_in_background()\n"
        "for n in range(5_000): logging.info('%s', n)\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as process:
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(3)
        assert process.stdout
        lines = process.stdout.read().splitlines()
        assert [json.loads(line)["message"] for line in lines] == [str(n) for n in range(5_000)]


def test_an_error_says_where_it_came_from_and_not_what_it_failed_with() -> None:
    [line] = spoken(
        "def write(): raise OSError('refused\\nDETAIL: A' 'da')\n"
        "try:\n    write()\nexcept OSError as e:\n"
        "    raise ValueError('batch op errors, full error: A' 'da') from e"
    )
    assert "in write" in line["exception"]
    assert "batch op errors" in line["exception"]
    assert "OSError: refused" in line["exception"]
    assert "Ada" not in line["exception"]


@pytest.mark.parametrize("command", ["serve", "relay", "project users"])
def test_a_process_says_in_one_line_of_its_log_why_it_cannot_start(
    shop: Shop, command: str
) -> None:
    environment = dict(shop.environment("user-projector"))
    environment |= {"LOG_LEVEL": "loud", "LOG_FORMAT": "json", "SERVICE": "user"}
    done = subprocess.run(
        [sys.executable, "-m", "eventcore", *command.split()],
        env=environment, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr == ""
    line = json.loads(done.stdout)
    assert (line["level"], line["service"], line["process"]) == ("critical", "user", command)
    assert "LOG_LEVEL is 'loud': input should be 'debug', 'info'" in line["message"]


@pytest.mark.parametrize(
    ("level", "told"),
    [("debug", True), ("INFO", True), ("warning", False), ("ERROR", False)],
)
def test_the_environment_says_how_much_is_told(
    another_shop: AnotherShop, level: str, told: bool
) -> None:
    with another_shop("user-service", LOG_LEVEL=level) as shop:
        body = json.dumps({"name": NAME, "email": f"zebedee@{HOST}"}).encode()
        assert Wire(shop).send("POST", "/users", body, at="user-service").status == 202
        shop.stop()
        lines = [json.loads(line) for line in shop.log("user-service").splitlines()]
    assert bool([line for line in lines if line["message"] == "Answered"]) is told
    assert (lines == []) is not told
    assert not [line for line in lines if NAME in str(line)]
