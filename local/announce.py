"""What `make run` tells people: that all is ready, where it is, and what to paste first."""

import sys
import time
from collections.abc import Mapping, Sequence

from local.processes import Process
from local.shop import says_ready

PATIENCE = 60
"""Seconds until it says what it still waits for."""

_FIRST_CURL = """\
curl -i {gateway}/users -H 'Content-Type: application/json' \\
  -d '{{"name": "Grace Hopper", "email": "grace@example.com"}}'"""


def say(text: str) -> None:
    """One line, or more, for people; at once."""
    print(text, flush=True)


def paint(text: str, code: int) -> str:
    """`text` in a colour of ANSI's, on a terminal; else as it is."""
    return f"\033[{code}m{text}\033[0m" if sys.stdout.isatty() else text


def announce(processes: Sequence[Process], places: Mapping[str, str]) -> None:
    """Wait until all processes are ready, then say where they are and what to do first."""
    begun = time.monotonic()
    waiting = list(processes)
    told = False
    while waiting := [each for each in waiting if not says_ready(each.ready_url)()]:
        if not told and time.monotonic() - begun > PATIENCE:
            names = ", ".join(each.name for each in waiting)
            say(paint(f"Still waiting for {names}: see what they say above.", 33))
            told = True
        time.sleep(0.1)
    say(_welcome(processes, places))


def _welcome(processes: Sequence[Process], places: Mapping[str, str]) -> str:
    urls = {each.name: f"http://localhost:{each.port}" for each in processes}
    served = {name: urls[name] for name in ("gateway", "user-service", "order-service")}
    metrics = {
        each.name: f"http://localhost:{each.env['METRICS_PORT']}/metrics" for each in processes
    }
    rows = [f"  {name:<16} {url}" for name, url in {**served, **places}.items()]
    rows += ["", "Metrics of each process:", "", *(f"  {n:<16} {u}" for n, u in metrics.items())]
    return "\n".join(
        [
            "",
            paint("Everything is ready.", 32),
            "",
            *rows,
            "",
            f"Calls to try are at {paint(served['gateway'] + '/docs', 36)}. A first one to paste:",
            "",
            paint(_FIRST_CURL.format(gateway=served["gateway"]), 36),
            "",
            "`make demo` in another terminal plays the whole journey. Ctrl-C stops everything.",
            "",
        ]
    )
