"""`python -m local.panels.pictures`: draws each dashboard into docs/images, beside `make run`.

A Prometheus watches the running system under calls; a page draws what each panel's queries gave,
where the board's JSON has the panel; a headless Chromium takes the picture. npm brings uPlot, the
library that Grafana draws with, and a writer of small PNGs into a cache, in the versions of
drawing/package-lock.json.
"""

import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import click

from gateway.traffic import Traffic
from local.announce import say
from local.browser import chromium
from local.child import CannotStart
from local.inside import run_tool
from local.panels.boards import BOARDS
from local.panels.grafana import Board, Json
from local.panels.watch import Prometheus, prometheus
from local.services import ROOT

IMAGES = ROOT / "docs/images"

DRAWING = Path(__file__).parent / "drawing"

CACHE = ROOT / ".data" / "drawing"
"""Where npm puts the library; `make clean` removes it."""

CELL, WIDTH = 38, 1600
"""Height of a cell of Grafana's grid, and width of a picture, in pixels."""

FIRST_SCREEN = 25
"""Cells that a screen of 1080 lines shows of a board, below Grafana's own bars."""

SCRAPE = 5
"""Seconds between two scrapes."""

NOT_HERE = (
    "Sagas",
    "Snapshots",
    "Objectives, over thirty days",
    "PostgreSQL, from its exporter",
    "MongoDB, from its exporter",
    "Volumes, from the kubelets",
)
"""Rows that have no data beside `make run`, where no user has a credit limit, or too little, as
budgets of thirty days."""

STOPPED, STOP_TIME = "order-relay", 90
"""Process that stops for one of the pictures, and for how many seconds."""

RATE = 10.0
"""Calls a second while pictures are made."""

VARIABLES = {
    "$__rate_interval": f"{SCRAPE * 6}s",
    "$namespace": ".*",
    "$job": ".+",
    "$instance": ".+",
}
"""The values of Grafana's variables when all of each is chosen."""


def filled(promql: str) -> str:
    """A panel's query without Grafana's variables."""
    for name, value in VARIABLES.items():
        promql = promql.replace(name, value)
    return promql


def legend(text: str, labels: Mapping[str, str]) -> str:
    """The legend of a series, as Grafana makes it."""
    if text == "__auto":
        return ", ".join(f"{name}={value}" for name, value in labels.items()) or "value"
    return re.sub(r"{{(\w+)}}", lambda found: labels.get(found[1], ""), text)


def seen(server: Prometheus, board: Json, start: float, end: float) -> Json:
    """The board, with what its queries gave in `seen` of each panel."""
    step = max(SCRAPE, (end - start) / 300)
    times = [start + step * number for number in range(int((end - start) / step) + 1)]
    panels = []
    for panel in board["panels"]:
        series = [
            each
            for target in panel.get("targets", ())
            for each in _series(server, target, times, step)
        ]
        panels.append({**panel, "seen": series})
    return {**board, "panels": panels, "times": times}


def _series(server: Prometheus, target: Json, times: list[float], step: float) -> Iterator[Json]:
    promql = filled(target["expr"])
    if target["instant"]:
        for each in server.query(promql, time=f"{times[-1]:.3f}"):
            yield {"labels": each["metric"], "name": "", "values": [_number(each["value"][1])]}
        return
    for each in server.query_range(promql, times[0], times[-1], step):
        known = {round(at * 1000): _number(value) for at, value in each["values"]}
        values = [known.get(round(at * 1000)) for at in times]
        name = legend(target["legendFormat"], each["metric"])
        yield {"labels": each["metric"], "name": name, "values": values}


def _number(text: str) -> float | None:
    value = float(text)
    return value if math.isfinite(value) else None


def seen_lately(server: Prometheus, board: Board, seconds: float) -> Json:
    """The data of a board for so long until now, since there was a rate."""
    end = time.time()
    return seen(server, here(board.render()), end - seconds + SCRAPE * 6, end)


def here(board: Json) -> Json:
    """The board without the rows of NOT_HERE; they are its last."""
    titles = [panel["title"] for panel in board["panels"]]
    first = min((titles.index(each) for each in NOT_HERE if each in titles), default=len(titles))
    return {**board, "panels": board["panels"][:first]}


def page(board: Json, library: Path) -> str:
    """The page that draws a board."""
    text = (DRAWING / "page.html").read_text()
    parts = {
        "/* uPlot.css */": (library / "uPlot.min.css").read_text(),
        "/* uPlot.js */": (library / "uPlot.iife.min.js").read_text(),
        '"BOARD"': json.dumps(board).replace("<", "\\u003c"),
    }
    for place, part in parts.items():
        assert text.count(place) == 1
        text = text.replace(place, part)
    return text


