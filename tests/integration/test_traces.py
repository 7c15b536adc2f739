"""Traces of the running system: one POST, one trace, from the gateway to the document."""

import json
import os
import secrets
import signal
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import pytest

from local.servers import RabbitMQ
from local.shop import Shop
from tests.integration.conftest import AnotherShop
from tests.integration.prometheus import prometheus
from tests.otlp import Receiver, Span, receiver, silent, unreachable

Traced = Callable[..., AbstractContextManager[Shop]]

PATIENCE = 40.0

pytestmark = pytest.mark.timeout(400)  # all processes are restarted, some of them often
USER = {"name": "Ada", "email": "ada@example.com"}


@pytest.fixture
def collector() -> Iterator[Receiver]:
    with receiver() as running:
        yield running


@pytest.fixture
def traced(another_shop: AnotherShop) -> Traced:
    """The shop, on the same stores, with tracing on."""

    def run(endpoint: str, **settings: str) -> AbstractContextManager[Shop]:
        return another_shop(OTEL_EXPORTER_OTLP_ENDPOINT=endpoint, **settings)

    return run


def post(
    shop: Shop, path: str, body: object, traceparent: str = "", at: str = "gateway"
) -> dict[str, str]:
    headers = {"Content-Type": "application/json"}
    if traceparent:
        headers["traceparent"] = traceparent
    url = shop.url(at) + path
    request = urllib.request.Request(url, json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=10) as answer:
        found: dict[str, str] = json.load(answer)
    return found


def new_context(sampled: bool = True) -> str:
    """The header of a caller's trace."""
    return f"00-{secrets.token_hex(16)}-{secrets.token_hex(8)}-{'01' if sampled else '00'}"


def trace_of(collector: Receiver, header: str) -> str:
    """The trace of the gateway's span that links to this context, or nothing."""
    caller = tuple(header.split("-")[1:3])
    found = (s.trace for s in list(collector.spans) if caller in s.links and s.kind == "server")
    return next(found, "")


def await_spans(
    collector: Receiver, wanted: Callable[[list[Span]], object], header: str
) -> list[Span]:
    """The spans of a caller's request, once what is wanted is among them."""
    deadline = time.monotonic() + PATIENCE
    while not wanted(spans := collector.of(trace_of(collector, header))):
        assert time.monotonic() < deadline, sorted(
            (s.service, s.name, s.id, s.parent) for s in spans
        )
        time.sleep(0.05)
    return spans


def one(spans: list[Span], service: str, name: str) -> Span:
    [found] = [s for s in spans if s.service == service and s.name.startswith(name)]
    return found


def has(service: str, name: str) -> Callable[[list[Span]], bool]:
    return lambda spans: any(s.service == service and s.name.startswith(name) for s in spans)


def both(*wanted: Callable[[list[Span]], object]) -> Callable[[list[Span]], bool]:
    return lambda spans: all(each(spans) for each in wanted)


DELIVERED = both(
    has("user-project-users", "process"),
    has("order-project-known-users", "process"),
    has("gateway", "POST /users"),
    has("user-service", "POST /users"),
    has("user-relay", "publish"),
)
WRITTEN = both(DELIVERED, has("user-project-users", "user_read_model.insert"))
"""An event that is applied alone; the write of several is in the trace of the first."""


POSTED = {"http.request.method": "POST", "http.response.status_code": 202}
ROUTED = {
    "messaging.system": "rabbitmq",
    "messaging.rabbitmq.destination.routing_key": "user.created",
}


def has_attributes(span: Span, wanted: Mapping[str, object]) -> None:
    found = {name: span.attributes.get(name) for name in wanted}
    assert found == dict(wanted), (span.service, span.name, span.attributes)


