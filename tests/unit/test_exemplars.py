"""Exemplars: from a time in a histogram to the trace of one request that took it."""

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from eventcore.observe.metrics import READABLE, render_metrics
from eventcore.observe.tracing import current_exemplar, exemplar_of

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"  # pragma: allowlist secret
OPENMETRICS = "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5"


@pytest.mark.parametrize(
    ("traceparent", "exemplar"),
    [
        (f"00-{TRACE}-00f067aa0ba902b7-01", {"trace_id": TRACE}),
        (f"00-{TRACE}-00f067aa0ba902b7-03", {"trace_id": TRACE}),
        (f"00-{TRACE}-00f067aa0ba902b7-00", None),
        ("00-short-01", None),
        (None, None),
        (1, None),
    ],
)
def test_only_a_trace_that_is_kept_is_an_exemplar(
    traceparent: object, exemplar: dict[str, str] | None
) -> None:
    assert exemplar_of(traceparent) == exemplar


def test_without_tracing_there_is_none() -> None:
    assert current_exemplar() is None


def test_exemplars_are_told_to_a_prometheus_and_plain_text_has_none() -> None:
    READABLE.labels("exemplars").observe(0.3, {"trace_id": TRACE})
    text, kind = render_metrics(OPENMETRICS)
    assert kind.startswith("application/openmetrics-text")
    parsed = text_string_to_metric_families(text.decode())  # type: ignore[no-untyped-call]
    families = {each.name: each for each in parsed}
    told = [
        (sample.labels["le"], sample.exemplar.labels, sample.exemplar.value)
        for sample in families["projection_append_to_readable_seconds"].samples
        if sample.exemplar and sample.labels["projection"] == "exemplars"
    ]
    assert told == [("0.5", {"trace_id": TRACE}, 0.3)]
    plain, kind = render_metrics("*/*")
    assert kind.startswith("text/plain")
    assert TRACE not in plain.decode()
