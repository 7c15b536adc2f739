"""For each alert a series of samples, one a minute, in which it fires and is quiet again.

Samples are written as promtool takes them: `0x5` is six zeros, `0+6x30` rises by six a minute.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

Series = Mapping[str, str]


@dataclass(frozen=True)
class Case:
    """`alert` fires at the minute `fires` with these labels and this description, and not at the
    minutes `quiet`: before, and after.
    """

    alert: str
    series: Series
    fires: int
    quiet: tuple[int, ...]
    description: str
    labels: Mapping[str, str] = field(default_factory=dict)
    severity: str = "warning"


def build(service: str, instance: str, process: str = "serve", version: str = "0.1.0") -> str:
    """The name of a process's eventcore_build_info."""
    return (
        f'eventcore_build_info{{job="shop", instance="{instance}", service="{service}",'
        f' process="{process}", version="{version}"}}'
    )


_HERE = {build("user", "a:1"): "1x600"}

_CALLS = 'http_request_duration_seconds_count{route="/orders", method="POST", status="%s"}'
_FAST = 'http_request_duration_seconds_bucket{route="/orders", status="200", le="0.5"}'
_INTERNAL = 'http_request_duration_seconds_count{route="/internal/heads", status="503"}'

_GATEWAY = (
    'http_request_duration_seconds_count{job="shop", instance="g:1", route="/orders",'
    ' method="POST", status="%s"}'
)
_READS = _GATEWAY.replace("POST", "GET")
_SLOW = 'projection_append_to_readable_seconds_%s{projection="orders"}'
_SLOW_BUCKET = 'projection_append_to_readable_seconds_bucket{projection="orders", le="1.0"}'

_QUEUE = 'rabbitmq_detailed_queue_consumers{queue="%s"}'
_DISK = 'kubelet_volume_stats_%s_bytes{persistentvolumeclaim="data-shop-postgres-0"}'
_DUMPED = 'kube_cronjob_status_last_successful_time{cronjob="%s"}'
_RESTARTS = 'kube_pod_container_status_restarts_total{pod="shop-postgres-0", container="postgres"}'
_SCALER = 'kube_horizontalpodautoscaler_%s_replicas{horizontalpodautoscaler="shop-gateway"}'

