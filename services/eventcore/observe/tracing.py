"""Traces: one from the gateway to the read model, though half of it happens later.

The context travels in an HTTP header, with the event in the store, and in the message's headers.
OpenTelemetry's API does nothing until there is an endpoint; then `tracing_sdk` sets its SDK up.

    gateway → service → INSERT          publish (relay) → process (projector) → MongoDB
    └── child spans, as HTTP goes ──┘   └── children of the span that appended the event ──┘

A relay and a projector work on many events at once. Each event has a span of its own there, in
its own trace; the span of the work on several of them links to every one.

A trace begins at the gateway, by ratio. A caller's context is linked to it and decides nothing;
between the processes of the shop a context is trusted.
"""

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from threading import Thread
from typing import TYPE_CHECKING, Any

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Link, Span, SpanKind, TraceFlags
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from eventcore.settings import Settings

if TYPE_CHECKING:
    from eventcore.model.event import Event
    from eventcore.model.message import Message


log = logging.getLogger(__name__)

STOP_TIME = 2.0
"""Seconds that the export of the last spans may take when a process ends."""

TRACEPARENT = re.compile("00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")
"""A context in the form of W3C Trace Context."""

POLLED_ROUTES = (
    "/healthz", "/livez", "/readyz", "/metrics", "/internal/heads", "/internal/status",
    "/page/live/",
)  # fmt: skip
"""Beginnings of routes that are polled every few seconds: neither traced nor logged."""

_CALLER = "shop.caller"
"""Key of the WSGI environment: the headers of the caller's trace context."""

_tracer = trace.get_tracer("eventcore")

_propagator = TraceContextTextMapPropagator()

_provider: Any = None

_is_edge = False


@dataclass
class Published:
    """Messages to publish, and the spans that end when they are confirmed."""

    messages: "Sequence[Message]"
    _spans: Sequence[Span] = ()

    def end(self) -> None:
        """Ends the spans: all messages are confirmed."""
        for span in self._spans:
            span.end()


def start_tracing(settings: Settings) -> None:
    """Traces from now on, if there is an endpoint. Call it in each process, after any fork."""
    global _provider, _is_edge
    if not settings.trace_endpoint:
        return
    from eventcore.observe import tracing_sdk

    _is_edge = settings.service == "gateway"
    _provider = tracing_sdk.to_provider(settings)
    trace.set_tracer_provider(_provider)
    tracing_sdk.instrument_clients()
    log.info("Tracing", extra={"endpoint": settings.trace_endpoint})


def stop_tracing() -> None:
    """Exports the last spans, for STOP_TIME seconds at most."""
    if _provider:
        last = Thread(target=_provider.shutdown, name="last spans", daemon=True)
        last.start()
        last.join(STOP_TIME)


def trace_wsgi(application: Any) -> Any:
    """The same WSGI application, with a span for each request, except on POLLED_ROUTES."""
    if _provider is None:
        return application
    from opentelemetry.instrumentation.wsgi import OpenTelemetryMiddleware

    traced = OpenTelemetryMiddleware(application, request_hook=_link_caller)

    def serve(environ: dict[str, Any], start_response: Any) -> Any:
        if environ["PATH_INFO"].startswith(POLLED_ROUTES):
            return application(environ, start_response)
        if _is_edge:
            environ[_CALLER] = {
                "traceparent": environ.pop("HTTP_TRACEPARENT", ""),
                "tracestate": environ.pop("HTTP_TRACESTATE", ""),
            }
        return traced(environ, start_response)

    return serve


def _link_caller(span: Span, environ: dict[str, Any]) -> None:
    caller = _propagator.extract(environ.get(_CALLER, {}), Context())
    context = trace.get_current_span(caller).get_span_context()
    if context.is_valid:
        span.add_link(context)


def name_request(method: str, route: str) -> None:
    """Names the request's span after its route, as metrics do, once it is known."""
    span = trace.get_current_span()
    span.update_name(f"{method} {route}")
    span.set_attribute("http.route", route)


