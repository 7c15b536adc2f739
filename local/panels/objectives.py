"""The service level objectives: how often each is missed, as recorded series, and two alerts.

An objective is a share of good events over thirty days; the error budget is the rest. An alert
fires when the budget burns so fast over a long window that somebody must act, and still burns over
a short one, so that it ends soon after the fault does. Source: Google, The Site Reliability
Workbook, chapter 5, "Multiwindow, Multi-Burn-Rate Alerts".
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

WINDOWS = ("5m", "30m", "1h", "6h", "3d")
"""The windows over which the burning of a budget is recorded."""

LONG = ("1h", "6h", "3d")
"""The windows over which bad events are counted."""

_HERE = '{namespace=~".*"}'
"""Any namespace, or none, in which the chart puts its release's."""

ENOUGH = 5
"""So many errors at least are in the long window: a handful of calls alerts nobody."""


@dataclass(frozen=True, slots=True)
class Objective:
    """`target` is the share of good events of all that the counter `total` counts.

    Either `bad` or `good` counts a part of them. `service` is the one whose processes count; any
    if empty.
    """

    name: str
    target: float
    total: str
    bad: str = ""
    good: str = ""
    service: str = ""

    def burn(self, window: str) -> str:
        """How many times too fast the budget burns in a window; nothing without events."""
        share = f"({self._bad('rate', window)})\n/ ({self._sum('rate', self.total, window)} > 0)"
        return f"{share}\n/ {1 - self.target:.4g}"

    def count(self, window: str) -> str:
        """The number of bad events in a window."""
        return self._bad("increase", window)

    def _bad(self, function: str, window: str) -> str:
        total = self._sum(function, self.total, window)
        if self.good:
            return f"{total}\n- {self._sum(function, self.good, window)}"
        return f"{self._sum(function, self.bad, window)}\nor 0 * {total}"

    def _sum(self, function: str, counter: str, window: str) -> str:
        each = f"{function}({counter}[{window}])"
        if self.service:
            info = f'eventcore_build_info{{service="{self.service}"}}'
            each += (
                "\n  * on (namespace, job, instance) group_left ()"
                f" group by (namespace, job, instance) ({info})"
            )
        return f"sum by (namespace) ({each})"


_PUBLIC = 'route!~"/internal/.*"'
_CALLS = "http_request_duration_seconds_count{%s}"
_COMMAND = f'method=~"POST|PUT|PATCH|DELETE", {_PUBLIC}'
_READ = f'method=~"GET|HEAD", {_PUBLIC}'
_READABLE = "projection_append_to_readable_seconds_%s"

OBJECTIVES = (
    Objective(
        "commands",
        0.999,
        _CALLS % _COMMAND,
        bad=_CALLS % f'{_COMMAND}, status=~"5.."',
        service="gateway",
    ),
    Objective(
        "reads",
        0.999,
        _CALLS % _READ,
        bad=_CALLS % f'{_READ}, status=~"5.."',
        service="gateway",
    ),
    Objective(
        "readable",
        0.99,
        _READABLE % "count",
        good=_READABLE % 'bucket{le="1.0"}',
    ),
)
"""Commands answered, reads answered, and events readable within a second of their append."""


def records() -> Iterator[dict[str, Any]]:
    """The recording rules: how fast each budget burns, and how many bad events there were."""
    for each in OBJECTIVES:
        told = {"objective": each.name}
        for window in WINDOWS:
            burn = each.burn(window)
            yield {"record": f"shop:slo_burn:rate{window}", "expr": burn, "labels": told}
        for window in LONG:
            count = each.count(window)
            yield {"record": f"shop:slo_errors:increase{window}", "expr": count, "labels": told}


def burns(factor: float, long: str, short: str) -> str:
    """The condition of an alert: a budget burns `factor` times too fast over both windows."""
    fast = (f"shop:slo_burn:rate{window}{_HERE} > {factor:g}" for window in (long, short))
    return "\nand\n".join([*fast, f"shop:slo_errors:increase{long}{_HERE} >= {ENOUGH}"])
