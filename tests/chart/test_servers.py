"""The bundled servers start on every machine, know their limits and are of one release line."""

import json
import re
from pathlib import Path
from typing import Any

import pika
import pytest

from local.servers import RabbitMQ, free_port
from tests.chart.render import CHART, ROOT, SERVERS, Object, notes, render
from tests.chart.test_pods import quantity

LINES = {
    # the newest line that starts on every kernel: 8.0 and newer refuse Linux 6.19 to 7.0.13
    "mongodb": "mongo:7.0",
    # a claim of 4.2 can be taken to 4.3, and one of 4.1 cannot
    "rabbitmq": "rabbitmq:4.2-management",
    # PostgreSQL's lines are its major versions: 17.x has one data format
    "postgres": "postgres:17",
}

KERNEL = "MongoDB cannot start: Linux kernel versions 6.19"


def server(name: str, given: Object | None = None) -> Object:
    """The spec of a server's pod."""
    return render(given=given).pod(name).spec


def configuration(given: Object | None = None) -> str:
    """The rendered rabbitmq.conf."""
    text: str = render(given=given).named("ConfigMap")["shop-rabbitmq"]["data"]["rabbitmq.conf"]
    return text


def setting(name: str, text: str) -> str:
    """The value of a setting of rabbitmq.conf; the last one counts."""
    *_, last = re.finditer(rf"(?m)^{re.escape(name)} = (.*)$", text)
    return last[1]


@pytest.mark.parametrize("name", SERVERS)
def test_a_server_follows_one_release_line(name: str) -> None:
    for container in server(name)["containers"]:
        assert container["image"] == LINES[name]


@pytest.mark.parametrize("name", SERVERS)
def test_the_page_on_upgrades_has_the_line_of_each_server(name: str) -> None:
    page = (ROOT / "docs" / "upgrading-servers.md").read_text()
    assert f"`{LINES[name]}`" in page


@pytest.mark.parametrize("name", SERVERS)
def test_compose_runs_what_the_chart_runs(name: str) -> None:
    assert f"image: {LINES[name]}\n" in (ROOT / "compose.yaml").read_text()


def test_the_line_that_mongodb_prints_on_a_wrong_kernel_is_explained() -> None:
    assert KERNEL in (ROOT / "docs/runbooks/ShopMongoDown.md").read_text()
    assert KERNEL not in notes()
    for tag in ("8.0", "8", 8):
        assert KERNEL in notes({"mongodb": {"image": {"tag": tag}}})


@pytest.mark.parametrize("name", SERVERS)
def test_a_server_takes_environment_variables(name: str) -> None:
    tuned = {"name": "GLIBC_TUNABLES", "value": "glibc.pthread.rseq=1"}
    spec = server(name, {name: {"extra": {"env": [tuned]}}})
    assert tuned in spec["containers"][0]["env"]


def test_mongodb_takes_arguments() -> None:
    (container,) = server("mongodb", {"mongodb": {"args": ["--ipv6"]}})["containers"]
    assert container["args"][-1] == "--ipv6"


def test_postgres_creates_its_data_by_the_images_own_script() -> None:
    (init,) = server("postgres", {"postgres": {"parameters": {"work_mem": "8MB"}}})[
        "initContainers"
    ]
    assert init["command"] == ["docker-ensure-initdb.sh"]
    # a server that prints a setting and ends is not one that the script could ask
    assert init["args"][0] == "postgres"
    assert "-C" not in init["args"]
    assert "-cwork_mem=8MB" in init["args"]


@pytest.mark.parametrize("limit", ["512Mi", "1Gi", "1500M", "2147483648"])
def test_rabbitmq_is_told_a_part_of_its_limit_as_its_memory(limit: str) -> None:
    text = configuration({"rabbitmq": {"resources": {"limits": {"memory": limit}}}})
    told = int(setting("total_memory_available_override_value", text))
    assert told == int(quantity(limit)) * 4 // 5


def test_rabbitmq_has_room_beside_its_alarm_and_its_log() -> None:
    text = configuration()
    limit = quantity(server("rabbitmq")["containers"][0]["resources"]["limits"]["memory"])
    told = int(setting("total_memory_available_override_value", text))
    alarm = told * float(setting("vm_memory_high_watermark.relative", text))
    log = int(setting("raft.wal_max_size_bytes", text))
    assert alarm + 2 * log < limit
    assert 3 * log < limit, "as RabbitMQ's documentation on quorum queues asks"
    share = f"{round(100 * alarm / limit)} %"
    for page in ("docs/runbooks/ShopRabbitAlarm.md", "charts/shop/charts/rabbitmq/values.yaml"):
        assert share in (ROOT / page).read_text(), page


def test_a_line_of_yours_follows_the_charts_own() -> None:
    text = configuration(
        {"rabbitmq": {"configuration": "vm_memory_high_watermark.relative = 0.3\n"}}
    )
    assert setting("vm_memory_high_watermark.relative", text) == "0.3"


def test_rabbitmq_without_a_limit_reads_the_nodes_memory() -> None:
    text = configuration({"rabbitmq": {"resources": {"limits": {"memory": None}}}})
    assert "total_memory_available_override_value" not in text


def test_rabbitmq_has_a_limit_of_open_files_on_every_host() -> None:
    (container,) = server("rabbitmq")["containers"]
    told = {each["name"]: each.get("value") for each in container["env"]}
    assert told["RABBITMQ_MAX_OPEN_FILES"] == "65536"


class Configured(RabbitMQ):
    """RabbitMQ of this machine with the chart's rabbitmq.conf."""

    def _prepare(self) -> None:
        super()._prepare()
        file = self._folder / "rabbitmq.conf"
        file.write_text(f"{file.read_text()}\n{configuration()}")


@pytest.mark.servers
@pytest.mark.timeout(240)
def test_rabbitmqs_alarm_answers_a_flood_before_its_limit_does(tmp_path: Path) -> None:
    limit = quantity(server("rabbitmq")["containers"][0]["resources"]["limits"]["memory"])
    broker = Configured(tmp_path / "rabbitmq", free_port(), metrics_port=free_port())
    broker.start()
    try:
        assert status(broker)["vm_memory_high_watermark_limit"] < limit / 2
        at = broker.address
        credentials = pika.PlainCredentials(at.user, at.password.read())
        connection = pika.BlockingConnection(
            pika.ConnectionParameters(
                at.host, at.port, credentials=credentials, blocked_connection_timeout=3
            )
        )
        channel = connection.channel()
        channel.queue_declare("flood", durable=True, arguments={"x-queue-type": "quorum"})
        channel.confirm_delivery()

        def flood() -> None:
            message = b"x" * 2**18
            for _ in range(8 * int(limit) // len(message)):
                channel.basic_publish("", "flood", message)

        with pytest.raises(pika.exceptions.ConnectionBlockedTimeout):
            flood()
        assert "memory resource limit alarm set on node" in (tmp_path / "rabbitmq/log").read_text()
        assert status(broker)["memory"]["total"]["rss"] < limit
    finally:
        broker.stop()


def status(broker: RabbitMQ) -> dict[str, Any]:
    """`rabbitmqctl status`."""
    found: dict[str, Any] = json.loads(broker.ctl("status", "--formatter=json"))
    return found


def test_the_charts_of_servers_say_their_lines_themselves() -> None:
    for name, image in LINES.items():
        text = (CHART / "charts" / name / "Chart.yaml").read_text()
        assert f'appVersion: "{image.partition(":")[2]}"\n' in text
