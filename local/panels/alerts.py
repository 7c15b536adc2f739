"""The alerts: expression, severity and runbook of each.

They name no job, so that they hold however the processes are scraped: what is ours is known by
`eventcore_build_info`. Those about servers are silent where no exporter is. Gauges are told by
every replica, hence `max by`. `namespace` is missing outside Kubernetes, and then matches itself.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from textwrap import dedent
from typing import Any, Literal

from local.panels.objectives import burns, records

Severity = Literal["critical", "warning", "info"]

RUNBOOKS = "docs/runbooks"
"""The folder of the runbooks in the repository."""

OBJECTIVE = 0.999
"""The share of calls that must not fail by our fault: the error budget is what is left."""


@dataclass(frozen=True, slots=True)
class Alert:
    """A rule that fires when `expr` has held for `wait`.

    `summary` is one sentence that is always the same; `description` says which, and how bad.
    """

    name: str
    severity: Severity
    wait: str
    expr: str
    summary: str
    description: str
    board: str

    def rule(self) -> dict[str, Any]:
        """As Prometheus reads it."""
        return {
            "alert": self.name,
            "expr": in_namespace(dedent(self.expr).strip()),
            "for": self.wait,
            "labels": {"severity": self.severity},
            "annotations": {
                "summary": self.summary,
                "description": self.description,
                "runbook_url": f"{RUNBOOKS}/{self.name}.md",
                "dashboard_url": f"/d/{self.board}",
            },
        }


NAMESPACE = 'namespace=~".*"'
"""In every selector of our metrics and the cluster's: any namespace, or none. The chart puts its
release's there. Servers are not bound to it, since they may be in a namespace of their own.
"""

_SELECTOR = re.compile(
    r'"[^"]*"|\b(?:by|on|ignoring|without|group_left|group_right)\s*\([^)]*\)|(?<![\w:.])'
    r"((?:http|background|eventcore|eventstore|relay|projection|reactor|deadlines|saga"
    r"|dependency|pool|rate_limit|process|kubelet|kube)_\w+|up)\b(\{)?"
)
"""Text, labels, or the name of a metric with what begins its matchers."""


def in_namespace(expr: str) -> str:
    """The expression with NAMESPACE in its selectors."""

    def matched(found: re.Match[str]) -> str:
        if not found[1]:
            return found[0]
        return f"{found[1]}{{{NAMESPACE}{', ' if found[2] else '}'}"

    return _SELECTOR.sub(matched, expr)


_FLOW, _PROJECTIONS, _STORES, _OVERVIEW = (
    "shop-event-flow",
    "shop-projections",
    "shop-stores",
    "shop-overview",
)

_PROCESSES: Sequence[Alert] = (
    Alert(
        "ShopServiceDown",
        "critical",
        "2m",
        """up == 0 and on (namespace, job, instance) last_over_time(eventcore_build_info[1d])""",
        "A process has not answered Prometheus for two minutes.",
        "{{ $labels.instance }} (job {{ $labels.job }}{{ with $labels.pod }}, pod {{ . }}{{ end }})"
        " does not answer.",
        _OVERVIEW,
    ),
    Alert(
        "ShopScrapeMissing",
        "warning",
        "5m",
        """
        (
          group by (namespace, service, process) (last_over_time(eventcore_build_info[1d]))
          unless group by (namespace, service, process) (eventcore_build_info)
        )
        and on (namespace) group by (namespace) (eventcore_build_info)
        or absent(eventcore_build_info)
        """,
        "A process has not been scraped for five minutes although it was before, or none is.",
        "{{ with $labels.process }}{{ $labels.service }}'s `{{ . }}` is no longer scraped."
        "{{ else }}No process of the shop is scraped.{{ end }}",
        _OVERVIEW,
    ),
    Alert(
        "ShopDependencyDown",
        "critical",
        "2m",
        """min by (namespace, job, instance, server) (dependency_up) == 0""",
        "A process has not reached a server that it needs for two minutes.",
        "{{ $labels.instance }} (job {{ $labels.job }}) cannot use {{ $labels.server }}.",
        _STORES,
    ),
    Alert(
        "ShopPoolExhausted",
        "warning",
        "2m",
        """
        sum by (namespace, job, instance, server) (pool_connections_in_use)
          / (sum by (namespace, job, instance, server) (pool_connections_max) > 0) >= 0.95
        """,
        "A connection pool has been full for two minutes, so calls wait for it.",
        "{{ $labels.instance }} uses {{ $value | humanizePercentage }} of its connections to"
        " {{ $labels.server }}.",
        _STORES,
    ),
    Alert(
        "ShopDeadlinesLate",
        "warning",
        "2m",
        """max by (namespace, aggregate_type) (eventstore_deadlines_overdue_seconds) > 60""",
        "Deadlines have passed for more than a minute, and no process takes them.",
        "The oldest deadline of {{ $labels.aggregate_type }} passed"
        " {{ $value | humanizeDuration }} ago.",
        _FLOW,
    ),
    Alert(
        "ShopDeadlinesFail",
        "warning",
        "2m",
        """sum by (namespace, type) (increase(deadlines_total{outcome="failed"}[5m])) > 0""",
        "Deadlines have passed, and the commands that follow from them fail.",
        "{{ $value | humanize }} deadlines of {{ $labels.type }} failed in five minutes.",
        _FLOW,
    ),
    Alert(
        "ShopSagaStuck",
        "warning",
        "1m",
        """max by (namespace, aggregate_type) (saga_stuck) > 0""",
        "Sagas are stuck, because no attempt of a compensation was answered.",
        "{{ $value }} sagas of {{ $labels.aggregate_type }} wait for an answer, or for a retry.",
        _FLOW,
    ),
    Alert(
        "ShopRateLimitsAlone",
        "warning",
        "5m",
        """max by (namespace, job, instance) (rate_limit_alone) > 0""",
        "A gateway has counted its share of the rate limits alone for five minutes.",
        "{{ $labels.instance }} does not reach the store of the rate limits.",
        _STORES,
    ),
    Alert(
        "ShopVersionsDiffer",
        "info",
        "1h",
        """count by (namespace) (group by (namespace, version) (eventcore_build_info)) > 1""",
        "Processes of different versions have run beside each other for an hour.",
        "{{ $value }} versions run{{ with $labels.namespace }} in {{ . }}{{ end }}.",
        _STORES,
    ),
)


def _calls(part: str, window: str, more: str = "", count: str = "rate") -> str:
    public = 'route!~"/internal/.*"'
    matchers = f"{public}, {more}" if more else public
    metric = f"http_request_duration_seconds_{part}{{{matchers}}}"
    return f"sum by (namespace, route) ({count}({metric}[{window}]))"


_FAILED = 'status=~"5.."'


def _failed(window: str) -> str:
    failed = _calls("count", window, _FAILED)
    return f"{failed}\n  / ({_calls('count', window)} > 0)"


def _slow(window: str) -> str:
    fast = _calls("bucket", window, 'le="0.5"')
    return f"1 - {fast}\n  / ({_calls('count', window)} > 0.01)"


def _burns(factor: float, long: str, short: str) -> str:
    """The budget is used up this many times too fast, and not for a handful of calls."""
    budget = f"{factor} * {1 - OBJECTIVE:.4g}"
    enough = f"{_calls('count', long, _FAILED, 'increase')} >= 5"
    return f"{_failed(long)} > {budget}\nand\n{_failed(short)} > {budget}\nand\n{enough}"


_FAILS = "The error budget of a route, one call in a thousand, burns too fast"

_CALLS: Sequence[Alert] = (
    Alert(
        "ShopHighErrorRate",
        "critical",
        "2m",
        _burns(14.4, "1h", "5m"),
        f"{_FAILS}: a month's is gone in two days.",
        "{{ $labels.route }} fails in {{ $value | humanizePercentage }} of all calls.",
        _OVERVIEW,
    ),
    Alert(
        "ShopHighErrorRate",
        "warning",
        "15m",
        _burns(3, "6h", "30m"),
        f"{_FAILS}: a month's is gone in ten days.",
        "{{ $labels.route }} fails in {{ $value | humanizePercentage }} of all calls.",
        _OVERVIEW,
    ),
    Alert(
        "ShopHighLatency",
        "warning",
        "5m",
        f"{_slow('1h')} > 0.05\nand\n{_slow('5m')} > 0.05",
        "More than one call in twenty has taken over half a second for the last hour.",
        "{{ $labels.route }} is slow in {{ $value | humanizePercentage }} of all calls.",
        _OVERVIEW,
    ),
    Alert(
        "ShopConflictsHigh",
        "warning",
        "10m",
        """
        sum by (namespace, aggregate_type) (rate(eventstore_conflicts_total[5m]))
          / (
            sum by (namespace, aggregate_type) (rate(eventstore_append_duration_seconds_count[5m]))
            > 0.1
          )
        > 0.25
        """,
        "One append in four has lost a race for its stream for ten minutes.",
        "{{ $value | humanizePercentage }} of the appends to {{ $labels.aggregate_type }} streams"
        " find them changed.",
        _FLOW,
    ),
)

_BUDGETS: Sequence[Alert] = (
    Alert(
        "ShopBudgetBurnsFast",
        "critical",
        "2m",
        f"{burns(14.4, '1h', '5m')}\nor\n{burns(6, '6h', '30m')}",
        "The error budget of an objective burns so fast that a month's is gone within five days.",
        "The budget of the objective {{ $labels.objective }} burns"
        " {{ $value | humanize }} times too fast.",
        _OVERVIEW,
    ),
    Alert(
        "ShopBudgetBurnsSlowly",
        "warning",
        "15m",
        burns(1, "3d", "6h"),
        "The error budget of an objective has burnt too fast for three days.",
        "The budget of the objective {{ $labels.objective }} burns"
        " {{ $value | humanize }} times too fast.",
        _OVERVIEW,
    ),
)

_EVENTS: Sequence[Alert] = (
    Alert(
        "ShopFeedStalled",
        "critical",
        "1m",
        """max by (namespace, store) (eventstore_unsettled_seconds) > 60""",
        "A transaction that does not end has held back all new events for a minute.",
        "Nothing newer of the store {{ $labels.store }} can be read for"
        " {{ $value | humanizeDuration }}.",
        _FLOW,
    ),
    Alert(
        "ShopRelayLagHigh",
        "warning",
        "2m",
        """max by (namespace, store) (relay_lag_seconds) > 30""",
        "Events have waited for more than half a minute to be published.",
        "The oldest event of the store {{ $labels.store }} that is not confirmed is"
        " {{ $value | humanizeDuration }} old.",
        _FLOW,
    ),
    Alert(
        "ShopNothingRelayed",
        "critical",
        "10m",
        """
        sum by (namespace, service) (
          increase(eventstore_events_appended_total[5m])
          * on (namespace, job, instance) group_left (service)
            max by (namespace, job, instance, service) (eventcore_build_info)
        ) > 0
        unless on (namespace, service) label_replace(
          sum by (namespace, store) (increase(relay_events_confirmed_total[5m])) > 0,
          "service", "$1", "store", "(.+)"
        )
        """,
        "Events are appended, and the broker has confirmed none for ten minutes.",
        "{{ $labels.service }}'s events stay in its log.",
        _FLOW,
    ),
    Alert(
        "ShopRelayIdle",
        "critical",
        "2m",
        """max by (namespace, store) (relay_active) == 0""",
        "No relay has held the lock of a store for two minutes.",
        "The relays of the store {{ $labels.store }} run, and none is active.",
        _FLOW,
    ),
    Alert(
        "ShopUnroutableMessages",
        "warning",
        "10m",
        """sum by (namespace, store) (increase(relay_events_returned_total[5m])) > 0""",
        "The broker has returned events without a queue for ten minutes.",
        "{{ $value | humanize }} events of the store {{ $labels.store }} were returned within"
        " five minutes.",
        _FLOW,
    ),
    Alert(
        "ShopProjectionLagHigh",
        "warning",
        "2m",
        """max by (namespace, projection) (projection_lag_seconds) > 60""",
        "Events have waited for more than a minute to be applied to a read model.",
        "The oldest event that {{ $labels.projection }} has neither applied nor parked is"
        " {{ $value | humanizeDuration }} old.",
        _PROJECTIONS,
    ),
    Alert(
        "ShopProjectionStuck",
        "critical",
        "2m",
        """max by (namespace, projection) (projection_staleness_seconds) > 300""",
        "No sweep has confirmed for five minutes that a read model is complete.",
        "{{ $labels.projection }} was last known to be complete"
        " {{ $value | humanizeDuration }} ago.",
        _PROJECTIONS,
    ),
    Alert(
        "ShopStreamParked",
        "warning",
        "1m",
        """max by (namespace, projection) (projection_parked_streams) > 0""",
        "A projection has parked streams, because their next event cannot be applied.",
        "{{ $value }} streams of {{ $labels.projection }} are parked; all others go on.",
        _PROJECTIONS,
    ),
    Alert(
        "ShopProjectionHalted",
        "critical",
        "0m",
        """max by (namespace, projection) (projection_halted) == 1""",
        "A projection is halted, because the log does not have events that it has folded.",
        "{{ $labels.projection }} is halted until it is rebuilt.",
        _PROJECTIONS,
    ),
    Alert(
        "ShopReadModelWrong",
        "critical",
        "0m",
        """max by (namespace, projection) (projection_verified_wrong_streams) > 0""",
        "A comparison with the log has found documents that differ from the fold of their events.",
        "{{ $value }} streams of {{ $labels.projection }} were found wrong.",
        _PROJECTIONS,
    ),
    Alert(
        "ShopVerifyOld",
        "warning",
        "1h",
        """
        time() - max by (namespace, projection) (projection_verified_timestamp_seconds)
          > 2 * 86400
        """,
        "A projection has not been compared with its log for two days.",
        "{{ $labels.projection }} was last compared {{ $value | humanizeDuration }} ago.",
        _PROJECTIONS,
    ),
    Alert(
        "ShopDeadLetters",
        "warning",
        "0m",
        """sum by (namespace, projection) (increase(projection_dead_letters_total[15m])) > 0""",
        "Messages that are not events have arrived within the last quarter of an hour.",
        "{{ $value | humanize }} messages to {{ $labels.projection }} are dead letters.",
        _PROJECTIONS,
    ),
)

_IN_OUR_NAMESPACE = "and on (namespace) group by (namespace) (eventcore_build_info)"

_CONSUMERS = """\
max by (namespace, queue) (
  rabbitmq_detailed_queue_consumers{{{0}}} or rabbitmq_queue_consumers{{{0}}}
)"""

_SERVERS: Sequence[Alert] = (
    Alert(
        "ShopQueueWithoutConsumer",
        "warning",
        "5m",
        # Ours are those that have dead letters beside them.
        _CONSUMERS.format(r'queue!="", queue!~".+\\.dead-letters"')
        + " == 0\nand on (namespace, queue) label_replace(\n"
        + _CONSUMERS.format(r'queue=~".+\\.dead-letters"')
        + r""",