def current_exemplar() -> dict[str, str] | None:
    """The current trace as the exemplar of a histogram; None if the trace is not kept."""
    return exemplar_of(current_traceparent())


def exemplar_of(traceparent: object) -> dict[str, str] | None:
    """The trace of a context as the exemplar of a histogram; None if the trace is not kept."""
    if isinstance(traceparent, str) and TRACEPARENT.fullmatch(traceparent):
        _, trace_id, _, flags = traceparent.split("-")
        if int(flags, 16) & TraceFlags.SAMPLED:
            return {"trace_id": trace_id}
    return None


def current_traceparent() -> str | None:
    """The current context in the form of W3C Trace Context; None without tracing."""
    return _headers().get("traceparent")


def _headers(context: Context | None = None) -> dict[str, str]:
    headers: dict[str, str] = {}
    _propagator.inject(headers, context)
    return headers


@contextmanager
def calling(method: str, url: str) -> Iterator[dict[str, str]]:
    """A span for a request to another service, made within; yields the headers to send with it."""
    attributes = {"http.request.method": method, "url.full": url}
    with _tracer.start_as_current_span(method, kind=SpanKind.CLIENT, attributes=attributes):
        yield _headers()


def note_status(status: int) -> None:
    """Adds the status of the answer to the span of `calling`."""
    trace.get_current_span().set_attribute("http.response.status_code", status)


def publishing(
    exchange: str, events: "Sequence[Event]", messages: "Sequence[Message]"
) -> Published:
    """The messages of a page, with the context that each is to carry; `end` when confirmed."""
    told, spans = [], []
    for event, message in zip(events, messages, strict=True):
        if context := _sampled(message):
            span = _span("publish", SpanKind.PRODUCER, exchange, "send", message, context)
            span.set_attribute("eventstore.aggregate_id", str(event.aggregate_id))
            span.set_attribute("eventstore.position", event.position)
            headers = {**message.headers, **_headers(trace.set_span_in_context(span))}
            message = replace(message, headers=headers)
            spans.append(span)
        told.append(message)
    return Published(told, spans)


@contextmanager
def processing(queue: str, messages: "Sequence[Message]") -> Iterator[None]:
    """A span for each message of a batch, in the trace that it carries, and one for the work.

    The work on several is a child of the first's span, linked with all, both ways.
    """
    spans = [
        _span("process", SpanKind.CONSUMER, queue, "process", message, context)
        for message in messages
        if (context := _sampled(message))
    ]
    with ExitStack() as stack:
        for span in spans:
            stack.callback(span.end)
        if spans:
            stack.enter_context(trace.use_span(spans[0]))
        if len(spans) > 1:
            links = [Link(span.get_span_context()) for span in spans]
            batch = _tracer.start_as_current_span("apply batch", links=links)
            link = stack.enter_context(batch).get_span_context()
            for span in spans[1:]:
                span.add_link(link)
        yield


def _sampled(message: "Message") -> Context | None:
    """The context that a message carries, if its trace is kept."""
    if "traceparent" not in message.headers:
        return None
    context = _propagator.extract(message.headers, Context())
    sampled = trace.get_current_span(context).get_span_context().trace_flags.sampled
    return context if sampled else None


def _span(
    name: str, kind: SpanKind, destination: str, operation: str, message: "Message", parent: Context
) -> Span:
    """A span for one message, in the trace that it carries."""
    attributes: Mapping[str, str | int] = {
        "messaging.system": "rabbitmq",
        "messaging.operation.name": name,
        "messaging.operation.type": operation,
        "messaging.destination.name": destination,
        "messaging.message.id": message.id,
        "messaging.message.body.size": len(message.body),
        "messaging.rabbitmq.destination.routing_key": message.routing_key,
    }
    return _tracer.start_span(f"{name} {destination}", parent, kind, attributes)
