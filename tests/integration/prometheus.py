"""A Prometheus of the distribution's, which scrapes a running system and its broker."""

import json
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from local.child import Child
from local.packages import prometheus_programs
from local.servers import HOST, RabbitMQ, free_port
from local.shop import Shop, says_ready

QUEUES = ("queue_coarse_metrics", "queue_consumer_count")
"""What is asked of RabbitMQ's /metrics/detailed: a queue's messages, and its consumers."""


class Prometheus:
    """Its HTTP API."""

    def __init__(self, url: str) -> None:
        self._url = url

    def query(self, promql: str) -> list[dict[str, Any]]:
        """What an expression gives now: series with their labels and values."""
        found: list[dict[str, Any]] = self._get("query", query=promql)["result"]
        return found

    def label_values(self, selector: str, label: str) -> list[str]:
        """What Grafana's label_values() gives."""
        found: list[str] = self._get(f"label/{label}/values", **{"match[]": selector})
        return found

    def rules(self) -> list[dict[str, Any]]:
        """Every rule, with its state and whether it could be evaluated."""
        groups = self._get("rules")["groups"]
        return [rule for group in groups for rule in group["rules"]]

    def targets(self) -> dict[str, str]:
        """The health of each target, by its instance."""
        active = self._get("targets")["activeTargets"]
        return {each["scrapeUrl"]: each["health"] for each in active}

    def _get(self, what: str, **arguments: str) -> Any:
        url = f"{self._url}/api/v1/{what}?{urllib.parse.urlencode(arguments)}"
        try:
            with urllib.request.urlopen(url, timeout=10) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as refusal:
            with refusal:
                raise AssertionError(f"{arguments}: {refusal.read().decode()}") from None


@contextmanager
def prometheus(shop: Shop, rabbitmq: RabbitMQ, rules: Path, folder: Path) -> Iterator[Prometheus]:
    """It runs, looks at everything once a second, and evaluates `rules` as often."""
    ports = {name: shop.environment(name)["METRICS_PORT"] for name in shop.names}
    broker = f"{HOST}:{rabbitmq.metrics_port}"
    config = {
        "global": {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(rules)],
        "scrape_configs": [
            _job("shop", *(f"{HOST}:{port}" for port in ports.values())),
            _job("rabbitmq", broker),
            _job("rabbitmq-queues", broker, metrics_path="/metrics/detailed",
                 params={"family": list(QUEUES)}),
        ],
    }  # fmt: skip
    file = folder / "prometheus.yaml"
    file.write_text(yaml.safe_dump(config))
    port = free_port()
    child = Child(
        "Prometheus",
        [
            str(prometheus_programs() / "prometheus"),
            f"--config.file={file}",
            f"--storage.tsdb.path={folder / 'data'}",
            f"--web.listen-address={HOST}:{port}",
            "--log.level=warn",
        ],
        folder / "prometheus.log",
    )
    child.launch()
    try:
        child.await_that(says_ready(f"http://{HOST}:{port}/-/ready"), 30)
        yield Prometheus(f"http://{HOST}:{port}")
    finally:
        child.stop()


def _job(name: str, *places: str, **more: Any) -> dict[str, Any]:
    return {"job_name": name, "static_configs": [{"targets": list(places)}], **more}
