"""The four dashboards: how it is, how events flow, what reads them, and what all of it stands on.

With several replicas each tells the same gauge, so gauges are taken as `max by`.
"""

from collections.abc import Sequence

from local.panels.grafana import HALTED, UP_OR_DOWN, Board, Panel, Query, Row, States

OURS = "eventcore_build_info"
"""The metrics of every process."""

SERVERS = "|".join(
    (
        OURS,
        "rabbitmq_build_info",
        "rabbitmq_detailed_queue_consumers",
        "pg_up",
        "mongodb_up",
        "kubelet_volume_stats_capacity_bytes",
    )
)


def _latest(metric: str, by: str, more: str = "") -> Query:
    """A gauge that every replica tells."""
    return Query(f"max by ({by}) ({metric}{{*{more}}})", _legend(by))


def _rate(metric: str, by: str, more: str = "") -> Query:
    return Query(f"sum by ({by}) (rate({metric}{{*{more}}}[*]))", _legend(by))


def _quantiles(metric: str, by: str, *which: float, more: str = "") -> list[Query]:
    return [
        Query(
            f"histogram_quantile({each}, sum by (le, {by}) (rate({metric}_bucket{{*{more}}}[*])))",
            f"{_legend(by)} p{each * 100:g}",
        )
        for each in which
    ]


def _mean(metric: str, by: str) -> Query:
    of = [f"sum by ({by}) (rate({metric}_{part}{{*}}[*]))" for part in ("sum", "count")]
    return Query(f"{of[0]} / ({of[1]} > 0)", f"{_legend(by)} mean")


def _legend(by: str) -> str:
    return " ".join(f"{{{{{label}}}}}" for label in by.split(", "))


_CALLS = "http_request_duration_seconds_count"
_PUBLIC = ', route!~"/internal/.*"'
_SERVICE_OF = (
    " * on (namespace, job, instance) group_left (service)"
    " max by (namespace, job, instance, service) (eventcore_build_info{*})"
)


def _failed(by: str, more: str = "") -> str:
    """The share of answers that are the servers' fault; 0 where there is none."""
    failed = f'sum by ({by}) (rate({_CALLS}{{*{more}, status=~"5.."}}[*]))'
    answered = f"sum by ({by}) (rate({_CALLS}{{*{more}}}[*]))"
    return f"({failed} or 0 * {answered}) / ({answered} > 0)"


def _service_sum(expr: str, by: str = "service") -> str:
    return f"sum by ({by}) ({expr}{_SERVICE_OF})"


_ANSWERED_BY_SERVICE = _service_sum(f"rate({_CALLS}{{*}}[*])")
_FAILED_BY_SERVICE = _service_sum(f'rate({_CALLS}{{*, status=~"5.."}}[*])')

_FIRING = 'ALERTS{namespace=~"$namespace", alertname=~"Shop.*", alertstate="firing"}'

_READABLE = "projection_append_to_readable_seconds"

_GONE = (
    "count(group by (namespace, service, process) (last_over_time(eventcore_build_info{*}[1h])))"
    " - count(group by (namespace, service, process) (eventcore_build_info{*}))"
)

_NOW = Row(
    "Now",
    (
        Panel(
            "Alerts",
            "How many alerts fire. Their names are in a table of this board.",
            "none",
            [Query(f"count({_FIRING}) or vector(0)")],
            kind="stat",
            thresholds=(1,),
            width=4,
            height=3,
            spark=False,
        ),
        Panel(
            "Processes gone",
            "How many processes ran within the last hour and cannot be scraped now.",
            "none",
            [Query(_GONE)],
            kind="stat",
            thresholds=(1,),
            width=4,
            height=3,
            runbooks=("ShopServiceDown", "ShopScrapeMissing"),
            spark=False,
        ),
        Panel(
            "Servers missed",
            "Processes that cannot reach PostgreSQL, RabbitMQ, MongoDB or another service's feed.",
            "none",
            [Query("count(dependency_up{*} == 0) or vector(0)")],
            kind="stat",
            thresholds=(1,),
            width=4,
            height=3,
            runbooks=("ShopDependencyDown",),
            spark=False,
        ),
        Panel(
            "Streams parked",
            "Streams that a projection has parked, because their next event cannot be applied.",
            "none",
            [Query("sum(max by (namespace, projection) (projection_parked_streams{*}))")],
            kind="stat",
            thresholds=(1,),
            width=4,
            height=3,
            runbooks=("ShopStreamParked",),
            spark=False,
        ),
        Panel(
            "Calls failed",
            "Share of all calls that were answered with 5xx.",
            "percentunit",
            [
                Query(
                    f'(sum(rate({_CALLS}{{*{_PUBLIC}, status=~"5.."}}[*])) or vector(0))'
                    f" / (sum(rate({_CALLS}{{*{_PUBLIC}}}[*])) > 0) or vector(0)"
                )
            ],
            kind="stat",
            thresholds=(0.001, 0.01),
            width=4,
            height=3,
            runbooks=("ShopHighErrorRate",),
            spark=False,
        ),
        Panel(
            "Calls slow",
            "Share of all calls that took longer than half a second.",
            "percentunit",
            [
                Query(
                    "1 - sum(rate(http_request_duration_seconds_bucket"
                    f'{{*{_PUBLIC}, le="0.5"}}[*]))'
                    f" / (sum(rate({_CALLS}{{*{_PUBLIC}}}[*])) > 0) or vector(0)"
                )
            ],
            kind="stat",
            thresholds=(0.01, 0.05),
            width=4,
            height=3,
            runbooks=("ShopHighLatency",),
            spark=False,
        ),
    ),
)