def check_tree(spans: list[Span], caller: str) -> None:
    """From the gateway through service, append, relay and projector to the document; linked to
    the caller.
    """
    names = {span.id: span for span in spans}
    gateway = one(spans, "gateway", "POST /users")
    assert (gateway.parent, gateway.kind) == ("", "server")
    assert gateway.links == (tuple(caller.split("-")[1:3]),)
    service = one(spans, "user-service", "POST /users")
    assert service.kind == "server"
    for served in (gateway, service):
        has_attributes(served, POSTED | {"http.route": "/users", "url.path": "/users"})
        assert served.attributes["url.scheme"] == "http"
    forward = names[service.parent]
    assert (forward.service, forward.kind, forward.parent) == ("gateway", "client", gateway.id)
    has_attributes(forward, POSTED)
    assert str(forward.attributes["url.full"]).endswith("/users")
    [append] = [s for s in spans if "append_events" in str(s.attributes.get("db.query.text"))]
    assert (append.service, append.kind, append.parent) == ("user-service", "client", service.id)
    has_attributes(append, {"db.system.name": "postgresql", "db.namespace": "user_event_db"})
    publish = one(spans, "user-relay", "publish events")
    assert (publish.parent, publish.kind) == (service.id, "producer")
    has_attributes(
        publish,
        ROUTED
        | {
            "messaging.destination.name": "events",
            "messaging.operation.type": "send",
            "messaging.operation.name": "publish",
        },
    )
    process = one(spans, "user-project-users", "process user_projection_queue")
    assert (process.parent, process.kind) == (publish.id, "consumer")
    has_attributes(
        process,
        ROUTED
        | {
            "messaging.destination.name": "user_projection_queue",
            "messaging.operation.type": "process",
            "messaging.operation.name": "process",
        },
    )
    assert process.attributes["messaging.message.id"] == publish.attributes["messaging.message.id"]
    write = one(spans, "user-project-users", "user_read_model.insert")
    assert write.parent == process.id
    has_attributes(
        write,
        {
            "db.system.name": "mongodb",
            "db.namespace": "user_read_model",
            "db.operation.name": "insert",
        },
    )
    collection, _, generation = str(write.attributes["db.collection.name"]).partition(".")
    assert (collection, generation.isdigit() or not generation) == ("users", True)
    known = one(spans, "order-project-known-users", "process order_service_user_sync")
    assert known.parent == publish.id
    text = repr([span.attributes for span in spans])
    assert USER["email"] not in text
    assert not any(span.failed for span in spans)


def test_one_post_is_one_trace_from_the_gateway_to_the_document(
    traced: Traced, collector: Receiver
) -> None:
    # no sweep here: it would bring what the stopped relay does not
    with traced(collector.endpoint, SWEEP_INTERVAL="60") as shop:
        header = new_context()
        post(shop, "/users", USER, header)
        check_tree(await_spans(collector, WRITTEN, header), header)

        header = new_context(sampled=False)  # decides nothing here
        shop.stop("user-relay")
        post(shop, "/users", USER, header)
        shop.start("user-relay")  # the context was kept with the event
        spans = await_spans(collector, WRITTEN, header)
        check_tree(spans, header)
        roots = [s for s in collector.spans if not s.parent and s.kind == "client"]
        assert roots == []  # no poll of a server is a trace

        answered = [line for line in created(shop, 2) if line["trace_id"] == spans[0].trace]
        assert answered
        assert answered[-1]["span_id"] == one(spans, "user-service", "POST /users").id


def created(shop: Shop, users: int) -> list[dict[str, Any]]:
    """The lines of so many users' requests; a line is written a moment after the answer."""
    deadline = time.monotonic() + PATIENCE
    while True:
        lines = [json.loads(line) for line in shop.log("user-service").splitlines()]
        found = [line for line in lines if line.get("route") == "/users"]
        if len(found) >= users:
            return found
        assert time.monotonic() < deadline, f"{len(found)} lines of {users}"
        time.sleep(0.05)


def test_a_request_is_traced_by_ratio_whole_or_not_at_all(
    traced: Traced, collector: Receiver
) -> None:
    with traced(collector.endpoint, OTEL_TRACES_SAMPLER_ARG="0.5") as shop:
        headers = [new_context() for _ in range(40)]
        for header in headers:
            post(shop, "/users", USER, header)
        logged = [line["trace_id"] for line in created(shop, 40)]
        assert len(logged) == len(set(logged)) == 40  # each has an id in the log
        kept = [header for header in headers if trace_of(collector, header)]
        for header in kept:
            spans = await_spans(collector, DELIVERED, header)
            assert one(spans, "gateway", "POST /users").parent == ""

        def traces() -> set[str]:
            return {trace_of(collector, header) for header in headers} - {""}

        deadline = time.monotonic() + PATIENCE
        while {span.trace for span in list(collector.spans)} != traces():
            assert time.monotonic() < deadline, "a trace without the gateway's span"
            time.sleep(0.05)
        assert 5 <= len(traces()) <= 35
        assert traces() <= set(logged)


def test_a_callers_trace_context_counts_inside_and_not_at_the_gateway(
    traced: Traced, collector: Receiver
) -> None:
    with traced(collector.endpoint, OTEL_TRACES_SAMPLER_ARG="0") as shop:
        outside, inside = new_context(), new_context()
        post(shop, "/users", USER, outside)
        post(shop, "/users", USER, inside, at="user-service")
        deadline = time.monotonic() + PATIENCE
        while not has("user-project-users", "process")(collector.of(inside.split("-")[1])):
            assert time.monotonic() < deadline, collector.spans
            time.sleep(0.05)
        assert {span.trace for span in collector.spans} == {inside.split("-")[1]}


