"""P5, P6, P7, P18, P23: calls beside the same server's own ceiling, relays and projectors at rest.

The order service alone is at work here, with PostgreSQL or MongoDB behind it and, in P6, the
gateway before it.
"""

from collections.abc import Sequence
from functools import cached_property

from tests.bench.bed import Bed, Size
from tests.bench.load import Peak, as_much_as_goes
from tests.bench.machine import Spent, cpu_seconds
from tests.bench.rows import Figure, Row, Values, require
from tests.bench.visitor import Visitor

CONNECTIONS = 32

AT_REST = ("user-relay", "order-relay", "user-projector", "order-projector", "order-user-sync")


class Calls:
    """Measures on the shop's order service and its variants."""

    def __init__(self, bed: Bed, size: Size) -> None:
        self._bed = bed
        self._seconds = size.seconds
        self._said: dict[tuple[str, str], str] = {}

    def rows(self) -> Sequence[Row]:
        """The rows of this family."""
        on, off = self._cpu, self._cpu
        cost = Figure("µs of CPU", reach=1.05, at_most=True)
        return (
            Row(
                "P5", f"POST direct at a service, {CONNECTIONS} connections",
                lambda: self._post("order-service"), (Figure(reach=0.55, stretch=0.65),),
                "a validating Flask echo under the same gunicorn", lambda: self._post("echo"),
                notes=lambda: self._spent("a POST", "order-service", "echo"),
            ),
            Row(
                "P6", "POST through the gateway", lambda: self._post("gateway"),
                (Figure(reach=0.65, stretch=0.7),), "direct", lambda: self._post("order-service"),
            ),
            Row(
                "P7", "GET one document", lambda: self._get("order-service"),
                (Figure(reach=0.85, stretch=0.95),),
                "the same Flask route with a bare `find_one`", lambda: self._get("echo"),
                notes=lambda: self._spent("a GET", "order-service", "echo"),
            ),
            Row(
                "P18", "a POST with tracing at 10 % sampling", lambda: on("traced"),
                (Figure("µs of CPU", reach=1.1, at_most=True),), "without",
                lambda: off("order-service"),
            ),
            Row(
                "P18", "a POST with an Idempotency-Key", lambda: on("order-service", keys=True),
                (cost,), "without", lambda: off("order-service"),
            ),
            Row(
                "P18", "a POST with metrics", lambda: on("order-service"), (cost,), "without",
                lambda: off("unmetered"),
            ),
            Row(
                "P18", "a POST with JSON logs", lambda: on("order-service"), (cost,), "without",
                lambda: off("unlogged"),
            ),
            Row(
                "P23", "POST direct, 2 gunicorn workers", lambda: self._post("two-workers"),
                (Figure(),), "1 worker", lambda: self._post("order-service"), grows=2,
            ),
        )  # fmt: skip

    def _post(self, process: str) -> Values:
        return (self._load_and_check(process).rate,)

    def _get(self, process: str) -> Values:
        url = f"{self._url(process)}/queries/orders/{self._visitor.order_id}"
        require(self._visitor.ask(url)["_id"] == self._visitor.order_id, "the order is there")
        spent = Spent()
        peak = as_much_as_goes(url, self._seconds, CONNECTIONS)
        self._said["a GET", process] = spent.each(peak.answers, f"a GET, at {process}")
        return (peak.rate,)

    def _spent(self, what: str, *processes: str) -> Sequence[str]:
        return [self._said[what, process] for process in processes]

    def _cpu(self, process: str, keys: bool = False) -> Values:
        """CPU time that the service itself takes for a POST, in microseconds."""
        url = self._url(process)
        pid = self._bed.shop.pid(process)
        before = cpu_seconds([pid])
        answers = self._load_and_check(process, keys).answers
        assert url
        return ((cpu_seconds([pid]) - before) / answers * 1e6,)

    def _load_and_check(self, process: str, keys: bool = False) -> Peak:
        """Post orders; the log must have as many more as were answered, and those on the way."""
        url, visitor = self._url(process), self._visitor
        before = visitor.orders_in_log()
        begins = f"bench-{before}-{process}" if keys else ""
        spent = Spent()
        peak = as_much_as_goes(
            f"{url}/orders", self._seconds, CONNECTIONS, visitor.order_body, begins
        )
        self._said["a POST", process] = spent.each(peak.answers, f"a POST, at {process}")
        rows = visitor.orders_when_still() - before
        wanted = 0 if process == "echo" else peak.answers
        require(
            wanted <= rows <= wanted + (CONNECTIONS if wanted else 0),
            f"{wanted} orders were answered, {rows} are in the log",
        )
        return peak

    def _url(self, process: str) -> str:
        assert self._visitor
        self._bed.shop.stop(*AT_REST)
        self._bed.shop.start(process)
        return self._bed.shop.url(process)

    @cached_property
    def _visitor(self) -> Visitor:
        self._bed.shop.start(*self._bed.eight)
        return Visitor(self._bed)
