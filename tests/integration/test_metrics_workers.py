"""Metrics of a service with several workers, of which one dies: what was counted stays counted,
what was only true of the dead one goes with it, and a server that starts anew counts anew.
"""

import os
import signal
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from local.shop import Shop
from tests.integration.conftest import AnotherShop
from tests.integration.wire import Wire, user_body

PATIENCE = 60.0

pytestmark = pytest.mark.timeout(400)  # all processes are started anew, some of them often

CONNECTIONS = 17
"""Of one worker's pool to PostgreSQL: one for each thread, and one to wake the relay with."""

Series = tuple[str, frozenset[tuple[str, str]]]
Page = dict[Series, float]

POOL: Series = ("pool_connections_max", frozenset({("server", "PostgreSQL")}))
CREATED: Series = ("eventstore_events_appended_total", frozenset({("event_type", "USER_CREATED")}))


class Scrapes(threading.Thread):
    """Looks at a process's metrics again and again, and compares each page with the one before."""

    def __init__(self, shop: Shop) -> None:
        super().__init__(name="scrapes")
        self._url = f"http://127.0.0.1:{shop.environment('user-service')['METRICS_PORT']}/metrics"
        self._stop_asked = threading.Event()
        self.count = 0
        self.wrong: list[str] = []
        self.page: Page = {}

    def read(self) -> Page:
        """All series as they are now."""
        with urllib.request.urlopen(self._url, timeout=10) as answer:
            text = answer.read().decode()
        return {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }

    def run(self) -> None:
        while not self._stop_asked.is_set():
            before, self.page = self.page, self.read()
            self.count += 1
            self.wrong += [
                f"{series}: {value} and then {self.page.get(series)}"
                for series, value in before.items()
                if _counts(series) and self.page.get(series, -1.0) < value
            ]

    @contextmanager
    def going_on(self) -> Iterator[None]:
        self.start()
        try:
            yield
        finally:
            self._stop_asked.set()
            self.join()


def _counts(series: Series) -> bool:
    return series[0].endswith(("_total", "_count", "_sum", "_bucket"))


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.05)


def workers(shop: Shop) -> set[int]:
    master = shop.pid("user-service")
    return set(map(int, Path(f"/proc/{master}/task/{master}/children").read_text().split()))


def open_files(pid: int) -> list[str]:
    """The files in which a worker counts."""
    mapped = [line.split()[-1] for line in Path(f"/proc/{pid}/maps").read_text().splitlines()]
    return [file for file in mapped if file.endswith(".db")]


@contextmanager
def posting(shop: Shop) -> Iterator[list[int]]:
    """Callers who create users all the time; the status of each answer that came."""
    stop, answered = threading.Event(), list[int]()

    def run() -> None:
        wire = Wire(shop)
        while not stop.is_set():
            try:
                answered.append(wire.send("POST", "/users", user_body(), at="user-service").status)
            except (OSError, AssertionError):
                continue  # the worker that was to answer is dead

    threads = [threading.Thread(target=run) for _ in range(6)]
    for thread in threads:
        thread.start()
    try:
        yield answered
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def await_all(scrapes: Scrapes) -> None:
    """Every worker is there, and nothing of any other is."""
    until(lambda: scrapes.read().get(POOL) == 3 * CONNECTIONS)


@pytest.fixture
def served(another_shop: AnotherShop) -> Iterator[Shop]:
    with another_shop("user-service", WORKERS="3") as shop:
        yield shop


def test_a_worker_that_is_killed_as_it_begins_to_count_does_not_end_all_scraping(
    served: Shop,
) -> None:
    scrapes = Scrapes(served)
    await_all(scrapes)
    [folder] = {Path(file).parent for file in open_files(min(workers(served)))}
    (folder / "counter_1.db").touch()  # made, and nothing written
    assert scrapes.read()[POOL] == 3 * CONNECTIONS


def test_when_a_worker_is_killed_no_counter_goes_back_and_what_it_had_is_gone(
    served: Shop,
) -> None:
    scrapes = Scrapes(served)
    await_all(scrapes)
    with posting(served) as answered, scrapes.going_on():
        for _ in range(3):
            before = workers(served)
            seen = len(answered) + 30
            until(lambda n=seen: len(answered) > n)  # type: ignore[misc]
            victim = min(before)
            os.kill(victim, signal.SIGKILL)
            until(lambda b=before: len(workers(served) - b) == 1)  # type: ignore[misc]
            await_all(scrapes)
    assert scrapes.count > 20
    assert scrapes.wrong == []
    created = scrapes.read()[CREATED]
    assert created >= answered.count(202) > 90  # some were written, and their worker was gone
    assert created <= answered.count(202) + 3 * 16
    assert not [labels for _, labels in scrapes.read() if "pid" in dict(labels)]


@pytest.mark.parametrize("how", ["stopped", "killed"])
def test_a_server_that_starts_anew_counts_anew(served: Shop, how: str) -> None:
    scrapes = Scrapes(served)
    await_all(scrapes)
    for _ in range(5):
        assert Wire(served).send("POST", "/users", user_body(), at="user-service").status == 202
    assert scrapes.read()[CREATED] == 5
    if how == "stopped":
        served.stop("user-service")
    else:
        served.kill("user-service")
    served.start("user-service")
    await_all(scrapes)
    assert CREATED not in scrapes.read()