_FLOWS: States = {0: ("flows", "green"), 1: ("waits", "orange"), 2: ("stopped", "red")}


_AT_WORK: States = {0: ("none", "red"), 1: ("one", "green"), 2: ("two", "red")}

_ALARM: States = {0: ("takes messages", "green"), 1: ("blocks publishers", "red")}


def _waits(seconds: str, by: str, stage: str, warn: int, stop: int) -> Query:
    """0 while the oldest event of a stage is young, 1 when it waits, 2 when it is an alert's."""
    oldest = f"max by ({by}) ({seconds}{{*}})"
    return Query(f"({oldest} > bool {warn}) + ({oldest} > bool {stop})", f"{stage} {_legend(by)}")


_FLOW = Row(
    "Flow: appended → confirmed → applied → readable",
    (
        Panel(
            "Appended",
            "Events a second that were written to the logs.",
            "cps",
            [Query("sum(rate(eventstore_events_appended_total{*}[*])) or vector(0)")],
            kind="stat",
            width=4,
            height=4,
        ),
        Panel(
            "Confirmed",
            "Events a second that the broker has taken from the relays.",
            "cps",
            [Query("sum(rate(relay_events_confirmed_total{*}[*])) or vector(0)")],
            kind="stat",
            width=4,
            height=4,
            runbooks=("ShopNothingRelayed",),
        ),
        Panel(
            "Applied",
            "Events a second that were folded into documents, once for each projection that reads "
            "them: more than were appended, where several do.",
            "cps",
            [Query("sum(rate(projection_events_applied_total{*}[*])) or vector(0)")],
            kind="stat",
            width=4,
            height=4,
            runbooks=("ShopProjectionStuck",),
        ),
        Panel(
            "Readable within, p95",
            "Time from an event's append to the write of its document, of 95 in 100.",
            "s",
            [
                Query(
                    f"histogram_quantile(0.95, sum by (le) (rate({_READABLE}_bucket{{*}}[*])))"
                    " >= 0 or vector(0)"
                )
            ],
            kind="stat",
            thresholds=(1, 10),
            width=4,
            height=4,
            traced=True,
        ),
        Panel(
            "Oldest not relayed",
            "Age of the oldest event that the broker has not confirmed; 0: there is none.",
            "s",
            [Query("max(relay_lag_seconds{*})")],
            kind="stat",
            thresholds=(5, 30),
            width=4,
            height=4,
            runbooks=("ShopRelayLagHigh",),
        ),
        Panel(
            "Oldest not applied",
            "Age of the oldest event that a projection has neither applied nor parked.",
            "s",
            [Query("max(projection_lag_seconds{*})")],
            kind="stat",
            thresholds=(10, 60),
            width=4,
            height=4,
            runbooks=("ShopProjectionLagHigh",),
        ),
        Panel(
            "Where events stop",
            "Each stage of each store and projection: events flow, wait, or have waited for so "
            "long that an alert fires. The uppermost red stage is the one to look at.",
            "none",
            [
                _waits("eventstore_unsettled_seconds", "store", "1 settle", 10, 60),
                _waits("relay_lag_seconds", "store", "2 relay", 5, 30),
                _waits("projection_lag_seconds", "projection", "3 apply", 10, 60),
            ],
            kind="state-timeline",
            states=_FLOWS,
            width=12,
            runbooks=("ShopFeedStalled", "ShopRelayLagHigh", "ShopProjectionLagHigh"),
        ),
        Panel(
            "Events by stage",
            "Events a second at each stage: what a store appends, its relay confirms and each of "
            "its projections applies. Curves that part show where events stop.",
            "cps",
            [
                Query(
                    _service_sum("rate(eventstore_events_appended_total{*}[*])"),
                    "1 appended {{service}}",
                ),
                Query(
                    "sum by (store) (rate(relay_events_confirmed_total{*}[*]))",
                    "2 confirmed {{store}}",
                ),
                Query(
                    "sum by (projection) (rate(projection_events_applied_total{*}[*]))",
                    "3 applied {{projection}}",
                ),
            ],
            width=12,
        ),
        Panel(
            "Positions",
            "How far each store is written, settled, confirmed and applied. Curves lie on each "
            "other when all is well; the one that stays below the others is where events wait.",
            "none",
            [
                Query("max by (store) (eventstore_head_position{*})", "1 head {{store}}"),
                Query("max by (store) (eventstore_settled_position{*})", "2 settled {{store}}"),
                Query("max by (store) (relay_checkpoint_position{*})", "3 confirmed {{store}}"),
                Query(
                    "max by (projection) (projection_checkpoint_position{*})",
                    "4 applied {{projection}}",
                ),
            ],
            width=12,
        ),
        Panel(
            "Processes and servers",
            "Whether each process can be scraped, and whether each server answers all processes "
            "that use it. A gap: nothing was scraped.",
            "none",
            [
                Query(
                    "min by (job) (up{*} and on (namespace, job, instance)"
                    " last_over_time(eventcore_build_info{*}[1h]))",
                    "{{job}}",
                ),
                Query("min by (server) (dependency_up{*})", "{{server}}"),
            ],
            kind="state-timeline",
            states=UP_OR_DOWN,
            width=12,
            runbooks=("ShopServiceDown", "ShopDependencyDown"),
        ),
    ),
)

