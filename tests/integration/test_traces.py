"""Traces of the running system: one POST, one trace, from the caller to the document."""

import json
import os
import secrets
import signal
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from local.processes import Servers, processes
from local.servers import MongoDB, PostgreSQL, RabbitMQ, free_port
from local.shop import Shop
from tests.otlp import Receiver, Span, receiver

PATIENCE = 20.0
USER = {"name": "Ada", "email": "ada@example.com"}


@pytest.fixture
def collector() -> Iterator[Receiver]:
    with receiver() as running:
        yield running


@pytest.fixture
def traced(
    shop: Shop,
    postgres: PostgreSQL,
    rabbitmq: RabbitMQ,
    mongodb: MongoDB,
    data_folder: Path,
    tmp_path: Path,
) -> Callable[..., Iterator[Shop]]:
    """The shop, on the same stores, with tracing on; the other one waits meanwhile."""

    def run(endpoint: str, **settings: str) -> Iterator[Shop]:
        readmodels = {name: mongodb.login(f"{name}_read_model") for name in ("user", "order")}
        running = Shop(
            processes(
                Servers(postgres.address, rabbitmq.address, readmodels),
                data_folder / "secrets",
                ports={name: free_port() for name in ("gateway", "user-service", "order-service")},
                free_port=free_port,
                settings={
                    "SWEEP_INTERVAL": "0.5",
                    "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint,
                    "OTEL_BSP_SCHEDULE_DELAY": "200",
                    **settings,
                },
            ),
            tmp_path / "logs",
        )
        shop.stop()
        try:
            running.start()
            yield running
        finally:
            running.stop()

    return run


def post(shop: Shop, path: str, body: object, traceparent: str = "") -> dict[str, str]:
    headers = {"Content-Type": "application/json"}
    if traceparent:
        headers["traceparent"] = traceparent
    url = shop.url("gateway") + path
    request = urllib.request.Request(url, json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=10) as answer:
        found: dict[str, str] = json.load(answer)
    return found


def new_trace(sampled: bool = True) -> tuple[str, str]:
    """A caller's trace: its id, and the header."""
    trace = secrets.token_hex(16)
    return trace, f"00-{trace}-{secrets.token_hex(8)}-{'01' if sampled else '00'}"


def await_spans(
    collector: Receiver, wanted: Callable[[list[Span]], object], trace: str
) -> list[Span]:
    """The spans of a trace, once what is wanted is among them."""
    deadline = time.monotonic() + PATIENCE
    while not wanted(collector.of(trace)):
        assert time.monotonic() < deadline, sorted(
            (s.service, s.name, s.id, s.parent) for s in collector.of(trace)
        )
        time.sleep(0.05)
    return collector.of(trace)


def one(spans: list[Span], service: str, name: str) -> Span:
    [found] = [s for s in spans if s.service == service and s.name.startswith(name)]
    return found


def has(service: str, name: str) -> Callable[[list[Span]], bool]:
    return lambda spans: any(s.service == service and s.name.startswith(name) for s in spans)


def both(*wanted: Callable[[list[Span]], object]) -> Callable[[list[Span]], bool]:
    return lambda spans: all(each(spans) for each in wanted)


WRITTEN = both(
    has("user-project-users", "user_read_model.insert"),
    has("user-project-users", "process"),
    has("order-project-known-users", "process"),
    has("gateway", "POST /users"),
    has("user-service", "POST /users"),
    has("user-relay", "publish"),
)


def check_tree(spans: list[Span], caller: str) -> None:
    """From the caller through gateway, service, append, relay and projector to the document."""
    names = {span.id: span for span in spans}
    gateway = one(spans, "gateway", "POST /users")
    assert (gateway.parent, gateway.kind) == (caller.split("-")[2], "server")
    assert gateway.attributes["http.route"] == "/users"
    assert gateway.attributes["http.response.status_code"] == 202
    service = one(spans, "user-service", "POST /users")
    forward = names[service.parent]
    assert (forward.service, forward.kind, forward.parent) == ("gateway", "client", gateway.id)
    [append] = [s for s in spans if "append_events" in str(s.attributes.get("db.query.text"))]
    assert (append.service, append.kind, append.parent) == ("user-service", "client", service.id)
    publish = one(spans, "user-relay", "publish events")
    assert (publish.parent, publish.kind) == (service.id, "producer")
    assert publish.attributes["messaging.system"] == "rabbitmq"
    assert publish.attributes["messaging.destination.name"] == "events"
    assert publish.attributes["messaging.operation.type"] == "send"
    assert publish.attributes["messaging.operation.name"] == "publish"
    process = one(spans, "user-project-users", "process user_projection_queue")
    assert (process.parent, process.kind) == (publish.id, "consumer")
    assert process.attributes["messaging.operation.type"] == "process"
    assert process.attributes["messaging.message.id"] == publish.attributes["messaging.message.id"]
    write = one(spans, "user-project-users", "user_read_model.insert")
    assert write.parent == process.id
    assert write.attributes["db.collection.name"] == "users"
    known = one(spans, "order-project-known-users", "process order_service_user_sync")
    assert known.parent == publish.id
    text = repr([span.attributes for span in spans])
    assert USER["email"] not in text
    assert not any(span.failed for span in spans)


