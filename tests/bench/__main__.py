"""`make bench`: what the system reaches on this machine, beside each server's own ceiling.

Starts servers and processes of its own on private ports and data, measures, and removes all
of it. Where two things are compared they take turns, round by round; medians are printed with
their spread, and the ratio. A round whose work was not done fails the run.
"""

import os
import platform
import subprocess
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from local.processes import Servers, prepare_stores, processes, store_login
from local.servers import MongoDB, PostgreSQL, RabbitMQ, free_port
from local.shop import Shop
from tests.bench import tracing
from tests.bench.parts import Parts
from tests.bench.system import System
from tests.bench.table import compare, line

ROUNDS = 5


def main() -> None:
    """Measure the parts against bare clients, then the whole system."""
    print(_machine())
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
        folder.chmod(0o755)
        postgres = PostgreSQL(folder / "postgres", free_port())
        rabbitmq = RabbitMQ(folder / "rabbitmq", free_port())
        mongodb = MongoDB(folder / "mongodb", free_port())
        for server in (postgres, rabbitmq, mongodb):
            stack.callback(server.stop)
            server.start()
        secrets = folder / "secrets"
        prepare_stores(postgres.address, secrets, ("bench",))
        parts = Parts(
            store_login(postgres.address, "bench", "service", secrets),
            store_login(postgres.address, "bench", "relay", secrets),
            store_login(postgres.address, "bench", "owner", secrets),
            rabbitmq.address,
            mongodb.login("bench"),
        )
        stack.callback(parts.close)
        _measure_parts(parts)

        prepare_stores(postgres.address, secrets)
        readmodels = {name: mongodb.login(f"{name}_read_model") for name in ("user", "order")}
        servers = Servers(postgres.address, rabbitmq.address, readmodels)
        shop = Shop(
            processes(
                servers,
                secrets,
                ports={n: free_port() for n in ("gateway", "user-service", "order-service")},
                free_port=free_port,
                settings={"LOG_LEVEL": "INFO", "LOG_FORMAT": "json"},
            ),
            folder / "logs",
        )
        stack.callback(shop.stop)
        shop.start()
        _measure_system(System(shop, readmodels["order"]))
        shop.stop()
        tracing.measure(servers, secrets, folder / "tracing")


def _measure_parts(parts: Parts) -> None:
    print("\nParts, each beside a bare client that does the same:")
    for name, ours, bare in parts.pairs():
        compare(name, *_take_turns(ours, bare))


def _measure_system(system: System) -> None:
    print("\nThe whole system, its eight processes and three servers on this machine:")
    median, worst = system.answered_to_readable(100)
    verdict = "under" if median < 0.1 else "NOT under"
    line("answered to readable, idle", f"p50 {median * 1e3:.1f} ms, p99 {worst * 1e3:.1f} ms")
    line("", f"the median is {verdict} 100 ms")
    for name, measure in system.rates():
        rates = [measure() for _ in range(ROUNDS)]
        line(name, f"{sorted(rates)[ROUNDS // 2]:,.0f}/s ({min(rates):,.0f} to {max(rates):,.0f})")
        if name.startswith("POST"):
            line("", f"{system.drain():.1f} s after the last answer every order was readable, once")


def _take_turns(
    ours: Callable[[], float], bare: Callable[[], float]
) -> tuple[list[float], list[float]]:
    rounds = [(ours(), bare()) for _ in range(ROUNDS)]
    return [a for a, _ in rounds], [b for _, b in rounds]


def _machine() -> str:
    git = ["git", "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()
    return (
        f"{os.cpu_count()} cores, Python {platform.python_version()}, commit {commit or 'unknown'};"
        " synchronous_commit on, publisher confirms, manual acks, w: majority"
    )


if __name__ == "__main__":
    main()
