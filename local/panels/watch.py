"""A Prometheus of the distribution's that watches a running system for a while."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import urllib3
import yaml

from local.child import Child
from local.packages import prometheus_programs
from local.panels.alerts import rule_file
from local.servers import HOST, free_port
from local.shop import says_ready

QUEUES = ("queue_coarse_metrics", "queue_consumer_count")
"""The metrics that RabbitMQ's /metrics/detailed is asked for: messages and consumers of queues."""


class Prometheus:
    """Its HTTP API; raises ValueError for a query that it refuses."""

    def __init__(self, url: str) -> None:
        self._url = url

    def query(self, promql: str, **more: str) -> list[dict[str, Any]]:
        """The result of an expression now: series with their labels and values."""
        found: list[dict[str, Any]] = self._get("query", query=promql, **more)["result"]
        return found

    def query_range(
        self, promql: str, start: float, end: float, step: float
    ) -> list[dict[str, Any]]:
        """The result of an expression at each step of a time."""
        times = {"start": f"{start:.3f}", "end": f"{end:.3f}", "step": f"{step:g}"}
        found: list[dict[str, Any]] = self._get("query_range", query=promql, **times)["result"]
        return found

    def exemplars(self, promql: str, start: float, end: float) -> list[dict[str, Any]]:
        """The exemplars of the series that an expression names."""
        times = {"start": f"{start:.3f}", "end": f"{end:.3f}"}
        found: list[dict[str, Any]] = self._get("query_exemplars", query=promql, **times)
        return found

    def label_values(self, selector: str, label: str) -> list[str]:
        """The values of a label, as Grafana's label_values() returns them."""
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
        url = f"{self._url}/api/v1/{what}"
        answer = urllib3.request("GET", url, fields=arguments, timeout=10, retries=False)
        if answer.status != 200:
            raise ValueError(f"{arguments}: {answer.data.decode()}")
        return answer.json()["data"]


@contextmanager
def prometheus(
    jobs: Mapping[str, Sequence[int]], broker: int, folder: Path, interval: str = "1s"
) -> Iterator[Prometheus]:
    """A Prometheus that scrapes the ports of each job, and the metrics port of RabbitMQ unless that
    is 0, and evaluates our alerts, each once in `interval`.
    """
    rules = folder / "alerts.yaml"
    rules.write_text(yaml.safe_dump(rule_file()))
    queues = {"metrics_path": "/metrics/detailed", "params": {"family": list(QUEUES)}}
    config = {
        "global": {
            "scrape_interval": interval,
            "scrape_timeout": interval,
            "evaluation_interval": interval,
        },
        "rule_files": [str(rules)],
        "scrape_configs": [
            *(_job(name, ports) for name, ports in jobs.items()),
            *(
                [_job("rabbitmq", [broker]), _job("rabbitmq-queues", [broker], **queues)]
                * bool(broker)
            ),
        ],
    }
    file = folder / "prometheus.yaml"
    file.write_text(yaml.safe_dump(config))
    url = f"{HOST}:{free_port()}"
    child = Child(
        "Prometheus",
        [
            str(prometheus_programs() / "prometheus"),
            f"--config.file={file}",
            f"--storage.tsdb.path={folder / 'data'}",
            f"--web.listen-address={url}",
            "--enable-feature=exemplar-storage",
            "--log.level=warn",
        ],
        folder / "prometheus.log",
    )
    child.launch()
    try:
        child.await_that(says_ready(f"http://{url}/-/ready"), 30)
        yield Prometheus(f"http://{url}")
    finally:
        child.stop()


def _job(name: str, ports: Sequence[int], **more: Any) -> dict[str, Any]:
    targets = [f"{HOST}:{port}" for port in ports]
    return {"job_name": name, "static_configs": [{"targets": targets}], **more}
