"""P12, P13, P14, P17, P32: the whole system, all processes and three servers on this machine."""

import json
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property

from tests.bench.bed import Bed, Size
from tests.bench.load import Outcome, as_much_as_goes, at_rate, percentile
from tests.bench.machine import Spent, cpu_seconds
from tests.bench.rows import Row, Values, require
from tests.bench.visitor import Visitor

STEP = 1.1
"""How much more is asked for in the next try for a rate that can be sustained."""

TRIES = 6

SAMPLE = 10
"""Of so many orders one is watched until it is readable."""

LOOK_EVERY = 0.0005
"""Seconds between two looks for orders that are not readable yet."""

DRAIN_TIME = 120


class WholeSystem:
    """Measures through the gateway, with a user who orders all the time."""

    def __init__(self, bed: Bed, size: Size) -> None:
        self._bed = bed
        self._size = size
        self._sustained = 0.0
        self._said: Sequence[str] = ()
        self._limit: Sequence[str] = ()
        self._answered = 0

    def rows(self) -> Sequence[Row]:
        """The rows of this family."""
        latency = (" ms p50", " ms p99")
        return (
            Row("P12", "answered to readable, idle", self._idle, latency),
            Row("P32", "answered to readable in the view of customers", self._in_view, latency),
            Row(
                "P13", "answered to readable at half of capacity, at a fixed rate",
                self._at_half_of_capacity, latency, notes=self._say_rate,
            ),
            Row(
                "P14", "commands through the gateway, sustained", self._sustain,
                notes=lambda: self._limit,
            ),
            Row(
                "P17", "CPU a command at capacity, all our processes", self._cpu, (" µs",),
                notes=lambda: self._said,
            ),
        )  # fmt: skip

    # ── P12, P13 ──────────────────────────────────────────────────────────────────────────

    def _idle(self) -> Values:
        with self._checked():
            watch = Watch(self._visitor)
            for _ in range(self._size.answered):
                watch.note(self._visitor.order())
                watch.until_all_readable()
        return watch.p50_p99()

    def _in_view(self) -> Values:
        """As P12; the document is the customer's, with all orders of theirs."""
        visitor, took = self._visitor, list[float]()
        with self._checked():
            visitor.orders_when_still()
            placed = visitor.own_orders_in_log()
            for number in range(placed + 1, placed + 1 + self._size.answered):
                visitor.order()
                began = time.perf_counter()
                while visitor.orders_of_customer() < number:
                    require(time.perf_counter() - began < DRAIN_TIME, "the customer is readable")
                    time.sleep(LOOK_EVERY)
                took.append(time.perf_counter() - began)
        return percentile(took, 0.5) * 1e3, percentile(took, 0.99) * 1e3

    def _at_half_of_capacity(self) -> Values:
        rate = self._capacity / 2
        with self._checked():
            watch = Watch(self._visitor)
            with watch.in_thread():
                outcome = self._at_rate(rate, watch)
            require(outcome.good == sum(outcome.statuses.values()), f"all good: {outcome.statuses}")
        return watch.p50_p99()

    # ── P14 ───────────────────────────────────────────────────────────────────────────────

    def _sustain(self) -> Values:
        """The highest rate that holds: met, with no backlog that grows, drained in a second."""
        rate = self._sustained or self._peak() * 0.7
        best = 0.0
        for _ in range(TRIES):
            if self._holds(rate):
                best, rate = rate, rate * STEP
            elif best:
                break
            else:
                rate /= STEP
        self._sustained = best or rate
        return (best,)

    def _holds(self, rate: float) -> bool:
        with self._checked():
            applied = self._visitor.applied()
            halfway: list[int] = []

            def backlog_now() -> int:
                return self._answered - (self._visitor.applied() - applied)

            look = threading.Timer(self._size.seconds / 2, lambda: halfway.append(backlog_now()))
            look.start()
            outcome = self._at_rate(rate)
            look.join()
            growth = backlog_now() - halfway[0]
            began = time.monotonic()
            while self._visitor.applied() - applied < outcome.good:
                if time.monotonic() - began > 1:
                    break
                time.sleep(0.01)
            drained = time.monotonic() - began <= 1
        asked = int(rate * self._size.seconds)
        met = outcome.good >= asked * 0.99 and outcome.seconds <= self._size.seconds * 1.05 + 0.1
        grows = growth > max(0.01 * asked / 2, 10)
        held = met and drained and not grows
        if not held:
            self._limit = (
                f"At {rate:,.0f}/s {outcome.good:,} of {asked:,} were answered well in"
                f" {outcome.seconds:.1f} s, {growth:,} more than halfway were not readable at the"
                f" end, and {'all' if drained else 'not all'} were a second later.",
            )
        return held

    def _peak(self) -> float:
        visitor = self._visitor
        with self._checked():
            body = visitor.order_body
            return as_much_as_goes(visitor.url, self._size.seconds, 16, body).rate

    @cached_property
    def _capacity(self) -> float:
        """The result of P14, measured now if it was not before."""
        if not self._sustained:
            self._sustain()
        return self._sustained

    # ── P17 ───────────────────────────────────────────────────────────────────────────────

    def _cpu(self) -> Values:
        pids = {name: self._bed.shop.pid(name) for name in self._visitor.processes}
        capacity = self._capacity
        with self._checked():
            before = {name: cpu_seconds([pid]) for name, pid in pids.items()}
            all_spent = Spent()
            outcome = self._at_rate(capacity)
            of_all = all_spent.each(outcome.good, "a command, the client being the benchmark")
            self._drain()  # which asks the stand-in much
            spent = {name: cpu_seconds([pid]) - before[name] for name, pid in pids.items()}
        each = {name: seconds / outcome.good * 1e6 for name, seconds in spent.items()}
        parts = ", ".join(f"{name} {value:.0f}" for name, value in each.items())
        self._said = (f"µs of CPU a command at {capacity:,.0f}/s: {parts}", of_all)
        return (sum(each.values()),)

    def _say_rate(self) -> Sequence[str]:
        return (f"The fixed rate was {self._capacity / 2:,.0f}/s.",)

    # ── shared ────────────────────────────────────────────────────────────────────────────

    def _at_rate(self, rate: float, watch: "Watch | None" = None) -> Outcome:
        visitor = self._visitor
        self._answered = 0

        def note(body: bytes) -> None:
            self._answered += 1
            if watch and self._answered % SAMPLE == 0:
                watch.note(json.loads(body)["orderId"])

        return at_rate(visitor.url, rate, self._size.seconds, visitor.order_body, note)

    @contextmanager
    def _checked(self) -> Iterator[None]:
        """Afterwards every order in the log is readable, and nothing else is."""
        self._drain()
        yield
        self._drain()

    def _drain(self) -> None:
        """Wait until the read model has every order of the log."""
        deadline = time.monotonic() + DRAIN_TIME
        while (readable := self._visitor.orders_readable()) != self._visitor.orders_in_log():
            require(time.monotonic() < deadline, f"{readable} orders are readable, not all")
            time.sleep(0.05)

    @cached_property
    def _visitor(self) -> Visitor:
        self._bed.shop.start()
        return Visitor(self._bed)