CASES = (
    Case(
        "ShopServiceDown",
        {
            'up{job="shop", instance="a:1"}': "1x9 0x5 1x20",
            build("user", "a:1"): "1x9 stale _x5 1x20",
            'up{job="another", instance="z:1"}': "0x60",  # not ours
        },
        fires=14,
        quiet=(9, 24),
        description="a:1 (job shop) does not answer.",
        labels={"job": "shop", "instance": "a:1"},
        severity="critical",
    ),
    Case(
        "ShopScrapeMissing",
        {**_HERE, build("order", "b:1", "relay"): "1x10 stale _x20 1x60"},
        fires=20,
        quiet=(9, 50),
        description="order's `relay` is no longer scraped.",
        labels={"service": "order", "process": "relay"},
    ),
    Case(
        "ShopScrapeMissing",
        {build("user", "a:1"): "_x20 1x60"},
        fires=10,
        quiet=(3, 40),
        description="No process of the shop is scraped.",
    ),
    Case(
        "ShopDependencyDown",
        {
            'dependency_up{job="shop", instance="a:1", server="RabbitMQ"}': "1x9 0x9 1x20",
            'dependency_up{job="shop", instance="a:1", server="MongoDB"}': "1x60",
        },
        fires=14,
        quiet=(9, 24),
        description="a:1 (job shop) cannot use RabbitMQ.",
        labels={"job": "shop", "instance": "a:1", "server": "RabbitMQ"},
        severity="critical",
    ),
    Case(
        "ShopPoolExhausted",
        {
            'pool_connections_in_use{job="shop", instance="a:1", server="PostgreSQL"}': (
                "3x9 16x9 2x20"
            ),
            'pool_connections_max{job="shop", instance="a:1", server="PostgreSQL"}': "16x60",
            'pool_connections_in_use{job="shop", instance="b:1", server="MongoDB"}': "0x60",
            'pool_connections_max{job="shop", instance="b:1", server="MongoDB"}': "0x60",
        },
        fires=14,
        quiet=(9, 24),
        description="a:1 uses 100% of its connections to PostgreSQL.",
        labels={"job": "shop", "instance": "a:1", "server": "PostgreSQL"},
    ),
    Case(
        "ShopDeadlinesLate",
        {
            'eventstore_deadlines_overdue_seconds{instance="a:1", aggregate_type="order_saga"}': (
                "0x4 90x5 0x60"
            ),
            'eventstore_deadlines_overdue_seconds{instance="a:1", aggregate_type="order"}': "0x70",
        },
        fires=7,
        quiet=(6, 12),
        description="The oldest deadline of order_saga passed 1m 30s ago.",
        labels={"aggregate_type": "order_saga"},
    ),
    Case(
        "ShopDeadlinesFail",
        {
            'deadlines_total{instance="a:1", type="order_saga", outcome="failed"}': (
                "0x4 0+6x9 54x20"
            ),
            'deadlines_total{instance="a:1", type="order_saga", outcome="fired"}': "0+9x40",
        },
        fires=10,
        quiet=(4, 25),
        description="30 deadlines of order_saga failed in five minutes.",
        labels={"type": "order_saga"},
    ),
    Case(
        "ShopSagaStuck",
        {
            'saga_stuck{instance="a:1", aggregate_type="order_saga"}': "0x4 2x9 0x30",
            'saga_stuck{instance="b:1", aggregate_type="order_saga"}': "0x5 2x9 0x30",
            'saga_stuck{instance="a:1", aggregate_type="parcel_saga"}': "0x60",
        },
        fires=8,
        quiet=(4, 20),
        description="2 sagas of order_saga wait for an answer, or for a retry.",
        labels={"aggregate_type": "order_saga"},
    ),
    Case(
        "ShopRateLimitsAlone",
        {
            'rate_limit_alone{job="shop", instance="a:1"}': "0x4 1x9 0x10 1x2 0x30",
            'rate_limit_alone{job="shop", instance="b:1"}': "0x60",
        },
        fires=10,
        quiet=(9, 16),
        description="a:1 does not reach the store of the rate limits.",
        labels={"job": "shop", "instance": "a:1"},
    ),
    Case(
        "ShopVersionsDiffer",
        {
            build("user", "a:1"): "1x300",
            build("user", "b:1"): "1x20 stale",
            build("user", "b:1", version="0.2.0"): "_x21 1x100 stale",
        },
        fires=100,
        quiet=(20, 60, 200),
        description="2 versions run{in}.",
        severity="info",
    ),
    Case(
        "ShopHighErrorRate",
        {_CALLS % 200: "0+60x300", _CALLS % 503: "0x60 0+6x30 180x200"},
        fires=74,
        quiet=(50, 140),
        description="/orders fails in 2.121% of all calls.",
        labels={"route": "/orders"},
        severity="critical",
    ),
    Case(
        "ShopHighErrorRate",
        {_CALLS % 200: "0+60x600", _CALLS % 503: "0x60 0+0.3x200 60x300", _INTERNAL: "0+9x600"},
        fires=230,
        quiet=(50, 320),
        description="/orders fails in 0.366% of all calls.",
        labels={"route": "/orders"},
    ),
    Case(
        "ShopHighLatency",
        {_CALLS % 200: "0+60x300", _FAST: "0+60x60 3630+30x29 4560+60x200"},
        fires=75,
        quiet=(50, 110),
        description="/orders is slow in 12.5% of all calls.",
        labels={"route": "/orders"},
    ),
    Case(
        "ShopBudgetBurnsFast",
        {
            build("gateway", "g:1"): "1x240",
            _GATEWAY % 202: "0+60x240",
            _GATEWAY % 503: "0x60 0+6x30 180x150",
        },
        fires=74,
        quiet=(50, 180),
        description="The budget of the objective commands burns 21.21 times too fast.",
        labels={"objective": "commands"},
        severity="critical",
    ),
    Case(
        "ShopBudgetBurnsFast",
        {_SLOW % "count": "0+60x240", _SLOW_BUCKET: "0+60x60 3600x30 3660+60x150"},
        fires=85,
        quiet=(50, 180),
        description="The budget of the objective readable burns 41.67 times too fast.",
        labels={"objective": "readable"},
        severity="critical",
    ),
    Case(
        "ShopBudgetBurnsSlowly",
        {
            build("gateway", "g:1"): "1x240",
            _READS % 200: "0+60x240",
            _READS % 500: "0x60 0+0.5x20 10x160",
        },
        fires=100,
        quiet=(50, 220),
        description="The budget of the objective reads burns 1.664 times too fast.",
        labels={"objective": "reads"},
    ),
    Case(
        "ShopConflictsHigh",
        {
            'eventstore_conflicts_total{aggregate_type="user"}': "0x10 0+20x20 400x30",
            'eventstore_append_duration_seconds_count{aggregate_type="user"}': "0+30x90",
            'eventstore_conflicts_total{aggregate_type="order"}': "0+2x90",  # of three in a minute
            'eventstore_append_duration_seconds_count{aggregate_type="order"}': "0+3x90",
        },
        fires=28,
        quiet=(9, 45),
        description="66.67% of the appends to user streams find them changed.",
        labels={"aggregate_type": "user"},
    ),
    Case(
        "ShopFeedStalled",
        {'eventstore_unsettled_seconds{store="user"}': "0x5 120x5 0x20"},
        fires=9,
        quiet=(5, 18),
        description="Nothing newer of the store user can be read for 2m 0s.",
        labels={"store": "user"},
        severity="critical",
    ),
    Case(
        "ShopRelayLagHigh",
        {
            'relay_lag_seconds{store="order", instance="a:1"}': "0x5 60x9 0x20",
            'relay_lag_seconds{store="order", instance="b:1"}': "0x5 60x9 0x20",  # a replica
        },
        fires=12,
        quiet=(5, 20),
        description="The oldest event of the store order that is not confirmed is 1m 0s old.",
        labels={"store": "order"},
    ),
    Case(
        "ShopNothingRelayed",
        {
            **_HERE,
            'eventstore_events_appended_total{job="shop", instance="a:1", event_type="USER_CREATED"}': (  # noqa: E501
                "0+10x100"
            ),
            'relay_events_confirmed_total{store="user"}': "0+10x20 200x20 210+10x50",
        },
        fires=38,
        quiet=(20, 60),
        description="user's events stay in its log.",
        labels={"service": "user"},
        severity="critical",
    ),
    Case(
        "ShopNothingRelayed",
        {
            **_HERE,
            'eventstore_events_appended_total{job="shop", instance="a:1", event_type="USER_CREATED"}': (  # noqa: E501
                "0x10 0+10x20 200x50"
            ),
            'relay_events_confirmed_total{store="order"}': "0+10x100",
        },
        fires=25,
        quiet=(10, 45),
        description="user's events stay in its log.",
        labels={"service": "user"},
        severity="critical",
    ),
    Case(
        "ShopRelayIdle",
        {
            'relay_active{store="user", instance="a:1"}': "1x5 0x9 1x20",
            'relay_active{store="user", instance="b:1"}': "0x60",  # stands by
        },
        fires=10,
        quiet=(5, 20),
        description="The relays of the store user run, and none is active.",
        labels={"store": "user"},
        severity="critical",
    ),
    Case(
        "ShopUnroutableMessages",
        {'relay_events_returned_total{store="user"}': "0x10 0+5x20 100x30"},
        fires=26,
        quiet=(9, 45),
        description="25 events of the store user were returned within five minutes.",
        labels={"store": "user"},
    ),
    Case(
        "ShopProjectionLagHigh",
        {'projection_lag_seconds{projection="orders"}': "0x5 300x9 0x20"},
        fires=12,
        quiet=(5, 20),
        description="The oldest event that orders has neither applied nor parked is 5m 0s old.",
        labels={"projection": "orders"},
    ),
    Case(
        "ShopProjectionStuck",
        {'projection_staleness_seconds{projection="orders"}': "3x5 600x9 3x20"},
        fires=12,
        quiet=(5, 20),
        description="orders was last known to be complete 10m 0s ago.",
        labels={"projection": "orders"},
        severity="critical",
    ),
    Case(
        "ShopStreamParked",
        {'projection_parked_streams{projection="users"}': "0x5 2x9 0x20"},
        fires=9,
        quiet=(5, 20),
        description="2 streams of users are parked; all others go on.",
        labels={"projection": "users"},
    ),
    Case(
        "ShopProjectionHalted",
        {'projection_halted{projection="users"}': "0x5 1x9 0x20"},
        fires=8,
        quiet=(5, 20),
        description="users is halted until it is rebuilt.",
        labels={"projection": "users"},
        severity="critical",
    ),
    Case(
        "ShopReadModelWrong",
        {'projection_verified_wrong_streams{projection="users"}': "0x5 3x9 0x20"},
        fires=8,
        quiet=(5, 20),
        description="3 streams of users were found wrong.",
        labels={"projection": "users"},
        severity="critical",
    ),
    Case(
        "ShopDeadLetters",
        {'projection_dead_letters_total{projection="users"}': "0x20 1x60"},
        fires=22,
        quiet=(19, 45),
        description="1 messages to users are dead letters.",
        labels={"projection": "users"},
    ),
    Case(
        "ShopQueueWithoutConsumer",
        {
            _QUEUE % "users": "1x5 0x15 1x20",
            _QUEUE % "users.dead-letters": "0x60",
            _QUEUE % "somebody-else's": "0x60",
        },
        fires=14,
        quiet=(5, 28),
        description="users has no consumer: events wait in it, and only sweeps update its read"
        " model.",
        labels={"queue": "users"},
    ),
    Case(
        "ShopQueueWithoutConsumer",
        {
            'rabbitmq_queue_consumers{queue="users"}': "1x5 0x15 1x20",
            'rabbitmq_queue_consumers{queue="users.dead-letters"}': "0x60",
        },
        fires=14,
        quiet=(5, 28),
        description="users has no consumer: events wait in it, and only sweeps update its read"
        " model.",
        labels={"queue": "users"},
    ),
    Case(
        "ShopRabbitAlarm",
        {
            'rabbitmq_alarms_memory_used_watermark{instance="r:1"}': "0x5 1x5 0x20",
            'rabbitmq_alarms_free_disk_space_watermark{instance="r:1"}': "0x60",
        },
        fires=9,
        quiet=(5, 18),
        description="r:1 blocks publishers.",
        labels={"instance": "r:1"},
        severity="critical",
    ),
    Case(
        "ShopRabbitAlarm",
        {
            'rabbitmq_alarms_memory_used_watermark{instance="r:1"}': "0x60",
            'rabbitmq_alarms_free_disk_space_watermark{instance="r:1"}': "0x5 1x5 0x20",
        },
        fires=9,
        quiet=(5, 18),
        description="r:1 blocks publishers.",
        labels={"instance": "r:1"},
        severity="critical",
    ),
    Case(
        "ShopPostgresDown",
        {'pg_up{instance="p:1"}': "1x5 0x5 1x20"},
        fires=9,
        quiet=(5, 18),
        description="The server behind p:1 does not answer: commands get 503.",
        labels={"instance": "p:1"},
        severity="critical",
    ),
    Case(
        "ShopPostgresConnectionsHigh",
        {
            'pg_stat_activity_count{instance="p:1", datname="user_event_db", state="active"}': (
                "5x5 45x15 5x20"
            ),
            'pg_stat_activity_count{instance="p:1", datname="order_event_db", state="idle"}': (
                "5x5 45x15 5x20"
            ),
            'pg_settings_max_connections{instance="p:1"}': "100x60",
        },
        fires=14,
        quiet=(5, 28),
        description="90% of the connections behind p:1 are taken.",
        labels={"instance": "p:1"},
    ),
    Case(
        "ShopMongoDown",
        {'mongodb_up{instance="m:1"}': "1x5 0x5 1x20"},
        fires=9,
        quiet=(5, 18),
        description="The server behind m:1 does not answer: queries are answered from the logs,"
        " and read models are not updated.",
        labels={"instance": "m:1"},
        severity="critical",
    ),
    Case(
        "ShopDiskFillsSoon",
        {**_HERE, _DISK % "available": "40x60 40-0.2x90 22x200", _DISK % "capacity": "100x400"},
        fires=140,
        quiet=(50, 300),
        description="The claim data-shop-postgres-0 is nearly full, or soon will be.",
        labels={"persistentvolumeclaim": "data-shop-postgres-0"},
    ),
    Case(
        "ShopDiskFillsSoon",
        {**_HERE, _DISK % "available": "4x100 60x200", _DISK % "capacity": "100x400"},
        fires=60,
        quiet=(5, 300),
        description="The claim data-shop-postgres-0 is nearly full, or soon will be.",
        labels={"persistentvolumeclaim": "data-shop-postgres-0"},
    ),
    Case(
        "ShopSetupFailed",
        {
            **_HERE,
            'kube_job_failed{condition="true", job_name="shop-setup-0123abcd"}': "0x5 1x5 0x20",
            'kube_job_failed{condition="true", job_name="somebody-else"}': "1x60",
        },
        fires=9,
        quiet=(5, 18),
        description="shop-setup-0123abcd has failed: processes of the new version wait for it.",
        labels={"job_name": "shop-setup-0123abcd"},
        severity="critical",
    ),
    # Samples begin at the epoch, so a time of two days before is negative.
    Case(
        "ShopVerifyOld",
        {'projection_verified_timestamp_seconds{projection="users"}': "-172500x100 6000x60"},
        fires=80,
        quiet=(60, 130),
        description="users was last compared 2d 1h 15m 0s ago.",
        labels={"projection": "users"},
    ),
    Case(
        "ShopBackupOld",
        {
            **_HERE,
            _DUMPED % "shop-user-backup": "-129000x60 3600x100",
            _DUMPED % "somebody-else": "-999999x160",
        },
        fires=40,
        quiet=(15, 80),
        description="The last dump by shop-user-backup, or its creation, was 1d 12h 30m 0s ago.",
        labels={"cronjob": "shop-user-backup"},
        severity="critical",
    ),
    Case(
        "ShopBackupOld",
        {
            **_HERE,
            'kube_cronjob_created{cronjob="a-backup"}': "-129000x160",
            _DUMPED % "a-backup": "_x60 3600x100",
        },
        fires=40,
        quiet=(15, 80),
        description="The last dump by a-backup, or its creation, was 1d 12h 30m 0s ago.",
        labels={"cronjob": "a-backup"},
        severity="critical",
    ),
    Case(
        "ShopContainerRestarts",
        {**_HERE, _RESTARTS: "0x30 4x60"},
        fires=34,
        quiet=(29, 60),
        description="postgres of the pod shop-postgres-0 was started again 4 times.",
        labels={"pod": "shop-postgres-0", "container": "postgres"},
    ),
    Case(
        "ShopAutoscalerAtMaximum",
        {
            **_HERE,
            _SCALER % "status_desired": "2x10 6x30 2x20",
            _SCALER % "spec_max": "6x60",
        },
        fires=30,
        quiet=(20, 50),
        description="shop-gateway wants 6 pods, and may have no more.",
        labels={"horizontalpodautoscaler": "shop-gateway"},
    ),
    Case(
        "ShopExporterDown",
        {
            'up{job="shop", instance="p:1"}': "1x5 0x10 1x20",
            'pg_up{job="shop", instance="p:1"}': "1x5 stale",
        },
        fires=12,
        quiet=(9, 18),
        description="p:1 (job shop) does not answer Prometheus.",
        labels={"job": "shop", "instance": "p:1"},
    ),
)