def is_batch(span: Span) -> bool:
    return (span.service, span.name) == ("user-project-users", "apply batch")


def test_a_batch_of_several_events_links_to_every_events_span(
    traced: Traced, collector: Receiver
) -> None:
    with traced(collector.endpoint) as shop:
        shop.stop("user-projector")
        callers = [new_context() for _ in range(20)]  # RabbitMQ may hand them over in several parts
        for header in callers:
            post(shop, "/users", USER, header)
        for header in callers:
            await_spans(collector, has("user-relay", "publish"), header)
        shop.start("user-projector")
        processed = []
        for header in callers:
            spans = await_spans(collector, has("user-project-users", "process"), header)
            processed.append(one(spans, "user-project-users", "process"))
        batches = [s for s in list(collector.spans) if is_batch(s)]  # sent before these
        assert batches, "each event was applied alone"
        for batch in batches:
            together = {(s.trace, s.id): s for s in processed if (s.trace, s.id) in batch.links}
            assert set(batch.links) == set(together)
            assert len(together) > 1
            [parent] = [span for span in together.values() if span.id == batch.parent]
            others = [span for span in together.values() if span is not parent]
            assert all((batch.trace, batch.id) in span.links for span in others)
            writes = [s for s in collector.of(batch.trace) if s.parent == batch.id]
            assert any("insert" in span.name for span in writes)
        in_a_batch = {link for batch in batches for link in batch.links}
        alone = [span for span in processed if (span.trace, span.id) not in in_a_batch]
        assert all(not span.links for span in alone)


def test_a_worker_that_takes_the_place_of_a_killed_one_exports(
    traced: Traced, collector: Receiver
) -> None:
    with traced(collector.endpoint) as shop:
        master = shop.pid("user-service")
        children = Path(f"/proc/{master}/task/{master}/children")
        os.kill(victim := int(children.read_text()), signal.SIGKILL)
        deadline = time.monotonic() + PATIENCE
        while not (new := children.read_text().split()) or int(new[0]) == victim:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        shop.await_ready("user-service")
        header = new_context()
        post(shop, "/users", USER, header)
        spans = await_spans(collector, WRITTEN, header)
        check_tree(spans, header)
        assert one(spans, "user-service", "POST /users").process == int(new[0])


LITTLE_ROOM = {"OTEL_BSP_MAX_QUEUE_SIZE": "64"}


@pytest.mark.parametrize(
    "nobody", [lambda: nullcontext("http://127.0.0.1:9"), silent, unreachable],
    ids=["refuses", "never answers", "is out of reach"],
)  # fmt: skip
def test_a_collector_that_is_not_there_holds_up_nothing(
    traced: Traced, nobody: Callable[[], AbstractContextManager[str]]
) -> None:
    with nobody() as endpoint, traced(endpoint, **LITTLE_ROOM) as shop:
        slowest = 0.0
        for _ in range(100):  # more than there is room for
            began = time.monotonic()
            post(shop, "/users", USER)
            slowest = max(slowest, time.monotonic() - began)
        assert slowest < 3
        user_id = post(shop, "/users", USER)["userId"]
        await_readable(shop, user_id)
        began = time.monotonic()
        shop.stop()
        assert time.monotonic() - began < 15
        for name in shop.names:
            lines = shop.log(name).splitlines()
            told = [each for each in lines if '"level":"error"' in each and "parked" not in each]
            assert len(told) <= 2, told  # not a line for each try


def await_readable(shop: Shop, user_id: str) -> None:
    """Return when the projector has said that it has the user."""
    deadline = time.monotonic() + PATIENCE
    while user_id not in shop.log("user-projector"):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_prometheus_leads_from_a_time_to_the_trace_of_a_request(
    traced: Traced, collector: Receiver, rabbitmq: RabbitMQ, tmp_path: Path
) -> None:
    header = new_context()
    with traced(collector.endpoint) as shop, prometheus(shop, rabbitmq, tmp_path) as server:
        began = time.time()
        post(shop, "/users", USER, header)
        await_spans(collector, DELIVERED, header)
        trace = trace_of(collector, header)
        deadline = time.monotonic() + PATIENCE
        for histogram in ("http_request_duration_seconds", "projection_append_to_readable_seconds"):
            told: set[str] = set()
            while trace not in told:
                assert time.monotonic() < deadline, f"{histogram} leads to {told}"
                time.sleep(0.1)
                found = server.exemplars(f"{histogram}_bucket", began - 60, time.time() + 60)
                told = {each["labels"]["trace_id"] for one in found for each in one["exemplars"]}