class Watch:
    """Looks for orders that were answered, until they are readable; and how long that took."""

    def __init__(self, visitor: Visitor) -> None:
        self._readmodel = visitor.readmodel
        self._awaited: dict[str, float] = {}
        self._took: list[float] = []
        self._ended = False

    def note(self, order_id: str) -> None:
        """This one has just been answered."""
        self._awaited[order_id] = time.perf_counter()

    def until_all_readable(self) -> None:
        """Look until all that were noted are there."""
        deadline = time.perf_counter() + DRAIN_TIME
        while self._awaited:
            self._look()
            require(time.perf_counter() < deadline, "all orders become readable")
            time.sleep(LOOK_EVERY)

    @contextmanager
    def in_thread(self) -> Iterator[None]:
        """Look all the time meanwhile, and then until all are there."""
        thread = threading.Thread(target=self._run)
        thread.start()
        try:
            yield
        finally:
            self._ended = True
            thread.join()
        self.until_all_readable()

    def p50_p99(self) -> Values:
        """Milliseconds."""
        return percentile(self._took, 0.5) * 1e3, percentile(self._took, 0.99) * 1e3

    def _run(self) -> None:
        while not self._ended:
            if self._awaited:
                self._look()
            time.sleep(LOOK_EVERY)

    def _look(self) -> None:
        there = self._readmodel.versions("orders", list(self._awaited))
        now = time.perf_counter()
        self._took += [now - self._awaited.pop(order_id) for order_id in there]