def test_one_post_is_one_trace_from_the_caller_to_the_document(
    traced: Callable[..., Iterator[Shop]], collector: Receiver
) -> None:
    # no sweep here: it would bring what the stopped relay does not
    with contextmanager(traced)(collector.endpoint, SWEEP_INTERVAL="60") as shop:
        trace, header = new_trace()
        post(shop, "/users", USER, header)
        check_tree(await_spans(collector, WRITTEN, trace), header)

        trace, header = new_trace()
        shop.stop("user-relay")
        post(shop, "/users", USER, header)
        shop.start("user-relay")  # the context was kept with the event
        check_tree(await_spans(collector, WRITTEN, trace), header)

        _, header = new_trace(sampled=False)
        post(shop, "/users", USER, header)
        trace, header = new_trace()
        post(shop, "/users", USER, header)
        await_spans(collector, WRITTEN, trace)
        assert not collector.of(new_trace()[0])
        roots = [s for s in collector.spans if not s.parent and s.kind == "client"]
        assert roots == []  # no poll of a server is a trace

        lines = [json.loads(line) for line in shop.log("user-service").splitlines()]
        answered = [line for line in lines if line.get("trace_id") == trace]
        assert answered
        assert answered[-1]["span_id"] == one(collector.of(trace), "user-service", "POST /users").id


def test_in_link_mode_relay_and_projector_have_traces_of_their_own_that_link_to_each_event(
    traced: Callable[..., Iterator[Shop]], collector: Receiver
) -> None:
    with contextmanager(traced)(collector.endpoint, TRACE_MODE="link") as shop:
        shop.stop("user-relay", "user-projector")
        callers = [new_trace() for _ in range(3)]
        for _, header in callers:
            post(shop, "/users", USER, header)
        shop.start("user-relay")
        shop.start("user-projector")
        appended = set()
        for trace, _ in callers:
            spans = await_spans(collector, has("user-service", "POST"), trace)
            appended.add((trace, one(spans, "user-service", "POST").id))

        def linked(name: str) -> set[tuple[str, str]]:
            return {link for s in list(collector.spans) if s.name == name for link in s.links}

        deadline = time.monotonic() + PATIENCE
        while not (
            appended <= linked("publish events")
            and appended <= linked("process user_projection_queue")
        ):
            assert time.monotonic() < deadline, collector.spans
            time.sleep(0.05)
        for trace, _ in callers:
            services = {span.service for span in collector.of(trace)}
            assert services == {"gateway", "user-service"}
        [publish] = [s for s in collector.spans if s.name == "publish events" and len(s.links) == 3]
        assert (publish.parent, publish.kind) == ("", "producer")
        assert publish.attributes["messaging.batch.message_count"] == 3


def test_a_batch_of_several_events_links_to_every_events_span(
    traced: Callable[..., Iterator[Shop]], collector: Receiver
) -> None:
    with contextmanager(traced)(collector.endpoint) as shop:
        shop.stop("user-projector")
        callers = [new_trace() for _ in range(4)]
        for _, header in callers:
            post(shop, "/users", USER, header)
        for trace, _ in callers:
            await_spans(collector, has("user-relay", "publish"), trace)
        shop.start("user-projector")
        processed = []
        for trace, _ in callers:
            spans = await_spans(collector, has("user-project-users", "process"), trace)
            processed.append(one(spans, "user-project-users", "process"))
        deadline = time.monotonic() + PATIENCE
        while not (found := [s for s in collector.spans if s.name == "apply batch"]):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        batch = found[0]
        assert set(batch.links) == {(span.trace, span.id) for span in processed}
        assert batch.parent in {span.id for span in processed}
        assert {
            (batch.trace, batch.id) in span.links or batch.parent == span.id for span in processed
        } == {True}
        writes = [s for s in collector.of(batch.trace) if s.parent == batch.id]
        assert any("insert" in span.name for span in writes)


def test_workers_of_one_service_export_each_for_itself_and_go_on_after_one_is_killed(
    traced: Callable[..., Iterator[Shop]], collector: Receiver
) -> None:
    with contextmanager(traced)(collector.endpoint, WORKERS="2") as shop:
        pids = Path(f"/proc/{shop.pid('user-service')}/task/{shop.pid('user-service')}/children")
        victim = int(pids.read_text().split()[0])
        for turn in range(2):
            trace, header = new_trace()
            post(shop, "/users", USER, header)
            check_tree(await_spans(collector, WRITTEN, trace), header)
            if not turn:
                os.kill(victim, signal.SIGKILL)
                shop.await_ready("user-service")


def test_a_collector_that_is_not_there_holds_up_nothing(
    traced: Callable[..., Iterator[Shop]],
) -> None:
    with contextmanager(traced)("http://127.0.0.1:9") as shop:
        for _ in range(20):
            post(shop, "/users", USER)
        began = time.monotonic()
        shop.stop()
        assert time.monotonic() - began < 15
