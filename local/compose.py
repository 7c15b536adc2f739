"""The servers of compose.yaml, for `make run SERVERS=compose`."""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from local.announce import say
from local.child import CannotStart
from local.clean import COMPOSE, VARIABLE
from local.secretfiles import secret_file
from local.services import METRICS_PORT, PROCESSES


@contextmanager
def containers(secrets: Path, observability: bool = False) -> Iterator[dict[str, str]]:
    """Starts the servers in containers and stops them afterwards; their data stays in volumes.

    Yields the variables that name them for `make run`. Raises CannotStart.
    """
    if not shutil.which("docker"):
        raise CannotStart("docker is missing: see docs.docker.com/engine/install.")
    password = secret_file(secrets, "compose").read()
    profile = ("--profile", "observability") if observability else ()
    say("Starting the servers in containers ...")
    try:
        if _compose(password, *profile, "up", "--detach", "--wait"):
            raise CannotStart("docker compose could not start the servers: it says why above.")
        yield {
            "DATABASE_URL": f"postgresql://postgres:{password}@127.0.0.1:25432/postgres",
            "RABBITMQ_URL": f"amqp://shop:{password}@127.0.0.1:25672/",
            "MONGODB_URL": f"mongodb://admin:{password}@127.0.0.1:27117/"
            "?authSource=admin&retryWrites=false",
            **({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318"} if observability else {}),
        }
    finally:
        say("Stopping the containers ...")
        _compose(password, "--profile", "observability", "stop")


def targets() -> list[dict[str, object]]:
    """The metrics of every process, as Prometheus' static_configs take them."""
    return [
        {
            "targets": [f"127.0.0.1:{METRICS_PORT + place}"],
            "labels": {"namespace": "local", "job": name},
        }
        for place, name in enumerate(PROCESSES)
    ]


def _compose(password: str, *arguments: str) -> int:
    told = {**os.environ, VARIABLE: password, "SHOP_TARGETS": json.dumps(targets())}
    return subprocess.run((*COMPOSE, *arguments), env=told, check=False).returncode
