"""Traces: one from the caller's traceparent to the read model, though half of it happens later.

The context travels with what it belongs to: in an HTTP header, with the event in the store, in
the message's headers. The only file that imports OpenTelemetry, and only once it is told where
to export to: without an endpoint nothing of it is loaded, and every function here does nothing.

    gateway → service → INSERT          publish (relay) → process (projector) → MongoDB
    └── child spans, as HTTP goes ──┘   └── children of the append's, or linked to it ──┘

A relay and a projector work on many events at once. In mode "child" each event has a span of
its own there, in its own trace, and the span of the work on all of them links to every one. In
mode "link" there is one span a batch, in a trace of its own, with a link to every event's.

Sources: W3C Trace Context; OpenTelemetry's semantic conventions for HTTP and for messaging.
"""

import logging
import os
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from socket import gethostname
from threading import Thread
from time import monotonic
from typing import TYPE_CHECKING, Any, Protocol

from eventcore.settings import Settings

if TYPE_CHECKING:
    from opentelemetry.trace import Link, Span, SpanContext, SpanKind

    from eventcore.broker import Message
    from eventcore.event import Event

log = logging.getLogger(__name__)

STOP_TIME = 2.0
"""Seconds that a process gives its last spans when it ends."""

QUIET = 60.0
"""Seconds between two lines that say that spans cannot be exported."""

MOST_LINKS = 1000
"""Links of one span: more than a page or a batch has events."""