_RED = Row(
    "Calls",
    (
        Panel(
            "Calls by route",
            "Calls a second. A call through the gateway counts there and at its service.",
            "reqps",
            [_rate(_CALLS, "route")],
        ),
        Panel(
            "Failed by route",
            "Share of calls that were answered with 5xx; errors of callers (4xx) do not count.",
            "percentunit",
            [Query(_failed("route"), "{{route}}")],
            thresholds=(0.01, 0.05),
            runbooks=("ShopHighErrorRate",),
        ),
        Panel(
            "Time by route",
            "How long calls take, the slowest hundredth and the middle one. An order may wait a "
            "second for its user.",
            "s",
            _quantiles("http_request_duration_seconds", "route", 0.99, 0.5, more=_PUBLIC),
            thresholds=(0.5,),
            traced=True,
            runbooks=("ShopHighLatency",),
        ),
        Panel(
            "Calls by service",
            "Calls a second that each service answers, projectors' calls of its feed included.",
            "reqps",
            [Query(_ANSWERED_BY_SERVICE, "{{service}}")],
        ),
        Panel(
            "Failed by service",
            "Share of each service's calls that were answered with 5xx.",
            "percentunit",
            [
                Query(
                    f"({_FAILED_BY_SERVICE} or 0 * {_ANSWERED_BY_SERVICE})"
                    f" / ({_ANSWERED_BY_SERVICE} > 0)",
                    "{{service}}",
                )
            ],
            thresholds=(0.01, 0.05),
        ),
        Panel(
            "Time by service",
            "How long calls take at each service, the slowest hundredth.",
            "s",
            [
                Query(
                    "histogram_quantile(0.99, "
                    + _service_sum(
                        f"rate(http_request_duration_seconds_bucket{{*{_PUBLIC}}}[*])",
                        "le, service",
                    )
                    + ")",
                    "{{service}} p99",
                )
            ],
            thresholds=(0.5,),
            traced=True,
        ),
        Panel(
            "Answers by status",
            "Calls a second by status: 4xx are errors of callers, 5xx of the shop.",
            "reqps",
            [_rate(_CALLS, "status")],
        ),
        Panel(
            "Refused by a rate limit",
            "Requests a second that the gateway refused with 429, by the class of the limit.",
            "reqps",
            [
                Query(
                    'sum by (limit) (rate(rate_limit_requests_total{*, outcome="refused"}[*]))'
                    ' or label_replace(0 * max(rate_limit_alone{*}), "limit", "none", "", "")',
                    "{{limit}}",
                )
            ],
            runbooks=("ShopRateLimitsAlone",),
        ),
        Panel(
            "Slow calls by route",
            "Share of calls that took longer than half a second.",
            "percentunit",
            [
                Query(
                    f"1 - sum by (route) (rate(http_request_duration_seconds_bucket"
                    f'{{*{_PUBLIC}, le="0.5"}}[*]))'
                    f" / (sum by (route) (rate({_CALLS}{{*{_PUBLIC}}}[*])) > 0)",
                    "{{route}}",
                )
            ],
            thresholds=(0.01, 0.05),
            traced=True,
        ),
        Panel(
            "Events appended",
            "Events a second, by their type.",
            "cps",
            [_rate("eventstore_events_appended_total", "event_type")],
        ),
    ),
)

_BEHIND = Row(
    "Behind",
    (
        Panel(
            "Lag of the relays",
            "Age of the oldest event that is not confirmed. It grows while a relay is stopped.",
            "s",
            [_latest("relay_lag_seconds", "store")],
            thresholds=(5, 30),
            runbooks=("ShopRelayLagHigh",),
        ),
        Panel(
            "Lag of the projections",
            "Age of the oldest event neither applied nor parked. It grows while a projector is "
            "stopped, whether or not anything arrives.",
            "s",
            [_latest("projection_lag_seconds", "projection")],
            thresholds=(10, 60),
            runbooks=("ShopProjectionLagHigh",),
        ),
        Panel(
            "Append to readable",
            "Time from an event's append to the write of its document.",
            "s",
            _quantiles(_READABLE, "projection", 0.99, 0.5),
            thresholds=(1, 10),
            traced=True,
        ),
    ),
)

_OBJECTIVES = Row(
    "Objectives, over thirty days",
    (
        Panel(
            "Burn of the error budgets",
            "How many times too fast each objective's budget burned in the hour before: at 1 it "
            "lasts thirty days, at 14.4 two.",
            "none",
            [
                Query(
                    'max by (objective) (shop:slo_burn:rate1h{namespace=~"$namespace"})',
                    "{{objective}}",
                )
            ],
            thresholds=(1, 14.4),
            width=12,
            runbooks=("ShopBudgetBurnsFast", "ShopBudgetBurnsSlowly"),
        ),
        Panel(
            "Error budgets left",
            "Share of each objective's budget that the thirty days before have left; at 0 the "
            "objective is missed. Time that Prometheus does not keep counts as if nothing failed.",
            "percentunit",
            [
                Query(
                    "clamp_min(1 - max by (objective) (sum_over_time("
                    'shop:slo_burn:rate5m{namespace=~"$namespace"}[30d:5m])) / 8640, 0)'
                    " or 1 + 0 * max by (objective)"
                    ' (shop:slo_burn:rate5m{namespace=~"$namespace"})',
                    "{{objective}}",
                )
            ],
            highest=1,
            width=12,
            runbooks=("ShopBudgetBurnsFast", "ShopBudgetBurnsSlowly"),
        ),
    ),
)

