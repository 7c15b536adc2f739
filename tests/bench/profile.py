"""`make profile`: in which parts of the code the time of one request goes, process by process.

py-spy looks at a process 200 times a second, and counts it only if it holds its interpreter's lock.
What a part calls is counted as that part, up to the next part. The shares are of the CPU time that
the process took for a request. py-spy reads the memory of other processes, which some systems allow
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
from tests.bench.calls import AT_REST, CONNECTIONS
from tests.bench.load import as_much_as_goes, at_rate
from tests.bench.visitor import Visitor

ON_THE_WAY = ("gateway", "order-service", "order-relay", "order-projector")

PARTS = (
    ("gunicorn/", "gunicorn"),
    ("urllib3/", "urllib3"),
    ("werkzeug/", "werkzeug"),
    ("flask/", "Flask"),
    ("sqlalchemy/", "SQLAlchemy"),
    ("pymongo/", "pymongo"),
    ("bson/", "pymongo"),
    ("pika/", "pika"),
    ("pydantic", "pydantic"),
    ("prometheus_client/", "metrics"),
    ("logging/", "log lines"),
    ("eventcore/observe.py", "log lines"),
    ("gateway/", "forwarding, ours"),
    ("eventcore/serving.py", "taking requests, ours"),
    ("eventcore/web.py", "routes, ours"),
    ("eventcore/query.py", "routes, ours"),
    ("eventcore/store.py", "the store, ours"),
    ("eventcore/retry.py", "the store, ours"),
    ("eventcore/command.py", "deciding, ours"),
    ("eventcore/decider.py", "deciding, ours"),
    ("order/order.py", "deciding, ours"),
    ("order/api.py", "deciding, ours"),
    ("order/customers.py", "deciding, ours"),
    ("eventcore/relay.py", "the relay, ours"),
    ("eventcore/broker.py", "messages, ours"),
    ("eventcore/event.py", "messages, ours"),
    ("eventcore/projector.py", "folding, ours"),
    ("eventcore/readmodel.py", "the read model, ours"),
    ("order/projections", "folding, ours"),
)
"""What the path of a frame has in it, and the part that it belongs to."""

LEAST = 0.03
"""Parts with a smaller share are summed up."""

REST = "the rest"

Parts = Mapping[str, float]
"""µs of CPU a request, by part."""


@click.command()
@click.option("--rate", default=500, show_default=True, help="Orders a second, on the whole way.")
@click.option("--seconds", default=10, show_default=True, help="How long to look, each time.")
def main(rate: int, seconds: int) -> None:
    """Print where the interpreter's time of each process goes, as tables."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="profile-")))
        bed = Bed(folder, stack)
        bed.shop.start(*bed.eight)
        visitor = Visitor(bed)
        print("\n".join(machine.described()))

        def order() -> int:
            return at_rate(visitor.url, rate, seconds + 1, visitor.order_body).good

        order()  # so that all is warm
        print(f"\nAn order on its whole way, {rate} a second, µs of CPU:\n")
        print("\n".join(table(look(bed, ON_THE_WAY, order, folder, seconds))))

        bed.shop.stop(*AT_REST)
        found = {}
        for name in ("order-service", "echo"):
            bed.shop.start(name)
            url = bed.shop.url(name)
            for what, path, body in (
                ("POST", "/orders", visitor.order_body),
                ("GET", f"/queries/orders/{visitor.order_id}", ""),
            ):

                def ask(at: str = f"{url}{path}", body: str = body) -> int:
                    return as_much_as_goes(at, seconds + 1, CONNECTIONS, body).answers

                ask()
                [parts] = look(bed, [name], ask, folder, seconds).values()
                found[f"{what} at {name}"] = parts
        print(f"\nAs much as goes over {CONNECTIONS} connections, µs of CPU a request:\n")
        print("\n".join(table(found)))


def look(
    bed: Bed, names: Sequence[str], load: Callable[[], int], folder: Path, seconds: int
) -> dict[str, Parts]:
    """What each process does with its time under a load, which says how many it has done."""
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
