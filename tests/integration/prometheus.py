"""A Prometheus that scrapes a shop of the tests and its broker."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from local.panels import watch
from local.panels.watch import Prometheus
from local.servers import RabbitMQ
from local.shop import Shop

__all__ = ["Prometheus", "prometheus"]


@contextmanager
def prometheus(shop: Shop, rabbitmq: RabbitMQ, folder: Path) -> Iterator[Prometheus]:
    """A Prometheus that scrapes the whole system and evaluates the alerts once a second."""
    ports = [int(shop.environment(name)["METRICS_PORT"]) for name in shop.names]
    with watch.prometheus({"shop": ports}, rabbitmq.metrics_port, folder) as server:
        yield server