_OURS = {
    **{build(each, f"{each}:1"): "1x600" for each in ("gateway", "user", "order")},
    **{f'up{{job="shop", instance="{each}:1"}}': "1x600" for each in ("gateway", "user", "order")},
    'dependency_up{job="shop", instance="user:1", server="PostgreSQL"}': "1x600",
    'pool_connections_in_use{job="shop", instance="user:1", server="PostgreSQL"}': "4x600",
    'pool_connections_max{job="shop", instance="user:1", server="PostgreSQL"}': "17x600",
    _CALLS % 200: "0+60x600",
    _CALLS % 409: "0+9x600",  # the caller's fault
    _CALLS % 503: "0x100 2x500",  # two calls in ten hours
    _FAST: "0+69x600",
    'eventstore_events_appended_total{job="shop", instance="user:1", event_type="USER_CREATED"}': (
        "0+10x600"
    ),
    'eventstore_append_duration_seconds_count{aggregate_type="user"}': "0+10x600",
    'eventstore_conflicts_total{aggregate_type="user"}': "0+1x600",
    'eventstore_unsettled_seconds{store="user"}': "0x600",
    'eventstore_deadlines_overdue_seconds{aggregate_type="order_saga"}': "0x60 30x2 0x538",
    'deadlines_total{type="order_saga", outcome="fired"}': "0+1x600",
    'saga_stuck{aggregate_type="order_saga"}': "0x600",
    'relay_events_confirmed_total{store="user"}': "0+10x600",
    'relay_events_returned_total{store="user"}': "0x60 3x600",
    'relay_lag_seconds{store="user"}': "0x600",
    'relay_active{store="user"}': "1x600",
    'projection_lag_seconds{projection="users"}': "1x600",
    'projection_staleness_seconds{projection="users"}': "4x600",
    'projection_parked_streams{projection="users"}': "0x600",
    'projection_dead_letters_total{projection="users"}': "7x600",
}

WELL = {
    "servers that nobody looks into": _OURS,
    "servers with exporters": {
        **_OURS,
        _QUEUE % "users": "1x600",
        _QUEUE % "users.dead-letters": "0x600",
        'rabbitmq_alarms_memory_used_watermark{instance="r:1"}': "0x600",
        'rabbitmq_alarms_free_disk_space_watermark{instance="r:1"}': "0x600",
        'pg_up{instance="p:1"}': "1x600",
        'pg_stat_activity_count{instance="p:1", state="idle"}': "30x600",
        'pg_settings_max_connections{instance="p:1"}': "200x600",
        'mongodb_up{instance="m:1"}': "1x600",
        _DISK % "available": "80-0.01x600",
        _DISK % "capacity": "100x600",
        'kube_job_failed{condition="true", job_name="shop-setup-0123abcd"}': "0x600",
        _DUMPED % "shop-user-backup": "0x600",
        _RESTARTS: "3x300 5x300",
        _SCALER % "status_desired": "2x100 6x10 2x490",
        _SCALER % "spec_max": "6x600",
        'projection_verified_timestamp_seconds{projection="users"}': "0x600",
    },
}
"""A system in which nothing is worth an alert, with and without its servers' own metrics."""
