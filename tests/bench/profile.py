"""`make profile`: CPU time of one request by part of the code, process by process.

py-spy samples a process 200 times a second, and counts it only if it holds its interpreter's lock.
A frame counts for the innermost known part of its stack. The shares are of the CPU time that the
process took for a request. py-spy reads the memory of other processes, which some systems allow
to root alone.
"""

import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import click

from tests.bench import machine
from tests.bench.bed import Bed
from tests.bench.load import as_much_as_goes, at_rate
from tests.bench.visitor import Visitor

CONNECTIONS = 16

ON_THE_WAY = ("gateway", "order-service", "order-relay", "order-projector")

ON_A_READ = ("gateway", "order-service")

PARTS = (
    ("gunicorn/", "gunicorn"),
    ("urllib3/", "urllib3"),
    ("http/client", "http.client"),
    ("werkzeug/", "werkzeug"),
    ("flask/", "Flask"),
    ("sqlalchemy/", "SQLAlchemy"),
    ("pymongo/", "pymongo"),
    ("bson/", "pymongo"),
    ("pika/", "pika"),
    ("pydantic", "pydantic"),
    ("prometheus_client/", "metrics"),
    ("logging/", "log lines"),
    ("eventcore/observe/", "log lines"),
    ("gateway/", "gateway (ours)"),
    ("eventcore/web/server.py", "admission (ours)"),
    ("eventcore/web/overload.py", "admission (ours)"),
    ("eventcore/web/", "web (ours)"),
    ("eventcore/query.py", "query (ours)"),
    ("eventcore/readmodel/serving.py", "query (ours)"),
    ("eventcore/store/", "store (ours)"),
    ("eventcore/retry.py", "store (ours)"),
    ("eventcore/command.py", "commands (ours)"),
    ("eventcore/model/decider.py", "commands (ours)"),
    ("order/order.py", "commands (ours)"),
    ("order/api.py", "commands (ours)"),
    ("order/customers.py", "commands (ours)"),
    ("eventcore/relay.py", "relay.py (ours)"),
    ("eventcore/broker/", "messages (ours)"),
    ("eventcore/model/event.py", "messages (ours)"),
    ("eventcore/project/", "projector (ours)"),
    ("order/projections", "projector (ours)"),
    ("eventcore/readmodel/", "readmodel (ours)"),
)
"""Part of a frame's path, and the name under which it is counted."""

LEAST = 0.03
"""Parts with a smaller share are summed up."""

REST = "the rest"

Parts = Mapping[str, float]
"""µs of CPU a request, by part."""


@click.command()
@click.option("--rate", default=300, show_default=True, help="Orders a second.")
@click.option("--seconds", default=10, show_default=True, help="Seconds of each look.")
def main(rate: int, seconds: int) -> None:
    """Prints where the interpreter's time of each process goes, as tables."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="profile-")))
        bed = Bed(folder, stack)
        bed.shop.start()
        visitor = Visitor(bed)
        print("\n".join(machine.described()))
        order_url = f"{bed.shop.url('gateway')}/queries/orders/{visitor.order_id}"

        def order() -> int:
            return at_rate(visitor.url, rate, seconds + 1, visitor.order_body).good

        def read() -> int:
            return as_much_as_goes(order_url, seconds + 1, CONNECTIONS).answers

        for what, load, names in (
            (f"POST /orders through the gateway, {rate} a second", order, ON_THE_WAY),
            (f"GET of one order through the gateway, {CONNECTIONS} connections", read, ON_A_READ),
        ):
            load()  # so that all is warm
            print(f"\n{what}; µs of CPU a request:\n")
            print("\n".join(table(look(bed, names, load, folder, seconds))))


def look(
    bed: Bed, names: Sequence[str], load: Callable[[], int], folder: Path, seconds: int
) -> dict[str, Parts]:
    """CPU time by part of each process under a load, which returns the number of its requests."""
    pids = {name: bed.shop.pid(name) for name in names}
    before = {name: machine.cpu_seconds([pid]) for name, pid in pids.items()}
    spies = [_spy(machine.family(pid)[-1], folder / name, seconds) for name, pid in pids.items()]
    done = load()
    for each in spies:
        if each.wait(timeout=30):
            raise click.ClickException("py-spy cannot look at the processes: be root.")
    each_took = {
        name: (machine.cpu_seconds([pid]) - before[name]) / done * 1e6 for name, pid in pids.items()
    }
    return {
        name: {part: share * each_took[name] for part, share in shares(folder / name).items()}
        for name in names
    }


def shares(found: Path) -> dict[str, float]:
    """The share of each part in the stacks of a file: `outer;…;inner count`, a line each."""
    counts: Counter[str] = Counter()
    for line in found.read_text().splitlines():
        stack, _, count = line.rpartition(" ")
        frames = reversed(stack.split(";"))
        part = next((part for frame in frames for at, part in PARTS if at in frame), REST)
        counts[part] += int(count)
    return {part: count / counts.total() for part, count in counts.most_common()}


def table(found: Mapping[str, Parts]) -> list[str]:
    """Two columns for each process: its parts, and what each takes; the greatest first."""
    columns = []
    for parts in found.values():
        whole = sum(parts.values())
        told = {
            part: each for part, each in parts.items() if part != REST and each >= LEAST * whole
        }
        told |= {REST: whole - sum(told.values()), "**all**": whole}
        columns.append([f"{part} | {each:,.0f}" for part, each in told.items()])
    rows = [
        " | ".join(column[n] if n < len(column) else " | " for column in columns)
        for n in range(max(map(len, columns)))
    ]
    head = " | ".join(f"{name} | " for name in found)
    return [f"| {row} |" for row in [head, " | ".join(["--- | ---"] * len(found)), *rows]]


def _spy(pid: int, found: Path, seconds: int) -> "subprocess.Popen[bytes]":
    command = [str(Path(sys.executable).with_name("py-spy")), "record", "--gil", "--format", "raw"]
    command += ["--rate", "200", "--duration", str(seconds), "--output", str(found)]
    command += ["--pid", str(pid)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


if __name__ == "__main__":
    main()