"queue", "$1", "queue", "(.+)\\.dead-letters"
)""",
        "A queue of events has had no consumer for five minutes.",
        "{{ $labels.queue }} has no consumer: events wait in it, and only sweeps update its read"
        " model.",
        _STORES,
    ),
    Alert(
        "ShopRabbitAlarm",
        "critical",
        "1m",
        """
        max by (namespace, instance) (rabbitmq_alarms_memory_used_watermark) > 0
        or max by (namespace, instance) (rabbitmq_alarms_free_disk_space_watermark) > 0
        """,
        "RabbitMQ has blocked publishers for a minute, because it lacks memory or disk.",
        "{{ $labels.instance }} blocks publishers.",
        _STORES,
    ),
    Alert(
        "ShopPostgresDown",
        "critical",
        "1m",
        """min by (namespace, instance) (pg_up) == 0""",
        "PostgreSQL has not answered its exporter for a minute.",
        "The server behind {{ $labels.instance }} does not answer: commands get 503.",
        _STORES,
    ),
    Alert(
        "ShopPostgresConnectionsHigh",
        "warning",
        "5m",
        """
        sum by (namespace, instance) (pg_stat_activity_count)
          / (max by (namespace, instance) (pg_settings_max_connections) > 0) > 0.8
        """,
        "PostgreSQL has been short of connections for five minutes.",
        "{{ $value | humanizePercentage }} of the connections behind {{ $labels.instance }} are"
        " taken.",
        _STORES,
    ),
    Alert(
        "ShopMongoDown",
        "critical",
        "1m",
        """min by (namespace, instance) (mongodb_up) == 0""",
        "MongoDB has not answered its exporter for a minute.",
        "The server behind {{ $labels.instance }} does not answer: queries are answered from"
        " the logs, and read models are not updated.",
        _STORES,
    ),
    Alert(
        "ShopDiskFillsSoon",
        "warning",
        "15m",
        f"""
        (
          predict_linear(kubelet_volume_stats_available_bytes[1h], 4 * 3600) < 0
          and kubelet_volume_stats_available_bytes
            / (kubelet_volume_stats_capacity_bytes > 0) < 0.5
          or kubelet_volume_stats_available_bytes
            / (kubelet_volume_stats_capacity_bytes > 0) < 0.05
        )
        {_IN_OUR_NAMESPACE}
        """,
        "A volume will be full within four hours at the rate of the last hour, or is nearly full.",
        "The claim {{ $labels.persistentvolumeclaim }} is nearly full, or soon will be.",
        _STORES,
    ),
    Alert(
        "ShopSetupFailed",
        "critical",
        "1m",
        f"""
        max by (namespace, job_name) (
          kube_job_failed{{condition="true", job_name=~".+-setup-[0-9a-f]{{8}}"}}
        ) > 0
        {_IN_OUR_NAMESPACE}
        """,
        "The job that makes databases, logins and schema has given up.",
        "{{ $labels.job_name }} has failed: processes of the new version wait for it.",
        _OVERVIEW,
    ),
    Alert(
        "ShopBackupOld",
        "critical",
        "10m",
        f"""
        time() - max by (namespace, cronjob) (
          kube_cronjob_status_last_successful_time{{cronjob=~".+-backup"}}
          or kube_cronjob_created{{cronjob=~".+-backup"}}
        ) > 36 * 3600
        {_IN_OUR_NAMESPACE}
        """,
        "No dump of an event store has been made for 36 hours.",
        "The last dump by {{ $labels.cronjob }}, or its creation, was"
        " {{ $value | humanizeDuration }} ago.",
        _STORES,
    ),
    Alert(
        "ShopContainerRestarts",
        "warning",
        "0m",
        f"""
        sum by (namespace, pod, container) (
          increase(kube_pod_container_status_restarts_total[15m])
        ) > 2
        {_IN_OUR_NAMESPACE}
        """,
        "A container has been started again three times within a quarter of an hour.",
        "{{ $labels.container }} of the pod {{ $labels.pod }} was started again"
        " {{ $value | humanize }} times.",
        _OVERVIEW,
    ),
    Alert(
        "ShopAutoscalerAtMaximum",
        "warning",
        "15m",
        f"""
        (
          max by (namespace, horizontalpodautoscaler) (
            kube_horizontalpodautoscaler_status_desired_replicas
          )
          >= max by (namespace, horizontalpodautoscaler) (
            kube_horizontalpodautoscaler_spec_max_replicas
          )
        )
        {_IN_OUR_NAMESPACE}
        """,
        "An autoscaler has wanted its maximum of pods for a quarter of an hour.",
        "{{ $labels.horizontalpodautoscaler }} wants {{ $value }} pods, and may have no more.",
        _OVERVIEW,
    ),
    Alert(
        "ShopExporterDown",
        "warning",
        "5m",
        """
        up == 0 and on (namespace, job, instance) (
          last_over_time(pg_up[1d]) or last_over_time(mongodb_up[1d])
          or last_over_time(rabbitmq_identity_info[1d])
        )
        """,
        "An exporter of a server's metrics has not answered for five minutes.",
        "{{ $labels.instance }} (job {{ $labels.job }}) does not answer Prometheus.",
        _STORES,
    ),
)

GROUPS = {
    "shop-processes": _PROCESSES,
    "shop-calls": _CALLS,
    "shop-objectives": _BUDGETS,
    "shop-events": _EVENTS,
    "shop-servers": _SERVERS,
}
"""The alerts, by the group in which Prometheus evaluates them."""


def alerts() -> Iterator[Alert]:
    """All of them; one name may have two, of different severity."""
    for group in GROUPS.values():
        yield from group


def rule_file() -> dict[str, Any]:
    """The rules as Prometheus' `rule_files` and a PrometheusRule's `spec` take them."""
    groups = {name: [alert.rule() for alert in group] for name, group in GROUPS.items()}
    # before the alerts that read them: rules of one group are evaluated in their order
    recorded = [each | {"expr": in_namespace(each["expr"])} for each in records()]
    groups["shop-objectives"] = [*recorded, *groups["shop-objectives"]]
    return {"groups": [{"name": name, "rules": rules} for name, rules in groups.items()]}
