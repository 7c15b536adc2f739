"""`make bench-cluster`: how soon a release on a cluster answers, and again; what it takes.

Installs into a namespace of its own, on the cluster that kubectl points to, and removes it.
"""

import re
import statistics
import sys
import time
from collections.abc import Callable

import click
import urllib3

from tests.e2e.load import steady_load
from tests.e2e.release import INGRESS, Release, build_stand_ins, run

ROUNDS = 5


class Prober:
    """Asks through the ingress, fast, until it is answered."""

    def __init__(self) -> None:
        self._http = urllib3.PoolManager(timeout=2, retries=False)
        self._person = {"name": "Ada", "email": "ada@example.com"}
        self._user = ""

    def writes(self) -> bool:
        """Whether a new user was taken."""
        try:
            answer = self._http.request("POST", f"{INGRESS}/users", json=self._person)
        except urllib3.exceptions.HTTPError:
            return False
        if answer.status == 202:
            self._user = answer.json()["userId"]
        return answer.status == 202

    def reads(self) -> bool:
        """Whether the last one that was taken can be read."""
        try:
            return self._http.request("GET", f"{INGRESS}/users/{self._user}").status == 200
        except urllib3.exceptions.HTTPError:
            return False


def until(holds: Callable[[], bool], since: float, limit: float = 300) -> float:
    """Seconds from `since` until it holds; ends the run after `limit`."""
    while not holds():
        if time.monotonic() - since > limit:
            sys.exit(f"no good answer within {limit:.0f} s")
        time.sleep(0.01)
    return time.monotonic() - since


def usage(release: Release, seconds: float) -> dict[str, tuple[int, int]]:
    """The most CPU (thousandths) and memory (MiB) of each component in so many seconds."""
    most: dict[str, tuple[int, int]] = {}
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        time.sleep(5)
        said = release.kubectl("top", "pods", "--no-headers", check=False)
        for line in said.splitlines():
            pod, cpu, memory = line.split()
            name = re.sub(r"^shop-|(-[0-9a-f]{6,10})?-[0-9a-z]{5}$|-0$", "", pod)
            before = most.get(name, (0, 0))
            found = int(cpu.removesuffix("m")), int(memory.removesuffix("Mi"))
            most[name] = max(before[0], found[0]), max(before[1], found[1])
    return most


def longest_gap(release: Release, prober: Prober, process: str, *how: str) -> float:
    """Seconds between two answers while a pod of `process` is deleted, `how` kubectl is told.

    With a grace period the old pod goes on answering for a while, so all gaps of 15 s count.
    """
    release.await_ready()
    label = f"--selector=app.kubernetes.io/component={process}"
    since = time.monotonic()
    release.kubectl("delete", "pod", label, "--wait=false", *how)
    longest, last = 0.0, time.monotonic()
    while time.monotonic() - since < 15:
        if prober.writes():
            longest = max(longest, time.monotonic() - last)
            last = time.monotonic()
    return max(longest, time.monotonic() - last)


@click.command()
@click.option("--rounds", default=ROUNDS, show_default=True)
def main(rounds: int) -> None:
    """Measure and print; seconds, medians with the least and the most."""
    release, prober = Release("shop", "shop-bench"), Prober()
    build_stand_ins()
    run("kubectl", "create", "namespace", release.namespace)
    try:
        began = time.monotonic()
        took = release.install()
        answered = until(prober.writes, began)
        read = until(prober.reads, began)
        click.echo(f"helm install --wait returned after       {took:6.1f} s")
        click.echo(f"install to the first answered request    {answered:6.1f} s")
        click.echo(f"install to the first successful read     {read:6.1f} s")
        idle = usage(release, 45)
        with steady_load(INGRESS, clients=8, pause=0.01) as record:
            busy = usage(release, 60)
        click.echo(f"under load: {record.summary()}, {record.requests / 60:.0f} requests/s")
        click.echo(f"{'component':<18}{'idle':>16}{'under load':>16}   CPU in m, memory in MiB")
        for name in sorted(busy):
            cells = [f"{cpu:>8}{memory:>8}" for cpu, memory in (idle.get(name, (0, 0)), busy[name])]
            click.echo(f"{name:<18}{''.join(cells)}")
        for process in ("gateway", "user-service"):
            for act, how in (("deleted", ()), ("killed", ("--grace-period=0", "--force"))):
                found = [longest_gap(release, prober, process, *how) for _ in range(rounds)]
                click.echo(
                    f"{process} {act}: longest gap between two answers"
                    f" {statistics.median(found):6.2f} s  ({min(found):.2f} to {max(found):.2f})"
                )
    finally:
        run("kubectl", "delete", "namespace", release.namespace, "--wait=false")


if __name__ == "__main__":
    main()