_PROCESS = " and on (namespace, job, instance) eventcore_build_info{*}"

_RESOURCES = Row(
    "Resources of the processes",
    (
        Panel(
            "CPU",
            "Cores that each process uses. One that is at 1 can do no more: Python runs on one.",
            "none",
            [Query(f"max by (job) (rate(process_cpu_seconds_total{{*}}[*]){_PROCESS})", "{{job}}")],
            thresholds=(0.9,),
        ),
        Panel(
            "Memory",
            "Memory that each process holds. One that only grows ends at its limit.",
            "bytes",
            [Query(f"max by (job) (process_resident_memory_bytes{{*}}{_PROCESS})", "{{job}}")],
        ),
        Panel(
            "Restarts",
            "Starts of each process within the interval, without the first.",
            "none",
            [
                Query(
                    f"sum by (job) (changes(process_start_time_seconds{{*}}[*]){_PROCESS})",
                    "{{job}}",
                )
            ],
            bars=True,
            runbooks=("ShopContainerRestarts",),
        ),
    ),
)

_ALERTS = Row(
    "Alerts",
    (
        Panel(
            "Alerts that fire",
            "Every alert that fires, and how bad it is; its name links to its runbook, which "
            "begins with the command to run. Empty is good.",
            "none",
            [
                Query(
                    "sum by (alertname, severity, namespace, store, projection, server, queue,"
                    f" route, instance) ({_FIRING})"
                )
            ],
            kind="table",
            width=24,
            height=5,
        ),
    ),
)

OVERVIEW = Board(
    "shop-overview",
    "Shop / Overview",
    "Is it well, what is slow, what is stuck?",
    OURS,
    (_NOW, _FLOW, _RED, _BEHIND, _RESOURCES, _ALERTS, _OBJECTIVES),
)

_NONE = " or 0 * sum by (aggregate_type) (rate(eventstore_append_duration_seconds_count{*}[*]))"
"""No conflict is 0, not a curve that is missing."""


def _or_zero(expr: str, outcome: str) -> str:
    """The rate of something rare by its outcome, which is 0 before it happens at all."""
    return f'{expr} or label_replace(vector(0), "outcome", "{outcome}", "", "")'


_SAGAS = Row(
    "Sagas",
    (
        Panel(
            "Sagas started and ended",
            "Sagas a second that were started, and that ended, by outcome. A saga that ended done "
            "and is cancelled ends again.",
            "cps",
            [
                Query(
                    "sum(rate(eventstore_events_appended_total"
                    '{*, event_type="SAGA_STARTED"}[*])) or vector(0)',
                    "started",
                ),
                _rate("saga_ended_total", "aggregate_type, outcome"),
            ],
        ),
        Panel(
            "Steps by outcome",
            "Requests of steps and of compensations a second, their answers, and deadlines that "
            "passed before an answer.",
            "cps",
            [_rate("saga_steps_total", "aggregate_type, step, outcome")],
        ),
        Panel(
            "Sagas stuck",
            "Sagas whose compensation no attempt has had an answer to: they wait for its answer, "
            "or for `saga retry`.",
            "none",
            [_latest("saga_stuck", "aggregate_type")],
            thresholds=(1,),
            runbooks=("ShopSagaStuck",),
        ),
        Panel(
            "Oldest deadline overdue",
            "Time since the oldest deadline passed that no process has taken; 0: none is due.",
            "s",
            [_latest("eventstore_deadlines_overdue_seconds", "aggregate_type")],
            thresholds=(10, 60),
            runbooks=("ShopDeadlinesLate",),
        ),
        Panel(
            "Deadlines fired",
            "Deadlines a second that have passed, and were fired or failed.",
            "cps",
            [
                Query(
                    _or_zero("sum by (outcome) (rate(deadlines_total{*}[*]))", "fired"),
                    "{{outcome}}",
                )
            ],
            runbooks=("ShopDeadlinesFail",),
        ),
        Panel(
            "Reactions by outcome",
            "Commands a second that reactors carried out, that wait for a server or a conflict, "
            "and that failed and parked a stream.",
            "cps",
            [_rate("reactor_commands_total", "projection, outcome")],
            runbooks=("ShopStreamParked",),
        ),
    ),
)

_SNAPSHOTS = Row(
    "Snapshots",
    (
        Panel(
            "Snapshots looked for",
            "Snapshots a second that commands used, did not find, or ignored, and why.",
            "cps",
            [_rate("eventstore_snapshot_reads_total", "aggregate_type, outcome")],
            width=12,
        ),
        Panel(
            "Snapshots written",
            "Snapshots a second that were written, failed, or were dropped since too many waited.",
            "cps",
            [
                Query(
                    _or_zero(
                        "sum by (outcome) (rate(eventstore_snapshot_writes_total{*}[*]))",
                        "written",
                    ),
                    "{{outcome}}",
                )
            ],
            width=12,
        ),
    ),
)

