"""Lines of the benchmark's output."""

from collections.abc import Sequence
from statistics import median


def line(name: str, text: str) -> None:
    """One figure."""
    print(f"  {name:<44} {text}")


def compare(name: str, ours: Sequence[float], bare: Sequence[float]) -> None:
    """Two rates of the same work: medians with spread, and the ratio of the medians."""
    overlap = max(min(ours), min(bare)) <= min(max(ours), max(bare))
    line(
        name,
        f"{_rate(ours)} beside {_rate(bare)}: ratio {median(ours) / median(bare):.2f}"
        + (" (intervals overlap)" if overlap else ""),
    )


def _rate(rates: Sequence[float]) -> str:
    return f"{median(rates):,.0f}/s ({min(rates):,.0f} to {max(rates):,.0f})"
