"""The metrics of all processes, each declared once."""

from collections.abc import Mapping
from functools import partial

from prometheus_client import REGISTRY, Counter, Gauge, Histogram
from prometheus_client.exposition import choose_encoder

SECONDS = (
    0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10,
)  # fmt: skip
"""Bounds of what takes milliseconds when all is well, and seconds when it is not."""

_store_gauge = partial(Gauge, labelnames=["store"])

_projection_gauge = partial(Gauge, labelnames=["projection"])

REQUESTS = Histogram(
    "http_request_duration_seconds", "Time from a request's headers to its answer, by route",
    ["method", "route", "status"], buckets=SECONDS,
)  # fmt: skip

APPENDED = Counter("eventstore_events_appended", "Events appended", ["event_type"])

APPENDS = Histogram(
    "eventstore_append_duration_seconds", "Time of an append, successful or not",
    ["aggregate_type"], buckets=SECONDS,
)  # fmt: skip

FOLDED = Histogram(
    "eventstore_folded_events", "Events folded to decide a command",
    ["aggregate_type"], buckets=(1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000),
)  # fmt: skip

SNAPSHOT_READS = Counter(
    "eventstore_snapshot_reads",
    "Snapshots looked for: used, none, or ignored as damaged, unreadable, other_code, other_event",
    ["aggregate_type", "outcome"],
)

SNAPSHOT_WRITES = Counter(
    "eventstore_snapshot_writes",
    "Snapshots to be written: written, failed, or dropped since too many waited",
    ["aggregate_type", "outcome"],
)

CONFLICTS = Counter(
    "eventstore_conflicts", "Appends refused because the stream had changed", ["aggregate_type"]
)

CONFLICTS_LOST = Counter(
    "eventstore_conflicts_lost", "Commands refused after all retries", ["aggregate_type"]
)

HEAD = _store_gauge("eventstore_head_position", "Position of the last event")

SETTLED = _store_gauge(
    "eventstore_settled_position", "Position up to which nothing can still appear"
)

UNSETTLED = _store_gauge(
    "eventstore_unsettled_seconds", "How long a writer holds the settled position back"
)

OVERDUE = Gauge(
    "eventstore_deadlines_overdue_seconds",
    "Time since the oldest deadline passed that no process has taken; 0: none is due",
    ["aggregate_type"],
)

PUBLISHED = Counter("relay_events_confirmed", "Events confirmed by the broker", ["store"])

RETURNED = Counter("relay_events_returned", "Events that the broker could not route", ["store"])

CHECKPOINT = _store_gauge("relay_checkpoint_position", "Position up to which all is confirmed")

RELAY_LAG = _store_gauge(
    "relay_lag_events", "Settled position minus checkpoint; unused numbers count"
)

RELAY_LAG_SECONDS = _store_gauge(
    "relay_lag_seconds", "Age of the oldest event not confirmed; 0: there is none"
)

RELAY_HALTED = _store_gauge(
    "relay_halted",
    "1: nothing is published, since the log lacks the checkpoint's event; 0: it goes on",
)

RELAY_ACTIVE = _store_gauge("relay_active", "1: it holds the lock and relays; 0: it stands by")

IN_FLIGHT = _store_gauge("relay_in_flight_events", "Events published and not confirmed yet")

WINDOW = _store_gauge("relay_window_events", "Maximum number of unconfirmed events")

CONFIRM_SECONDS = Histogram(
    "relay_confirm_duration_seconds",
    "Time from publishing a page to its last confirm",
    ["store"],
    buckets=SECONDS,
)

APPLIED = Counter("projection_events_applied", "Events folded into documents", ["projection"])

BATCHES = Histogram(
    "projection_batch_events", "Deliveries that were applied at once", ["projection"],
    buckets=(1, 2, 5, 10, 20, 50, 100, 200, 500),
)  # fmt: skip

BATCH_SECONDS = Histogram(
    "projection_batch_duration_seconds", "Time of an attempt to apply and acknowledge a batch",
    ["projection"], buckets=SECONDS,
)  # fmt: skip

READABLE = Histogram(
    "projection_append_to_readable_seconds",
    "Time from an event's append to the write of its document; two clocks, never below zero",
    ["projection"], buckets=(*SECONDS, 30, 60, 300, 1800),
)  # fmt: skip

DUPLICATES = Counter("projection_events_duplicate", "Deliveries seen before", ["projection"])