EVENT_FLOW = Board(
    "shop-event-flow",
    "Shop / Event flow",
    "The stages from append to readable, and where events wait.",
    OURS,
    (
        Row(
            "1. Append",
            (
                Panel(
                    "Events appended",
                    "Events a second, by their type.",
                    "cps",
                    [_rate("eventstore_events_appended_total", "event_type")],
                ),
                Panel(
                    "Time of an append",
                    "Time until PostgreSQL has committed or refused.",
                    "s",
                    _quantiles("eventstore_append_duration_seconds", "aggregate_type", 0.99, 0.5),
                    thresholds=(0.1, 0.5),
                    traced=True,
                ),
                Panel(
                    "Conflicts",
                    "Appends a second that found their stream changed by others and were tried "
                    "again, and those that were given up.",
                    "cps",
                    [
                        Query(
                            "sum by (aggregate_type) (rate(eventstore_conflicts_total{*}[*]))"
                            + _NONE,
                            "{{aggregate_type}} tried again",
                        ),
                        Query(
                            "sum by (aggregate_type) (rate(eventstore_conflicts_lost_total{*}[*]))"
                            + _NONE,
                            "{{aggregate_type}} given up",
                        ),
                    ],
                    runbooks=("ShopConflictsHigh",),
                ),
                Panel(
                    "Events folded by a command",
                    "How many events of its stream a command read before it decided: the slowest "
                    "hundredth and the middle one. Many are a reason for snapshots.",
                    "none",
                    _quantiles("eventstore_folded_events", "aggregate_type", 0.99, 0.5),
                ),
            ),
        ),
        Row(
            "2. Settle",
            (
                Panel(
                    "Head and settled position",
                    "The last position, and the one up to which nothing can still appear. "
                    "A gap that stays is caused by a transaction that does not end.",
                    "none",
                    [
                        Query("max by (store) (eventstore_head_position{*})", "{{store}} head"),
                        Query(
                            "max by (store) (eventstore_settled_position{*})", "{{store}} settled"
                        ),
                    ],
                ),
                Panel(
                    "Not settled yet",
                    "Positions between the settled one and the head.",
                    "none",
                    [
                        Query(
                            "max by (store) (eventstore_head_position{*})"
                            " - max by (store) (eventstore_settled_position{*})",
                            "{{store}}",
                        )
                    ],
                ),
                Panel(
                    "Held back",
                    "How long a writer has held the settled position back; 0: none does. "
                    "Readers get no newer events until then.",
                    "s",
                    [_latest("eventstore_unsettled_seconds", "store")],
                    thresholds=(10, 60),
                    runbooks=("ShopFeedStalled",),
                ),
            ),
        ),
        Row(
            "3. Relay",
            (
                Panel(
                    "Lag in seconds",
                    "Age of the oldest event that the broker has not confirmed.",
                    "s",
                    [_latest("relay_lag_seconds", "store")],
                    thresholds=(5, 30),
                    runbooks=("ShopRelayLagHigh",),
                ),
                Panel(
                    "Lag in events",
                    "Positions that are settled and not confirmed.",
                    "none",
                    [_latest("relay_lag_events", "store")],
                ),
                Panel(
                    "Checkpoint and settled position",
                    "The relay's checkpoint follows the settled position; one that stands still "
                    "below it is stuck.",
                    "none",
                    [
                        Query(
                            "max by (store) (eventstore_settled_position{*})", "{{store}} settled"
                        ),
                        Query(
                            "max by (store) (relay_checkpoint_position{*})", "{{store}} confirmed"
                        ),
                    ],
                ),
                Panel(
                    "Confirmed",
                    "Events a second that the broker has confirmed.",
                    "cps",
                    [_rate("relay_events_confirmed_total", "store")],
                ),
                Panel(
                    "Time until confirmed",
                    "Time from publishing a page of events to its last confirm.",
                    "s",
                    _quantiles("relay_confirm_duration_seconds", "store", 0.99, 0.5),
                    thresholds=(1, 5),
                ),
                Panel(
                    "In flight and window",
                    "Events published and not confirmed, and their limit.",
                    "none",
                    [
                        Query("max by (store) (relay_in_flight_events{*})", "{{store}} in flight"),
                        Query("max by (store) (relay_window_events{*})", "{{store}} window"),
                    ],
                ),
                Panel(
                    "Returned",
                    "Events a second that the broker could not route at first: a queue was gone, "
                    "and was declared again.",
                    "cps",
                    [_rate("relay_events_returned_total", "store")],
                    thresholds=(0.01,),
                    runbooks=("ShopUnroutableMessages",),
                ),
                Panel(
                    "Relays at work",
                    "Relays that hold their store's lock: one for each store; others stand by.",
                    "none",
                    [Query("sum by (store) (relay_active{*})", "{{store}}")],
                    kind="state-timeline",
                    states=_AT_WORK,
                    runbooks=("ShopRelayIdle",),
                ),
                Panel(
                    "Relays halted",
                    "1: the log does not have the event that the relay's checkpoint names, so "
                    "nothing is published.",
                    "none",
                    [Query("max by (store) (relay_halted{*})", "{{store}}")],
                    kind="state-timeline",
                    states=HALTED,
                    runbooks=("ShopNothingRelayed",),
                ),
            ),
        ),
        Row(
            "4. Apply",
            (
                Panel(
                    "Deliveries at once",
                    "How many deliveries a projector applies together: more under load.",
                    "none",
                    [_mean("projection_batch_events", "projection")],
                ),
                Panel(
                    "Time of a batch",
                    "Time until MongoDB has written a batch and it is acknowledged.",
                    "s",
                    _quantiles("projection_batch_duration_seconds", "projection", 0.99, 0.5),
                    thresholds=(1, 5),
                ),
                Panel(
                    "Append to readable",
                    "Time from an event's append to the write of its document.",
                    "s",
                    _quantiles(_READABLE, "projection", 0.99, 0.95, 0.5),
                    thresholds=(1, 10),
                    traced=True,
                ),
            ),
        ),
        _SAGAS,
        _SNAPSHOTS,
    ),
)

