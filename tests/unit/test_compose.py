"""The servers in containers: compose.yaml, and how `make run SERVERS=compose` uses it."""

import json
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml

from eventcore.settings import Secret, Server
from local.child import CannotStart
from local.clean import clean
from local.compose import containers, targets
from local.processes import Servers, processes
from local.services import ROOT, SERVED, SERVICES

COMPOSE = yaml.safe_load((ROOT / "compose.yaml").read_text())
CONTAINERS: dict[str, dict[str, Any]] = COMPOSE["services"]
URLS = {"DATABASE_URL": "postgres", "RABBITMQ_URL": "rabbitmq", "MONGODB_URL": "mongodb"}


class Docker:
    """A program `docker` that writes down how it is called, and does nothing."""

    def __init__(self, folder: Path) -> None:
        self._log = folder / "calls"
        self._log.touch()
        self._status = folder / "status"
        self.answer(0)
        program = folder / "docker"
        program.write_text(
            f'#!/bin/sh\necho "$SHOP_PASSWORD $*" >>{self._log}\nexit $(cat {self._status})\n'
        )
        program.chmod(0o755)

    def answer(self, status: int) -> None:
        self._status.write_text(str(status))

    @property
    def calls(self) -> list[tuple[str, str]]:
        """Passwords and what follows the name of the file."""
        lines = [line.partition(" ") for line in self._log.read_text().splitlines()]
        return [(password, said.partition("compose.yaml ")[2]) for password, _, said in lines]


@pytest.fixture
def docker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Docker:
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    return Docker(folder)


def test_containers_are_started_named_by_their_urls_and_stopped(
    docker: Docker, tmp_path: Path
) -> None:
    with containers(tmp_path) as told:
        [(password, command)] = docker.calls
        assert command == "up --detach --wait"
    assert [command for _, command in docker.calls][1:] == ["--profile observability stop"]
    assert set(told) == set(URLS)
    for variable, name in URLS.items():
        url = urlsplit(told[variable])
        published = CONTAINERS[name]["ports"][0].split(":")
        assert (url.password, url.hostname, str(url.port)) == (password, *published[:2])


def test_the_password_is_made_once(docker: Docker, tmp_path: Path) -> None:
    for _ in range(2):
        with containers(tmp_path):
            pass
    assert len({password for password, _ in docker.calls}) == 1


def test_dashboards_come_with_a_place_for_traces(docker: Docker, tmp_path: Path) -> None:
    with containers(tmp_path, observability=True) as told:
        assert docker.calls[0][1] == "--profile observability up --detach --wait"
    port = urlsplit(told["OTEL_EXPORTER_OTLP_ENDPOINT"]).port
    assert f"127.0.0.1:{port}:4318" in CONTAINERS["jaeger"]["ports"]


def test_containers_that_do_not_start_are_stopped_and_one_sentence(
    docker: Docker, tmp_path: Path
) -> None:
    docker.answer(1)
    with pytest.raises(CannotStart, match="could not start the servers"), containers(tmp_path):
        pass
    assert docker.calls[-1][1] == "--profile observability stop"


def test_without_docker_there_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(CannotStart, match="docker is missing"), containers(tmp_path):
        pass


def test_clean_removes_the_volumes_too(docker: Docker, tmp_path: Path) -> None:
    data = tmp_path / "data"
    with containers(data / "secrets"):
        pass
    docker.answer(1)
    with pytest.raises(CannotStart, match="nothing was removed"):
        clean(data)
    assert data.exists()
    docker.answer(0)
    clean(data)
    assert docker.calls[-1][1] == "--profile observability down --volumes"
    assert not data.exists()


def test_every_port_is_open_to_this_machine_alone() -> None:
    for name, service in CONTAINERS.items():
        assert [port for port in service.get("ports", ()) if port[:10] != "127.0.0.1:"] == [], name


def test_no_password_is_in_the_file() -> None:
    told = [service.get("environment", {}) for service in CONTAINERS.values()]
    passwords = [each[name] for each in told for name in each if "PASS" in name]
    assert len(passwords) == 3
    assert all(password.startswith("${SHOP_PASSWORD:?") for password in passwords)


def test_images_are_those_of_the_chart() -> None:
    chart = ROOT / "charts" / "shop"
    tools = yaml.safe_load((chart / "values.yaml").read_text())["observability"]
    for name, service in CONTAINERS.items():
        if name in tools:
            image = tools[name]["image"]
            tag = image["tag"]
        else:
            image = yaml.safe_load((chart / "charts" / name / "values.yaml").read_text())["image"]
            tag = yaml.safe_load((chart / "charts" / name / "Chart.yaml").read_text())["appVersion"]
        assert service["image"] == f"{image['repository']}:{tag}"


def test_prometheus_finds_every_process_where_make_run_puts_its_metrics(tmp_path: Path) -> None:
    content = COMPOSE["configs"]["prometheus"]["content"]
    config = yaml.safe_load(content.replace("${SHOP_TARGETS:-[]}", json.dumps(targets())))
    scraped = {
        target["labels"]["job"]: target["targets"]
        for job in config["scrape_configs"][:1]
        for target in job["static_configs"]
    }
    server = Server("127.0.0.1", 1, "", "", Secret("x"))
    numbers = iter(range(23000, 23100))
    started = processes(
        Servers(server, server, dict.fromkeys(SERVICES, server)),
        tmp_path,
        ports=dict.fromkeys(SERVED, 3000),
        free_port=lambda: next(numbers),
    )
    places = {each.name: [f"127.0.0.1:{each.env['METRICS_PORT']}"] for each in started}
    assert scraped == places


def test_the_development_container_has_the_python_of_the_images() -> None:
    told = json.loads((ROOT / ".devcontainer" / "devcontainer.json").read_text())
    assert told["image"].startswith("python:3.13")
    assert told["forwardPorts"] == [3000, 3001, 3002]
