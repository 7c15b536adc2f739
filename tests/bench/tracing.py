"""P18t: POSTs at a fixed rate through all, with a collector of traces that is well or is not.

The whole system is begun anew for each measurement. One trace in ten is kept, as the chart has it,
and all of them in the last row.
"""

import json
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TypeAlias

from tests.bench.bed import Bed, Size
from tests.bench.load import at_rate
from tests.bench.machine import cpu_seconds
from tests.bench.rows import Figure, Row, Values, require
from tests.otlp import elsewhere, silent, unreachable

RATE = 60.0
"""Requests a second."""

Endpoint: TypeAlias = Callable[[], AbstractContextManager[str]]


MEASURED: Sequence[tuple[float, str, Endpoint]] = (
    (0.1, "a collector that takes all", elsewhere),
    (0.1, "a collector that never answers", silent),
    (0.1, "a collector out of reach", unreachable),
    (1.0, "a collector that takes all", elsewhere),
)


class Tracing:
    """Measures on a system of its own that is told where traces go."""

    def __init__(self, bed: Bed, size: Size) -> None:
        self._bed = bed
        self._seconds = size.seconds

    def rows(self) -> Sequence[Row]:
        """The rows of this family."""
        return tuple(
            Row(
                "P18t", f"POST /users through the gateway, {share:.0%} traced, {name}",
                lambda e=endpoint, share=share: self._post(e, share),  # type: ignore[misc]
                (Figure("ms", at_most=True, name="p99"), Figure("µs of CPU", at_most=True)),
                "without tracing", lambda: self._post(lambda: nullcontext("")),
            )
            for share, name, endpoint in MEASURED
        )  # fmt: skip

    def _post(self, endpoint: Endpoint, share: float = 1.0) -> Values:
        """Milliseconds of the 99th percentile, and CPU time of all processes for a request."""
        with endpoint() as url:
            shop = self._bed.shop_told(
                {"OTEL_EXPORTER_OTLP_ENDPOINT": url, "OTEL_TRACES_SAMPLER_ARG": str(share)}
            )
            try:
                shop.start()
                target = f"{shop.url('gateway')}/users"
                body = json.dumps({"name": "Ada", "email": "ada@example.com"})
                at_rate(target, RATE, 2.0, body)
                pids = [shop.pid(name) for name in shop.names]
                before = cpu_seconds(pids)
                outcome = at_rate(target, RATE, self._seconds, body)
                spent = cpu_seconds(pids) - before
            finally:
                shop.stop()
        require(outcome.good == sum(outcome.statuses.values()), f"all good: {outcome.statuses}")
        return outcome.percentile(0.99) * 1e3, spent / outcome.good * 1e6