PROJECTIONS = Board(
    "shop-projections",
    "Shop / Projections",
    "Lag of each read model, and the events that it could not apply.",
    OURS,
    (
        Row(
            "How far behind",
            (
                Panel(
                    "Lag in seconds",
                    "Age of the oldest event neither applied nor parked; 0: there is none.",
                    "s",
                    [_latest("projection_lag_seconds", "projection")],
                    thresholds=(10, 60),
                    runbooks=("ShopProjectionLagHigh",),
                ),
                Panel(
                    "Lag in events",
                    "Positions from the oldest event neither applied nor parked to the settled "
                    "one; other projections' events are among them.",
                    "none",
                    [_latest("projection_lag_events", "projection")],
                ),
                Panel(
                    "Staleness",
                    "Time since the last point at which all earlier events were applied or parked: "
                    "normally a few sweep intervals, 2 to 5 s.",
                    "s",
                    [_latest("projection_staleness_seconds", "projection")],
                    thresholds=(30, 300),
                    runbooks=("ShopProjectionStuck",),
                ),
                Panel(
                    "Checkpoints",
                    "Position up to which each projection has applied or parked all.",
                    "none",
                    [_latest("projection_checkpoint_position", "projection")],
                ),
                Panel(
                    "Append to readable",
                    "From an event's append to the write of its document.",
                    "s",
                    _quantiles(_READABLE, "projection", 0.99, 0.95, 0.5),
                    thresholds=(1, 10),
                    traced=True,
                ),
                Panel(
                    "Readable within",
                    "Share of events that were readable within a tenth of a second, and within "
                    "one second.",
                    "percentunit",
                    [
                        Query(
                            f'sum by (projection) (rate({_READABLE}_bucket{{*, le="{bound}"}}[*]))'
                            f" / (sum by (projection) (rate({_READABLE}_count{{*}}[*])) > 0)",
                            f"{{{{projection}}}} {bound} s",
                        )
                        for bound in ("0.1", "1.0")
                    ],
                    highest=1,
                ),
            ),
        ),
        Row(
            "Work",
            (
                Panel(
                    "Applied",
                    "Events a second that were folded into documents.",
                    "cps",
                    [_rate("projection_events_applied_total", "projection")],
                ),
                Panel(
                    "Duplicates",
                    "Deliveries a second that were seen before: a relay or a consumer has begun "
                    "again. They change nothing.",
                    "cps",
                    [_rate("projection_events_duplicate_total", "projection")],
                ),
                Panel(
                    "Caught up",
                    "Events a second that were fetched from the feed, since the broker had not "
                    "brought them.",
                    "cps",
                    [_rate("projection_events_caught_up_total", "projection")],
                ),
                Panel(
                    "Deliveries at once",
                    "How many deliveries are applied together.",
                    "none",
                    [
                        _mean("projection_batch_events", "projection"),
                        *_quantiles("projection_batch_events", "projection", 0.99),
                    ],
                ),
                Panel(
                    "Time of a batch",
                    "Time of an attempt to apply and acknowledge a batch.",
                    "s",
                    _quantiles("projection_batch_duration_seconds", "projection", 0.99, 0.5),
                    thresholds=(1, 5),
                ),
                Panel(
                    "Tries a second",
                    "Batches a second, successful or not.",
                    "ops",
                    [_rate("projection_batch_duration_seconds_count", "projection")],
                ),
            ),
        ),
        Row(
            "What could not be applied",
            (
                Panel(
                    "Parked streams",
                    "Parked streams; all others go on.",
                    "none",
                    [_latest("projection_parked_streams", "projection")],
                    thresholds=(1,),
                    width=8,
                    runbooks=("ShopStreamParked",),
                ),
                Panel(
                    "Event types behind",
                    "Event types that a service appends in a version that a running projector does"
                    " not know: upgrade the projector.",
                    "none",
                    [_latest("projection_event_types_behind", "projection")],
                    thresholds=(1,),
                    width=8,
                ),
                Panel(
                    "Dead letters",
                    "Messages that are not events and were moved to the dead-letter queue.",
                    "none",
                    [
                        Query(
                            "sum by (projection) (increase(projection_dead_letters_total{*}[*]))",
                            "{{projection}}",
                        )
                    ],
                    thresholds=(1,),
                    width=8,
                    bars=True,
                    runbooks=("ShopDeadLetters",),
                ),
            ),
        ),
        Row(
            "Right or wrong",
            (
                Panel(
                    "Streams found wrong",
                    "Streams whose document differs from the log, by the last `verify`.",
                    "none",
                    [_latest("projection_verified_wrong_streams", "projection")],
                    thresholds=(1,),
                    runbooks=("ShopReadModelWrong",),
                    width=6,
                ),
                Panel(
                    "Verified ago",
                    "Time since the last `verify`.",
                    "s",
                    [
                        Query(
                            "time() - max by (projection)"
                            " (projection_verified_timestamp_seconds{*})",
                            "{{projection}}",
                        )
                    ],
                    runbooks=("ShopVerifyOld",),
                    width=6,
                ),
                Panel(
                    "Halted",
                    "1: nothing is applied, since the log lacks folded events, until `rebuild`.",
                    "none",
                    [_latest("projection_halted", "projection")],
                    kind="state-timeline",
                    states=HALTED,
                    runbooks=("ShopProjectionHalted",),
                    width=6,
                ),
                Panel(
                    "Generation",
                    "Number of the generation that serves; each `rebuild` makes a new one.",
                    "none",
                    [_latest("projection_generation", "projection")],
                    width=6,
                ),
            ),
        ),
    ),
)


