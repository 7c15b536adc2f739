"""OpenTelemetry's SDK: what is sampled, and how spans are exported."""

import logging
import os
from socket import gethostname
from time import monotonic
from typing import Any

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.instrumentation.psycopg2 import Psycopg2Instrumentor
from opentelemetry.instrumentation.pymongo import PymongoInstrumentor
from opentelemetry.instrumentation.urllib3 import URLLib3Instrumentor
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanLimits, TracerProvider, sampling
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import SpanKind

from eventcore.settings import Settings

QUIET = 60.0
"""Seconds between two log lines that say that spans cannot be exported."""

MOST_LINKS = 1000
"""Maximum links of one span: more than a page or a batch has events."""

EXPORT_DELAY = 500
"""Milliseconds between exports."""

EXPORT_SPANS = 64
"""Maximum spans of one export. Encoding a large one holds the interpreter, and with it requests."""


def to_provider(settings: Settings) -> TracerProvider:
    """A tracer provider that exports to OTEL_EXPORTER_OTLP_ENDPOINT."""
    process = "service" if settings.process == "serve" else settings.process.replace(" ", "-")
    is_edge = settings.service == "gateway"
    resource: dict[str, str | int] = {
        "service.name": "gateway" if is_edge else f"{settings.service}-{process}",
        "service.version": settings.version,
        "host.name": gethostname(),
        "process.pid": os.getpid(),
    }
    provider = TracerProvider(
        sampler=_sampler(settings.trace_ratio),
        resource=Resource.create(resource),
        span_limits=SpanLimits(max_links=MOST_LINKS),
        shutdown_on_exit=False,
    )
    _limit_lines("opentelemetry.exporter.otlp.proto.http.trace_exporter")
    exporter = OTLPSpanExporter(timeout=5)
    provider.add_span_processor(
        BatchSpanProcessor(
            exporter, schedule_delay_millis=EXPORT_DELAY, max_export_batch_size=EXPORT_SPANS
        )
    )
    return provider


def instrument_clients() -> None:
    """Adds spans to the calls of the client libraries."""
    Psycopg2Instrumentor().instrument()
    PymongoInstrumentor().instrument(request_hook=_name_operation)
    URLLib3Instrumentor().instrument()


def _name_operation(span: Any, event: Any) -> None:
    """Adds what the conventions require and the instrumentation of pymongo leaves out."""
    span.set_attribute("db.operation.name", event.command_name)


def _limit_lines(name: str) -> None:
    """Lets one line in QUIET seconds pass, of many that say that a collector is away."""
    quiet_until = 0.0

    def is_due(_record: logging.LogRecord) -> bool:
        nonlocal quiet_until
        if is_due := monotonic() >= quiet_until:
            quiet_until = monotonic() + QUIET
        return is_due

    logger = logging.getLogger(name)
    logger.setLevel(logging.ERROR)
    logger.addFilter(is_due)


def _sampler(ratio: float) -> Any:
    """Follows the parent; a request without one is kept by ratio, a poll of a server never."""
    by_ratio = sampling.TraceIdRatioBased(ratio)

    class Requests(sampling.Sampler):
        def should_sample(
            self, parent_context: Any, trace_id: int, name: str, kind: Any = None,
            attributes: Any = None, links: Any = None, trace_state: Any = None,
        ) -> sampling.SamplingResult:  # fmt: skip
            sampler = by_ratio if kind is SpanKind.SERVER else sampling.ALWAYS_OFF
            return sampler.should_sample(
                parent_context, trace_id, name, kind, attributes, links, trace_state
            )

        def get_description(self) -> str:
            return f"Requests({by_ratio.get_description()})"

    return sampling.ParentBased(Requests())