CAUGHT_UP = Counter(
    "projection_events_caught_up",
    "Events read from the feed because the broker had not delivered them",
    ["projection"],
)

DEAD_LETTERS = Counter(
    "projection_dead_letters", "Messages moved to the dead letters", ["projection"]
)

REACTIONS = Counter(
    "reactor_commands",
    "Commands of reactors: done, delayed (a server is unavailable, or a conflict) or failed, which"
    " parks the stream",
    ["projection", "outcome"],
)

DEADLINES = Counter(
    "deadlines", "Deadlines that have passed: fired, or failed and due again", ["type", "outcome"]
)

STEPS = Counter(
    "saga_steps",
    "Steps of sagas: requested, done, refused, compensation_requested, compensated, or late (a"
    " deadline passed)",
    ["aggregate_type", "step", "outcome"],
)

ENDED = Counter(
    "saga_ended", "Sagas that ended: done, refused, cancelled or failed",
    ["aggregate_type", "outcome"],
)  # fmt: skip

STUCK = Gauge(
    "saga_stuck",
    "Sagas whose compensation no attempt has had an answer to; 10,000 are counted at most",
    ["aggregate_type"],
)

PARKED = _projection_gauge("projection_parked_streams", "Parked streams")

POSITION = _projection_gauge(
    "projection_checkpoint_position", "Position up to which all is applied or parked"
)

GENERATION = _projection_gauge("projection_generation", "Number of the generation that serves")

CONSUMERS_BEHIND = _projection_gauge(
    "projection_event_types_behind",
    "Event types that the service appends in a version that the running projector does not know",
)

HALTED = _projection_gauge(
    "projection_halted", "1: nothing is applied, since the log lacks folded events; 0: it goes on"
)

VERIFIED = _projection_gauge(
    "projection_verified_timestamp_seconds", "When it was last compared with the log"
)

WRONG = _projection_gauge(
    "projection_verified_wrong_streams", "Streams that the last comparison found wrong"
)

LAG = _projection_gauge(
    "projection_lag_events",
    "Positions from the oldest event neither applied nor parked to the settled position; unused"
    " numbers count",
)

LAG_SECONDS = _projection_gauge(
    "projection_lag_seconds", "Age of the oldest event neither applied nor parked; 0: there is none"
)

STALENESS = _projection_gauge(
    "projection_staleness_seconds",
    "Time since the last point at which all earlier events were applied or parked; normally a few"
    " sweep intervals",
)

UP = Gauge("dependency_up", "1: its last use succeeded; 0: it failed", ["server"])

POOL_USED = Gauge("pool_connections_in_use", "Connections in use", ["server"])

POOL_MAX = Gauge("pool_connections_max", "Connections that the pool may have", ["server"])

BACKGROUND_ERRORS = Counter(
    "background_errors", "Unexpected errors of background threads, which went on", ["thread"]
)

LIMITED = Counter(
    "rate_limit_requests", "Requests that were counted against a rate limit", ["limit", "outcome"]
)

LIMITS_ALONE = Gauge(
    "rate_limit_alone",
    "1: each replica counts its share in memory, since the store of the limits is away; 0: shared",
)

BUILD = Gauge(
    "eventcore_build_info",
    "1 for each process",
    ["service", "process", "version", "revision"],
)


_STEPS = {
    "STEP_REQUESTED": "requested",
    "STEP_DONE": "done",
    "STEP_REFUSED": "refused",
    "COMPENSATION_REQUESTED": "compensation_requested",
    "STEP_COMPENSATED": "compensated",
    "DEADLINE_PASSED": "late",
}
"""The outcome of a step by the event of a saga; see `eventcore.model.saga`."""


def count_appended(aggregate_type: str, event_type: str, data: Mapping[str, object]) -> None:
    """Counts an event; the step or the end that it tells, if it is a saga's."""
    APPENDED.labels(event_type).inc()
    if event_type in _STEPS and "step" in data:
        STEPS.labels(aggregate_type, data["step"], _STEPS[event_type]).inc()
    elif event_type == "SAGA_ENDED" and "outcome" in data:
        ENDED.labels(aggregate_type, data["outcome"]).inc()


def render_metrics(accepted: str) -> tuple[bytes, str]:
    """Renders all metrics of this process; the second item is their content type.

    `accepted` is the Accept header of the request. Exemplars are in OpenMetrics only.
    """
    render, kind = choose_encoder(accepted)
    return render(REGISTRY), kind
