"""What tracing costs: POSTs at a fixed rate without it, with a collector, with one that is lost.

`python -m tests.bench.tracing` measures this alone. The system is started anew for each
measurement, and all kinds take turns, round by round; medians are printed, and the ratio to the
median without tracing.
"""

import json
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from pathlib import Path
from statistics import median
from typing import TypeAlias

from local.processes import Servers, prepare_stores, processes
from local.servers import MongoDB, PostgreSQL, RabbitMQ, free_port
from local.shop import Shop
from tests.bench.load import at_rate
from tests.bench.machine import cpu_seconds
from tests.otlp import receiver, silent, unreachable

ROUNDS, RATE, SECONDS = 5, 60.0, 6.0

Endpoint: TypeAlias = Callable[[], AbstractContextManager[str]]


@contextmanager
def _collecting() -> Iterator[str]:
    with receiver() as collector:
        yield collector.endpoint


OFF = "without tracing"
KINDS: Mapping[str, Endpoint] = {
    OFF: lambda: nullcontext(""),
    "a collector that takes all": _collecting,
    "a collector that never answers": silent,
    "a collector out of reach": unreachable,
}


def measure(servers: Servers, secrets: Path, folder: Path, rounds: int = ROUNDS) -> None:
    """Print the times and the processor's time of a POST, of each kind."""
    print(f"\nTracing, {RATE:.0f} POST /users a second through the gateway, {rounds} rounds:")
    p99, cpu = defaultdict[str, list[float]](list), defaultdict[str, list[float]](list)
    for number in range(rounds):
        for kind, endpoint in KINDS.items():
            with endpoint() as url:
                slow, cost = _run(servers, secrets, folder / f"{number}-{len(p99[kind])}", url)
            p99[kind].append(slow)
            cpu[kind].append(cost)
    for kind in KINDS:
        print(f"  {kind:<34} p99 {_shown(p99[kind])}, {_ratio(p99, kind)}")
        print(f"  {'':<34} CPU a request {_shown(cpu[kind])}, {_ratio(cpu, kind)}")


def _shown(seconds: list[float]) -> str:
    low, high = min(seconds) * 1e3, max(seconds) * 1e3
    return f"{median(seconds) * 1e3:.1f} ms ({low:.1f} to {high:.1f})"


def _ratio(found: Mapping[str, list[float]], kind: str) -> str:
    return f"ratio {median(found[kind]) / median(found[OFF]):.2f}"


def _run(servers: Servers, secrets: Path, logs: Path, endpoint: str) -> tuple[float, float]:
    """One measurement: seconds of the 99th percentile, and of all processors for a request."""
    shop = Shop(
        processes(
            servers,
            secrets,
            ports={name: free_port() for name in ("gateway", "user-service", "order-service")},
            free_port=free_port,
            settings={"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint, "LOG_FORMAT": "json"},
        ),
        logs,
    )
    try:
        shop.start()
        url = shop.url("gateway") + "/users"
        body = json.dumps({"name": "Ada", "email": "ada@example.com"})
        at_rate(url, RATE, 2.0, body)
        before = _processor_time(shop)
        outcome = at_rate(url, RATE, SECONDS, body)
        spent = _processor_time(shop) - before
    finally:
        shop.stop()
    assert outcome.good == sum(outcome.statuses.values()), outcome.statuses
    return outcome.percentile(0.99), spent / outcome.good


def _processor_time(shop: Shop) -> float:
    """Seconds that all processes have had until now."""
    return cpu_seconds(shop.pid(name) for name in shop.names)


def main() -> None:
    """On servers of its own."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
        folder.chmod(0o755)
        postgres = PostgreSQL(folder / "postgres", free_port())
        rabbitmq = RabbitMQ(folder / "rabbitmq", free_port())
        mongodb = MongoDB(folder / "mongodb", free_port())
        for server in (postgres, rabbitmq, mongodb):
            stack.callback(server.stop)
            server.start()
        prepare_stores(postgres.address, folder / "secrets")
        readmodels = {name: mongodb.login(f"{name}_read_model") for name in ("user", "order")}
        servers = Servers(postgres.address, rabbitmq.address, readmodels)
        measure(servers, folder / "secrets", folder / "logs")


if __name__ == "__main__":
    main()
