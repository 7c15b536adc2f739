"""The metrics of a running process now."""

import urllib.request
from collections.abc import Callable

from prometheus_client.parser import text_string_to_metric_families

from local.shop import Shop


def scrape(shop: Shop, process: str) -> dict[tuple[str, ...], float]:
    """Every sample of a process, by its name and the values of its labels."""
    url = f"http://127.0.0.1:{shop.environment(process)['METRICS_PORT']}/metrics"
    with urllib.request.urlopen(url, timeout=5) as answer:
        text = answer.read().decode()
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def metric(shop: Shop, process: str, *name: str) -> Callable[[], float]:
    return lambda: scrape(shop, process).get(name, -1.0)