_PACE = {"OTEL_BSP_SCHEDULE_DELAY": "500", "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "64"}
"""Milliseconds between exports, and spans of one: small ones, since rendering a large one holds
the interpreter, and with it requests, for as long."""

TRACEPARENT = re.compile("00-[0-9a-f]{32}-[0-9a-f]{16}-([0-9a-f]{2})")
"""A context as W3C writes it, and its flags."""

REGULAR = ("/healthz", "/livez", "/readyz", "/metrics", "/internal/heads")
"""What is asked every few seconds is worth neither a trace nor a line."""


class Ends(Protocol):
    """Something that takes time, and ends."""

    def end(self) -> None: ...


class _Tracing:
    """The SDK, set up; see the functions below, which are what others call."""

    def __init__(self, settings: Settings) -> None:
        os.environ.setdefault("OTEL_SEMCONV_STABILITY_OPT_IN", "http,database")
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.instrumentation.psycopg2 import Psycopg2Instrumentor
        from opentelemetry.instrumentation.pymongo import PymongoInstrumentor
        from opentelemetry.instrumentation.urllib3 import URLLib3Instrumentor
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import SpanLimits, TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        name = os.environ.get("OTEL_SERVICE_NAME") or _name(settings)
        self.links_only = settings.trace_mode == "link"
        self.ratio = settings.trace_ratio
        self.provider = TracerProvider(
            sampler=_sampler(),
            resource=Resource.create(
                {
                    "service.name": name,
                    "service.version": settings.version,
                    "host.name": gethostname(),
                    "process.pid": os.getpid(),
                }
            ),
            span_limits=SpanLimits(max_links=MOST_LINKS),
            shutdown_on_exit=False,
        )
        for variable, value in _PACE.items():
            os.environ.setdefault(variable, value)
        exporter = OTLPSpanExporter(timeout=5)  # to OTEL_EXPORTER_OTLP_ENDPOINT
        _quieten("opentelemetry.exporter.otlp.proto.http.trace_exporter")
        self.provider.add_span_processor(BatchSpanProcessor(exporter))
        self.tracer = self.provider.get_tracer("eventcore")
        Psycopg2Instrumentor().instrument(tracer_provider=self.provider)
        PymongoInstrumentor().instrument(
            tracer_provider=self.provider, request_hook=_name_operation
        )
        URLLib3Instrumentor().instrument(tracer_provider=self.provider)

    def publish(
        self, exchange: str, events: "Sequence[Event]", messages: "Sequence[Message]"
    ) -> "_Published":
        from opentelemetry.trace import Link, SpanKind

        contexts = [_context(message.headers) for message in messages]
        sampled = [context for context in contexts if context and context.trace_flags.sampled]
        if not sampled:
            return _Published(messages, ())
        name, kind = f"publish {exchange}", SpanKind.PRODUCER
        common = {"messaging.operation.type": "send", "messaging.destination.name": exchange}
        if self.links_only:
            links = [Link(context) for context in sampled]
            count = {"messaging.batch.message_count": len(events)}
            return _Published(messages, (self._span(name, kind, {**common, **count}, links=links),))
        told, spans = [], []
        for event, message, context in zip(events, messages, contexts, strict=True):
            if context and context.trace_flags.sampled:
                attributes: dict[str, str | int] = {
                    **common,
                    "messaging.message.id": message.id,
                    "messaging.message.body.size": len(message.body),
                    "messaging.rabbitmq.destination.routing_key": message.routing_key,
                    "eventstore.aggregate_id": str(event.aggregate_id),
                    "eventstore.position": event.position,
                }
                span = self._span(name, kind, attributes, context)
                spans.append(span)
                message = replace(message, headers=_carrying(message, span.get_span_context()))
            told.append(message)
        return _Published(told, spans)

    @contextmanager
    def process(self, queue: str, messages: "Sequence[Message]") -> Iterator[None]:
        from opentelemetry.trace import Link, SpanKind, use_span

        name, kind = f"process {queue}", SpanKind.CONSUMER
        found = [(message, _context(message.headers)) for message in messages]
        sampled = [(m, context) for m, context in found if context and context.trace_flags.sampled]
        if not sampled:
            with _nothing_kept():
                yield
            return
        count = {"messaging.batch.message_count": len(messages)}
        common = {"messaging.operation.type": "process", "messaging.destination.name": queue}
        if self.links_only:
            links = [Link(context) for _, context in sampled]
            spans = [self._span(name, kind, {**common, **count}, links=links)]
            batch = spans[0]
        else:
            spans = [
                self._span(
                    name,
                    kind,
                    {
                        **common,
                        "messaging.message.id": message.id,
                        "messaging.rabbitmq.destination.routing_key": message.routing_key,
                    },
                    context,
                )
                for message, context in sampled
            ]
            batch = spans[0]
            if len(spans) > 1:
                batch = self._batch(spans, count)
        try:
            with use_span(batch, end_on_exit=False):
                yield
        finally:
            for span in {id(each): each for each in (batch, *spans)}.values():
                span.end()

    def _batch(self, spans: "Sequence[Span]", count: Mapping[str, int]) -> "Span":
        """The work on several events: a child of the first, linked with all, both ways."""
        from opentelemetry.trace import Link, SpanKind

        contexts = [span.get_span_context() for span in spans]
        links = [Link(context) for context in contexts]
        batch = self._span("apply batch", SpanKind.INTERNAL, count, contexts[0], links)
        for span in spans[1:]:
            span.add_link(batch.get_span_context())
        return batch

    def _span(
        self,
        name: str,
        kind: "SpanKind",
        attributes: Mapping[str, str | int],
        parent: "SpanContext | None" = None,
        links: "Sequence[Link]" = (),
    ) -> "Span":
        from opentelemetry.context import Context
        from opentelemetry.trace import NonRecordingSpan, set_span_in_context

        context = set_span_in_context(NonRecordingSpan(parent), Context()) if parent else Context()
        system = {
            "messaging.system": "rabbitmq",
            "messaging.operation.name": name.split()[0],
        }
        return self.tracer.start_span(
            name, context, kind, attributes={**system, **attributes}, links=links
        )


def _name_operation(span: Any, event: Any) -> None:
    """The instrumentation of pymongo leaves out what the conventions require."""
    span.set_attribute("db.operation.name", event.command_name)


def _quieten(name: str) -> None:
    """A collector that is away is one line a minute, not one for each try."""
    said_at = -QUIET

    def is_due(_record: logging.LogRecord) -> bool:
        nonlocal said_at
        if monotonic() - said_at < QUIET:
            return False
        said_at = monotonic()
        return True

    logger = logging.getLogger(name)
    logger.setLevel(logging.ERROR)
    logger.addFilter(is_due)


class _Published:
    """Messages on their way, and the spans that end with their confirm."""

    def __init__(self, messages: "Sequence[Message]", spans: "Sequence[Span]") -> None:
        self.messages = messages
        self._spans = spans

    def end(self) -> None:
        """They are confirmed."""
        for span in self._spans:
            span.end()


_tracing: _Tracing | None = None


def start_tracing(settings: Settings) -> None:
    """Trace from now on, if there is an endpoint. In each process, after any fork."""
    global _tracing
    if settings.trace_endpoint:
        _tracing = _Tracing(settings)
        log.info("Tracing", extra={"endpoint": settings.trace_endpoint})


def stop_tracing() -> None:
    """Export what is left, within a few seconds, whether or not anybody takes it."""
    if _tracing:
        last = Thread(target=_tracing.provider.shutdown, name="last spans", daemon=True)
        last.start()
        last.join(STOP_TIME)


def trace_wsgi(application: Any) -> Any:
    """The same WSGI application, with a span for each request whose trace is kept.

    That is decided here, before anything is done for a span: by the caller where it says so, else
    by ratio. A request that is not kept goes on with a context that says so, and costs nothing.
    """
    if _tracing is None:
        return application
    from opentelemetry.instrumentation.wsgi import OpenTelemetryMiddleware
    from opentelemetry.trace import get_current_span

    ratio = _tracing.ratio
    traced = OpenTelemetryMiddleware(application, tracer_provider=_tracing.provider)

    def serve(environ: dict[str, Any], start_response: Any) -> Any:
        if get_current_span().is_recording():  # an application behind another one
            return application(environ, start_response)
        given = TRACEPARENT.fullmatch(environ.get("HTTP_TRACEPARENT", ""))
        is_kept = int(given[1], 16) & 1 if given else random.random() < ratio  # nosec B311
        if is_kept and not environ["PATH_INFO"].startswith(REGULAR):
            return traced(environ, start_response)
        if not given:
            trace, span = random.getrandbits(128), random.getrandbits(64)
            environ["HTTP_TRACEPARENT"] = f"00-{trace:032x}-{span:016x}-00"
        with _nothing_kept():
            return application(environ, start_response)

    return serve


def name_request(method: str, route: str) -> None:
    """Call the request's span what metrics call it, once its route is known."""
    if _tracing:
        from opentelemetry.trace import get_current_span

        span = get_current_span()
        span.update_name(f"{method} {route}")
        span.set_attribute("http.route", route)


def current_traceparent() -> str | None:
    """The context of what is done now, as W3C writes it; None without tracing."""
    if _tracing is None:
        return None
    from opentelemetry.trace import get_current_span

    context = get_current_span().get_span_context()
    return _written(context) if context.is_valid else None


def publishing(
    exchange: str, events: "Sequence[Event]", messages: "Sequence[Message]"
) -> _Published:
    """The messages of a page, with the context that each is to carry; `end` when confirmed."""
    return _tracing.publish(exchange, events, messages) if _tracing else _Published(messages, ())


@contextmanager
def processing(queue: str, messages: "Sequence[Message]") -> Iterator[None]:
    """A span, or spans, for the work on a batch, in the traces that its messages carry."""
    if _tracing is None:
        yield
        return
    with _tracing.process(queue, messages):
        yield


def _name(settings: Settings) -> str:
    process = "service" if settings.process == "serve" else settings.process.replace(" ", "-")
    return "gateway" if settings.service == "gateway" else f"{settings.service}-{process}"


def _written(context: "SpanContext") -> str:
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"


def _carrying(message: "Message", context: "SpanContext") -> dict[str, str]:
    return {**message.headers, "traceparent": _written(context)}


def _context(headers: Mapping[str, str]) -> "SpanContext | None":
    """The context that a message carries, if it is one."""
    from opentelemetry.trace import get_current_span
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    if "traceparent" not in headers:
        return None
    span = get_current_span(TraceContextTextMapPropagator().extract(headers, _nothing()))
    context = span.get_span_context()
    return context if context.is_valid else None


def _nothing() -> Any:
    from opentelemetry.context import Context

    return Context()


@contextmanager
def _nothing_kept() -> Iterator[None]:
    """What is called within makes no spans: no instrumentation looks any further."""
    from opentelemetry.instrumentation.utils import suppress_instrumentation

    with suppress_instrumentation():
        yield


def _sampler() -> Any:
    """As the parent, which `trace_wsgi` has asked; a batch if any of its events is sampled.

    What has neither caller nor events, such as a poll of the database, is no trace.
    """
    from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON, ParentBased, Sampler
    from opentelemetry.trace import SpanKind, get_current_span

    usual = ParentBased(ALWAYS_ON)

    class BySource(Sampler):
        def should_sample(
            self, parent_context: Any, trace_id: int, name: str, kind: Any = None,
            attributes: Any = None, links: Any = None, trace_state: Any = None,
        ) -> Any:  # fmt: skip
            chosen: Sampler = usual
            if links and any(link.context.trace_flags.sampled for link in links):
                chosen = ALWAYS_ON
            elif kind is SpanKind.CLIENT and not _has_parent(parent_context):
                chosen = ALWAYS_OFF
            return chosen.should_sample(
                parent_context, trace_id, name, kind, attributes, links, trace_state
            )

        def get_description(self) -> str:
            return "BySource"

    def _has_parent(context: Any) -> bool:
        return get_current_span(context).get_span_context().is_valid

    return BySource()
