"""A release of the chart on the cluster that kubectl points to, and what its stores hold."""

import base64
import json
import os
import re
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Thread
from typing import Any

import psycopg2
from pymongo import MongoClient

from tests.chart.render import render
from tests.e2e.load import Record

ROOT = Path(__file__).parents[2]
CHART = ROOT / "charts" / "shop"
INGRESS = os.environ.get("E2E_INGRESS", "http://127.0.0.1:8080")
SERVERS = ("postgres", "rabbitmq", "mongodb")


def run(*command: str, timeout: float = 600, check: bool = True, **extra: Any) -> str:
    """The output of a command; raises AssertionError with it if the command fails."""
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=timeout, check=False, **extra
    )
    said = done.stdout + done.stderr
    assert done.returncode == 0 or not check, f"{' '.join(command)}\n{said}"
    return str(done.stdout)


def await_that(holds: Callable[[], object], seconds: float, what: str) -> float:
    """Wait until it holds, and how long that took; `what` says what did not come."""
    began = time.monotonic()
    while not holds():
        assert time.monotonic() - began < seconds, f"not within {seconds:.0f} s: {what}"
        time.sleep(0.2)
    return time.monotonic() - began


def image_tag(root: Path = ROOT) -> str:
    """The tag of the images that `make images` builds from a folder."""
    return run(str(root / "local/image-tag")).strip()


def build_stand_ins() -> None:
    """On a cluster that builds its images itself and pulls none: the servers' images by the
    names that the chart gives them.
    """
    if builder := os.environ.get("LOCAL_CLUSTER"):
        folder = Path(__file__).parent / "standins"
        for name, tag in (
            ("mongo", "mongo:7.0"),
            ("rabbitmq", "rabbitmq:4.2-management"),
            ("postgres", "postgres:17"),
            ("prometheus", render("observability").pod("prometheus").containers[0]["image"]),
        ):
            run(builder, "build", str(folder / f"{name}.Dockerfile"), str(folder), tag)


def _settings(chart: Path) -> list[str]:
    tag = image_tag(chart.parents[1])
    return ["--set=ingress.enabled=true", f"--set-string=image.tag={tag}"]