def _queue(metric: str) -> str:
    """A queue's gauge, from /metrics/detailed or from /metrics/per-object."""
    names = (f"rabbitmq_detailed_queue_{metric}{{*}}", f'rabbitmq_queue_{metric}{{*, queue!=""}}')
    return "max by (queue) ({} or {})".format(*names)


_COUNTED: States = {0: ("shared", "green"), 1: ("alone", "red")}

_OWN: Sequence[Panel] = (
    Panel(
        "Dependencies",
        "1: the server worked for every process that last used it; 0: for one it did not.",
        "none",
        [Query("min by (server) (dependency_up{*})", "{{server}}")],
        kind="state-timeline",
        states=UP_OR_DOWN,
        runbooks=("ShopDependencyDown",),
        width=6,
    ),
    Panel(
        "Rate limits",
        "1: a gateway counts its share alone, since it does not reach the store of the limits.",
        "none",
        [Query("max by (instance) (rate_limit_alone{*})", "{{instance}}")],
        kind="state-timeline",
        states=_COUNTED,
        runbooks=("ShopRateLimitsAlone",),
        width=6,
    ),
    Panel(
        "Errors in background threads",
        "Unexpected errors of threads that then went on; the log has each of them.",
        "cps",
        [_rate("background_errors_total", "thread")],
        thresholds=(0.01,),
        width=6,
    ),
    Panel(
        "Connections in use",
        "Connections in use in each process's pools, and their limit.",
        "none",
        [
            Query(
                "sum by (server, instance) (pool_connections_in_use{*})",
                "{{server}} {{instance}} in use",
            ),
            Query(
                "sum by (server, instance) (pool_connections_max{*})",
                "{{server}} {{instance}} at most",
            ),
        ],
        width=6,
    ),
    Panel(
        "Share of the pools in use",
        "At 100 %, calls wait for a connection and may fail.",
        "percentunit",
        [
            Query(
                "sum by (server, instance) (pool_connections_in_use{*})"
                " / (sum by (server, instance) (pool_connections_max{*}) > 0)",
                "{{server}} {{instance}}",
            )
        ],
        thresholds=(0.8, 1),
        highest=1,
        runbooks=("ShopPoolExhausted",),
        width=6,
    ),
    Panel(
        "What runs",
        "Each process, its version and the commit it was built from.",
        "none",
        [
            Query(
                "max by (namespace, service, process, version, revision, instance)"
                " (eventcore_build_info{*})"
            )
        ],
        kind="table",
        width=24,
    ),
)

_RABBITMQ: Sequence[Panel] = (
    Panel(
        "Messages ready",
        "Messages that wait in each queue for a consumer.",
        "none",
        [Query(_queue("messages_ready"), "{{queue}}")],
        thresholds=(1000,),
    ),
    Panel(
        "Messages being worked on",
        "Messages delivered and not acknowledged yet.",
        "none",
        [Query(_queue("messages_unacked"), "{{queue}}")],
    ),
    Panel(
        "Consumers",
        "Consumers of each queue; that of dead letters has none.",
        "none",
        [Query(_queue("consumers"), "{{queue}}")],
        runbooks=("ShopQueueWithoutConsumer",),
    ),
    Panel(
        "Messages through the broker",
        "Messages a second that were received, confirmed, delivered and acknowledged.",
        "cps",
        [
            Query(f"sum(rate(rabbitmq_global_messages_{what}_total{{*}}[*]))", what)
            for what in ("received", "confirmed", "acknowledged")
        ],
    ),
    Panel(
        "Unroutable",
        "Messages a second without a queue: returned to their publisher, or dropped.",
        "cps",
        [
            Query(f"sum(rate(rabbitmq_global_messages_unroutable_{what}_total{{*}}[*]))", what)
            for what in ("returned", "dropped")
        ],
        thresholds=(0.01,),
        runbooks=("ShopUnroutableMessages",),
    ),
    Panel(
        "Alarms",
        "1: the broker takes nothing from publishers until memory or disk is free again.",
        "none",
        [
            Query(f"max by (instance) (rabbitmq_alarms_{what}_watermark{{*}})", legend)
            for what, legend in (
                ("memory_used", "{{instance}} memory"),
                ("free_disk_space", "{{instance}} disk"),
            )
        ],
        kind="state-timeline",
        states=_ALARM,
        runbooks=("ShopRabbitAlarm",),
    ),
    Panel(
        "Memory and its limit",
        "Memory that the broker uses, and the watermark of its alarm.",
        "bytes",
        [
            Query("max by (instance) (rabbitmq_process_resident_memory_bytes{*})", "in use"),
            Query("max by (instance) (rabbitmq_resident_memory_limit_bytes{*})", "limit"),
        ],
    ),
    Panel(
        "Free disk and its limit",
        "Room on the broker's disk, and the watermark of its alarm.",
        "bytes",
        [
            Query("min by (instance) (rabbitmq_disk_space_available_bytes{*})", "free"),
            Query("max by (instance) (rabbitmq_disk_space_available_limit_bytes{*})", "limit"),
        ],
    ),
    Panel(
        "Connections and channels",
        "Open connections and channels: one of each for a relay or a projector.",
        "none",
        [
            Query("sum(rabbitmq_connections{*})", "connections"),
            Query("sum(rabbitmq_channels{*})", "channels"),
        ],
    ),
)