def install() -> Path:
    """Lets npm install what is drawn with; returns the folder of uPlot. Raises CannotStart."""
    if not shutil.which("npm"):
        raise CannotStart("npm is missing: install Node.js.")
    CACHE.mkdir(parents=True, exist_ok=True)
    for name in ("package.json", "package-lock.json", "small.js"):
        shutil.copy(DRAWING / name, CACHE / name)
    npm = ("npm", "ci", "--silent", "--ignore-scripts", "--prefer-offline", "--prefix", str(CACHE))
    if subprocess.run(npm, check=False).returncode:
        raise CannotStart("npm could not install uPlot and upng-js: it says why above.")
    return CACHE / "node_modules/uplot/dist"


def height(board: Json) -> int:
    """The height of a board in pixels."""
    ends: list[int] = [each["gridPos"]["y"] + each["gridPos"]["h"] for each in board["panels"]]
    return top(max(ends))


def top(cells: int) -> int:
    """The height of so many cells in pixels, with the board's title."""
    return CELL * cells + 48


def shoot(html: str, picture: Path, tall: int) -> None:
    """Lets Chromium draw a page into a PNG. Raises CannotStart."""
    with tempfile.TemporaryDirectory() as folder, chromium() as browser:
        (Path(folder) / "page.html").write_text(html)
        tab = browser.open(WIDTH, tall)
        tab.go(f"file://{folder}/page.html")
        tab.picture(picture, whole=False)
    shrink(picture)


def shrink(picture: Path) -> None:
    """Writes a PNG again, with few colours, so that it is small."""
    subprocess.run(["node", str(CACHE / "small.js"), str(picture)], check=True, timeout=120)


@contextmanager
def stopped(port: int) -> Iterator[None]:
    """The process that has its metrics at a port does nothing meanwhile. Raises CannotStart."""
    mark = f"METRICS_PORT={port}\0".encode()
    found = [
        int(place.parent.name)
        for place in Path("/proc").glob("[0-9]*/environ")
        if _has(place, mark) and _has(place.parent / "cmdline", b"eventcore\0")
    ]
    if not found:
        raise CannotStart(f"no process has its metrics at port {port}.")
    try:
        for pid in found:
            os.kill(pid, signal.SIGSTOP)
        yield
    finally:
        for pid in found:
            os.kill(pid, signal.SIGCONT)


def _has(file: Path, mark: bytes) -> bool:
    """Whether a file of /proc holds this; one of another user, or of one that ended, does not."""
    try:
        return mark in file.read_bytes()
    except OSError:
        return False


@contextmanager
def calls(gateway: str) -> Iterator[None]:
    """Calls to the gateway, at RATE."""
    stop = threading.Event()
    traffic = Traffic(gateway, RATE, lambda text: say(text.strip()))
    thread = threading.Thread(target=traffic.run, args=[stop])
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def running(data: Path) -> tuple[str, Json, int]:
    """The gateway's URL, how each process is run, and RabbitMQ's metrics port.

    Raises CannotStart.
    """
    file = data / "secrets" / "environments"
    if not file.exists():
        raise CannotStart(f"nothing runs on {data}; start it with `make run`.")
    noted = json.loads(file.read_text())
    settings = data / "rabbitmq" / "rabbitmq.conf"
    text = settings.read_text() if settings.exists() else ""
    broker = re.search(r"^prometheus\.tcp\.port = (\d+)$", text, re.MULTILINE)
    gateway = f"http://localhost:{noted['gateway']['env']['PORT']}"
    return gateway, noted, int(broker[1]) if broker else 0


@click.command()
@click.option("--data", type=click.Path(path_type=Path), default=".data", show_default=True)
@click.option("--seconds", default=300, show_default=True, help="Time that pictures show.")
@click.option("--into", type=click.Path(path_type=Path), default=IMAGES, show_default=True)
def main(data: Path, seconds: int, into: Path) -> None:
    """Draw each dashboard, beside a running `make run`."""
    try:
        gateway, noted, broker = running(data.absolute())
        jobs = {name: [int(each["env"]["METRICS_PORT"])] for name, each in noted.items()}
        uplot = install()
        with tempfile.TemporaryDirectory() as folder, calls(gateway):
            say(f"Watching {gateway} for {seconds} s, with {RATE:g} calls a second ...")
            with prometheus(jobs, broker, Path(folder), f"{SCRAPE}s") as server:
                run_tool(("verify", "--sample", "5"), noted)
                time.sleep(seconds)
                drawn = {
                    name: seen_lately(server, board, seconds) for name, board in BOARDS.items()
                }
                say(f"Stopping {STOPPED} for {STOP_TIME} s ...")
                with stopped(*jobs[STOPPED]):
                    time.sleep(STOP_TIME)
                    trouble = seen_lately(server, BOARDS["overview"], 2 * STOP_TIME)
        for name, board in drawn.items():
            shoot(page(board, uplot), into / f"board-{name}.png", height(board))
            say(f"{into / f'board-{name}.png'}")
        for name, board in {"board.png": drawn["overview"], "board-stopped.png": trouble}.items():
            shoot(page(board, uplot), into / name, top(FIRST_SCREEN))
            say(f"{into / name}")
    except CannotStart as problem:
        sys.exit(f"make pictures: {problem}")


if __name__ == "__main__":
    main()