@dataclass(frozen=True)
class Release:
    """A release of the chart in a namespace."""

    name: str
    namespace: str
    helm: str = "helm"

    def using(self, helm: str) -> "Release":
        """The same one, by another helm."""
        return replace(self, helm=helm)

    def kubectl(self, *arguments: str, **extra: Any) -> str:
        """kubectl in its namespace."""
        return run("kubectl", "--namespace", self.namespace, *arguments, **extra)

    def get(self, *what: str) -> list[dict[str, Any]]:
        """Objects, as JSON."""
        found = json.loads(self.kubectl("get", *what, "--output=json"))
        items: list[dict[str, Any]] = found.get("items", [found])
        return items

    def install(self, *arguments: str, chart: Path = CHART) -> float:
        """helm install, until all of it is ready; seconds it took."""
        began = time.monotonic()
        wait = ("--wait", "--timeout=5m")
        self._helm("install", self.name, str(chart), *wait, *_settings(chart), *arguments)
        return time.monotonic() - began

    def upgrade(self, *arguments: str, chart: Path = CHART, wait: bool = True) -> None:
        """helm upgrade to these values and no older ones, until all of it is ready."""
        flags = ("--reset-values", *(("--wait", "--timeout=5m") if wait else ()))
        self._helm("upgrade", self.name, str(chart), *flags, *_settings(chart), *arguments)

    def await_jobs(self, component: str, word: str) -> None:
        """Wait until the Jobs of a component that have this word in their names are complete."""
        label = f"--selector=app.kubernetes.io/component={component}"
        jobs = self.kubectl("get", "jobs", label, "--output=name").split()
        mine = [name for name in jobs if word in name]
        assert mine, jobs
        self.kubectl("wait", *mine, "--for=condition=Complete", "--timeout=240s")

    def rollback(self) -> None:
        """helm rollback to the revision before, until all of it is ready."""
        self._helm("rollback", self.name, "--wait", "--timeout=5m")

    def test(self) -> str:
        """helm test; what it said. helm 3 cannot show the log of a pod that it has deleted."""
        return self._helm("test", self.name, *(["--logs"] if self.helm == "helm" else []))

    def uninstall(self) -> None:
        """helm uninstall, until its pods are gone."""
        self._helm("uninstall", self.name, "--wait", "--timeout=3m")
        await_that(lambda: not self.get("pods"), 120, "the pods are gone")

    def _helm(self, act: str, *arguments: str) -> str:
        return run(self.helm, act, "--namespace", self.namespace, *arguments)

    def await_ready(self) -> float:
        """Wait until every workload has all its pods, new ones, ready; seconds it took."""
        return await_that(self._all_ready, 240, "every pod is ready")

    def _all_ready(self) -> bool:
        for each in self.get("deployments,statefulsets"):
            wanted, status = each["spec"]["replicas"], each["status"]
            counts = [status.get(key, 0) for key in ("readyReplicas", "updatedReplicas")]
            current = status.get("observedGeneration", 0) >= each["metadata"]["generation"]
            if not current or counts != [wanted, wanted] or status.get("replicas", 0) != wanted:
                return False
        return True

    def generations(self) -> dict[str, int]:
        """How often each workload has been changed."""
        found = self.get("deployments,statefulsets,jobs")
        return {each["metadata"]["name"]: each["metadata"]["generation"] for each in found}

    def restarts(self) -> dict[str, int]:
        """How often a container of each pod that is to stay was started again, init containers
        included.
        """
        return {
            pod["metadata"]["name"]: sum(
                container["restartCount"]
                for kind in ("initContainerStatuses", "containerStatuses")
                for container in pod["status"].get(kind, [])
            )
            for pod in self.get("pods")
            if "deletionTimestamp" not in pod["metadata"]
        }

    def passwords(self) -> dict[str, Mapping[str, str]]:
        """All that its Secrets hold; helm's own, which hold its manifests, aside."""
        found = {each["metadata"]["name"]: each for each in self.get("secrets")}
        return {
            name: each["data"] for name, each in found.items() if name.startswith(f"{self.name}-")
        }

    def password(self, server: str) -> str:
        """The administrator's password of a server."""
        return base64.b64decode(self.passwords()[f"{self.name}-{server}"]["admin"]).decode()

    @contextmanager
    def port(self, target: str, port: int) -> Iterator[int]:
        """A port of this machine that leads to a pod's, through the API server."""
        command = ["kubectl", "--namespace", self.namespace, "port-forward", target, f":{port}"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as forward:
            assert forward.stdout
            found = re.search(r":(\d+) ->", forward.stdout.readline())
            assert found, f"no port to {target}"
            said = Thread(target=forward.stdout.read)  # a line for each connection
            said.start()
            try:
                yield int(found[1])
            finally:
                forward.kill()
                said.join()

    @contextmanager
    def stores(self) -> Iterator["Stores"]:
        """The contents of event stores and read models, read by their administrators."""
        with (
            self.port(f"service/{self.name}-postgres", 5432) as postgres,
            self.port(f"service/{self.name}-mongodb", 27017) as mongodb,
            MongoClient[dict[str, Any]](
                "127.0.0.1", mongodb, username="admin", password=self.password("mongodb"),
                directConnection=True, retryWrites=False,
            ) as client,
        ):  # fmt: skip
            yield Stores(postgres, self.password("postgres"), client)


Event = tuple[str, int, str, dict[str, Any]]
"""Aggregate id, version, type, data."""


@dataclass(frozen=True)
class Stores:
    """The event stores and the read models."""

    postgres_port: int
    password: str
    mongodb: "MongoClient[dict[str, Any]]"

    def events(self, service: str) -> list[Event]:
        """Every event of a service, by position."""
        return [
            (str(row[0]), row[1], row[2], row[3])
            for row in self.query(
                service,
                "select aggregate_id, version, event_type, data from events order by position",
            )
        ]

    def query(self, service: str, statement: str) -> list[tuple[Any, ...]]:
        """Rows of a service's event store."""
        connection = psycopg2.connect(
            host="127.0.0.1", port=self.postgres_port, dbname=f"{service}_event_db",
            user="postgres", password=self.password,
        )  # fmt: skip
        try:
            with connection.cursor() as cursor:
                cursor.execute(statement)
                return list(cursor.fetchall())
        finally:
            connection.close()

    def documents(self, service: str, collection: str) -> dict[str, dict[str, Any]]:
        """Every document of the generation that serves, by id."""
        database = self.mongodb[f"{service}_read_model"]
        known = database["generations"].find_one({"_id": collection.replace("_", "-")})
        number = known["serving"] if known else 1
        found = database[collection if number == 1 else f"{collection}.{number}"].find()
        return {str(each["_id"]): each for each in found}

    def lagging(self) -> dict[str, int]:
        """How many documents of each read model are not at their stream's last version."""
        lag = {}
        for service, collection, owner in (
            ("user", "users", "user"),
            ("order", "orders", "order"),
            ("order", "known_users", "user"),
        ):
            heads: dict[str, int] = {}
            for stream, version, _, _ in self.events(owner):
                heads[stream] = max(version, heads.get(stream, 0))
            documents = self.documents(service, collection)
            versions = {key: each["version"] for key, each in documents.items()}
            lag[collection] = len(heads.items() ^ versions.items())
        return {name: count for name, count in lag.items() if count}

    def await_converged(self, seconds: float = 60) -> float:
        """Wait until every read model is where its streams are; seconds it took."""
        return await_that(lambda: not self.lagging(), seconds, "the read models converge")

    def differences(self, record: Record) -> list[str]:
        """Where the log, the read models and what the clients were told do not agree.

        Every answered command is in the log exactly once, an unanswered one once at most, the
        versions of a stream have no gap, and the documents say what the events do.
        """
        wrong: list[str] = []
        users, orders = self.events("user"), self.events("order")
        for kind, events in (("user", users), ("order", orders)):
            versions: dict[str, list[int]] = {}
            for stream, version, _, _ in events:
                versions.setdefault(stream, []).append(version)
            for stream, found in versions.items():
                if found != list(range(1, len(found) + 1)):
                    wrong.append(f"{kind} {stream} has versions {found}")
        wrong += _compare(
            record.users,
            [(data["email"], stream) for stream, _, kind, data in users if kind == "USER_CREATED"],
        )
        wrong += _compare(
            record.orders,
            [(data["item"], stream) for stream, _, kind, data in orders if kind == "ORDER_PLACED"],
        )
        documents = self.documents("user", "users")
        renamed: dict[str, list[str]] = {}
        for stream, _, kind, data in users:
            if kind == "USER_NAME_CHANGED":
                renamed.setdefault(stream, []).append(data["name"])
        for user, names in record.names.items():
            stored = renamed.get(user, [])
            if [name for name in stored if name in names] != names:
                wrong.append(f"user {user} was told of the names {names}, stored are {stored}")
            if user not in record.unconfirmed_names and stored != names:
                wrong.append(f"user {user} has names nobody was told of: {stored}")
            shown = documents.get(user, {}).get("name")
            if shown != (stored[-1] if stored else "First"):
                wrong.append(f"user {user} is shown as {shown}, stored are {stored}")
        shown_items = {each["item"] for each in self.documents("order", "orders").values()}
        stored_items = {data["item"] for _, _, kind, data in orders if kind == "ORDER_PLACED"}
        if shown_items != stored_items:
            wrong.append(f"{len(shown_items ^ stored_items)} orders differ from their documents")
        return wrong


def _compare(told: Mapping[str, str | None], stored: list[tuple[str, str]]) -> list[str]:
    """What was told, by mark, against what is stored; marks of others do not count."""
    wrong = []
    counts = Counter(mark for mark, _ in stored)
    ids = dict(stored)
    for mark, identity in told.items():
        if counts[mark] > 1:
            wrong.append(f"{mark} is stored {counts[mark]} times")
        if identity is not None and ids.get(mark) != identity:
            wrong.append(f"{mark} was answered with {identity}, stored is {ids.get(mark)}")
    return wrong