_POSTGRES: Sequence[Panel] = (
    Panel(
        "PostgreSQL answers",
        "1: its exporter can log in.",
        "none",
        [Query("min by (instance) (pg_up{*})", "{{instance}}")],
        kind="state-timeline",
        states=UP_OR_DOWN,
        runbooks=("ShopPostgresDown",),
    ),
    Panel(
        "Connections of PostgreSQL",
        "Connections by state, and their limit.",
        "none",
        [
            Query("sum by (state) (pg_stat_activity_count{*})", "{{state}}"),
            Query("max(pg_settings_max_connections{*})", "at most"),
        ],
        runbooks=("ShopPostgresConnectionsHigh",),
    ),
    Panel(
        "Longest transaction",
        "Age of the oldest open transaction. One that writes events holds back all readers.",
        "s",
        [Query("max by (datname) (pg_stat_activity_max_tx_duration{*})", "{{datname}}")],
        thresholds=(10, 60),
        runbooks=("ShopFeedStalled",),
    ),
    Panel(
        "Transactions",
        "Transactions a second that were committed and rolled back.",
        "ops",
        [
            Query('sum(rate(pg_stat_database_xact_commit{*, datname!=""}[*]))', "committed"),
            Query('sum(rate(pg_stat_database_xact_rollback{*, datname!=""}[*]))', "rolled back"),
        ],
    ),
    Panel(
        "Size of the databases",
        "Bytes of each database: events are never deleted.",
        "bytes",
        [Query("max by (datname) (pg_database_size_bytes{*})", "{{datname}}")],
    ),
    Panel(
        "Deadlocks",
        "Transactions a second that PostgreSQL ended because of a deadlock.",
        "cps",
        [Query('sum by (datname) (rate(pg_stat_database_deadlocks{*, datname!=""}[*]))')],
        thresholds=(0.01,),
    ),
)

_MONGODB: Sequence[Panel] = (
    Panel(
        "MongoDB answers",
        "1: its exporter can log in.",
        "none",
        [Query("min by (instance) (mongodb_up{*})", "{{instance}}")],
        kind="state-timeline",
        states=UP_OR_DOWN,
        runbooks=("ShopMongoDown",),
    ),
    Panel(
        "Connections of MongoDB",
        "Connections that are open.",
        "none",
        [
            Query(
                'sum(mongodb_ss_connections{*, conn_type="current"}'
                ' or mongodb_connections{*, state="current"})',
                "open",
            )
        ],
    ),
    Panel(
        "Operations",
        "Operations a second, by their kind.",
        "ops",
        [
            Query(
                "sum by (legacy_op_type, type) (rate(mongodb_ss_opcounters{*}[*])"
                " or rate(mongodb_op_counters_total{*}[*]))",
                "{{legacy_op_type}}{{type}}",
            )
        ],
    ),
)

_VOLUMES: Sequence[Panel] = (
    Panel(
        "Volumes in use",
        "Share of each volume that is used.",
        "percentunit",
        [
            Query(
                "max by (persistentvolumeclaim) (kubelet_volume_stats_used_bytes{*}"
                " / (kubelet_volume_stats_capacity_bytes{*} > 0))",
                "{{persistentvolumeclaim}}",
            )
        ],
        thresholds=(0.8, 0.95),
        highest=1,
        width=12,
        runbooks=("ShopDiskFillsSoon",),
    ),
    Panel(
        "Room on the volumes",
        "Bytes that are left on each volume.",
        "bytes",
        [
            Query(
                "min by (persistentvolumeclaim) (kubelet_volume_stats_available_bytes{*})",
                "{{persistentvolumeclaim}}",
            )
        ],
        width=12,
    ),
)

STORES = Board(
    "shop-stores",
    "Shop / Stores and broker",
    "The servers: PostgreSQL, RabbitMQ, MongoDB, pools and disks.",
    SERVERS,
    (
        Row("As our processes see them", _OWN),
        Row("RabbitMQ, from its own endpoint", _RABBITMQ),
        Row("PostgreSQL, from its exporter", _POSTGRES),
        Row("MongoDB, from its exporter", _MONGODB),
        Row("Volumes, from the kubelets", _VOLUMES),
    ),
)

BOARDS = {
    "overview": OVERVIEW,
    "event-flow": EVENT_FLOW,
    "projections": PROJECTIONS,
    "stores": STORES,
}
"""The dashboards, by the name of their file."""
