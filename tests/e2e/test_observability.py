"""On a real cluster the bundled Prometheus finds all metrics by the chart's own annotations.

Parts of the stack whose images cannot be had there are left out, and said so.
"""

import json
import os
import urllib.request
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest

from local.panels.alerts import alerts
from local.services import SERVICES
from tests.certificates import make_ca, sign
from tests.chart.render import EXPORTERS, STACK, render
from tests.e2e.release import ROOT, SERVERS, Release, await_that, run
from tests.e2e.test_release import PROCESSES
from tests.integration.prometheus import Prometheus

pytestmark = pytest.mark.timeout(900)

CRDS = sorted((ROOT / "tests/chart/crds").glob("*.yaml"))
QUEUES = {each.queue for service in SERVICES.values() for each in service.projections}


@cache
def left_out() -> set[str]:
    """Parts that the cluster cannot run. One that builds its images itself pulls none: it runs
    those that it has.
    """
    if not os.environ.get("LOCAL_CLUSTER"):
        return set()
    nodes = json.loads(run("kubectl", "get", "nodes", "--output=json"))["items"]
    there = {
        name
        for node in nodes
        for image in node["status"]["images"]
        for name in image.get("names") or ()
    }
    chart = render("observability")
    return {
        part
        for part in (*STACK, *EXPORTERS)
        if part != "prometheus"  # it has a stand-in, which the node may not have listed yet
        and f"docker.io/{chart.pod(part).containers[0]['image']}" not in there
    }


def settings() -> list[str]:
    """What helm is told for the stack, without what is left out."""
    off = [
        f"exporters.{part.removesuffix('-exporter')}"
        if part in EXPORTERS
        else f"observability.{part}"
        for part in left_out()
    ]
    told = ["observability.enabled=true", "traffic.enabled=true", "ingress.enabled=false"]
    told += ["global.serversTls.enabled=true"]
    told += ["observability.prometheus.interval=2s", *(f"{each}.enabled=false" for each in off)]
    return [f"--set={each}" for each in told]


def give_certificate(release: Release, folder: Path) -> None:
    """Makes the Secret with a certificate of the bundled servers, by a CA of its own."""
    make_ca(folder, "ca")
    sign(folder, "ca", "tls", ",".join(f"DNS:{release.name}-{server}" for server in SERVERS))
    files = [f"--from-file={folder / name}" for name in ("tls.crt", "tls.key", "ca.crt")]
    release.kubectl("create", "secret", "generic", f"{release.name}-servers-tls", *files)


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Release]:
    """A release with the stack, in a namespace of its own that admits only restricted pods.

    Its servers take TLS alone, so whoever is measured there has verified a certificate.
    """
    release = Release("shop", "shop-watched")
    run("kubectl", "delete", "namespace", release.namespace, "--ignore-not-found", "--wait")
    run("kubectl", "create", "namespace", release.namespace)
    label = "pod-security.kubernetes.io/enforce=restricted"
    run("kubectl", "label", "namespace", release.namespace, label)
    give_certificate(release, tmp_path_factory.mktemp("certificates"))
    try:
        release.install(*settings())
        yield release
    finally:
        run("kubectl", "delete", "namespace", release.namespace, "--wait")


@pytest.fixture(scope="module")
def prometheus(watched: Release) -> Iterator[Prometheus]:
    """Its HTTP API, as the printed command makes it reachable."""
    with watched.port("service/shop-prometheus", 9090) as port:
        yield Prometheus(f"http://127.0.0.1:{port}")


def measured() -> set[str]:
    """The components that have metrics there."""
    return {*PROCESSES, "rabbitmq", *(set(EXPORTERS) - left_out())}


def up(prometheus: Prometheus) -> dict[str, list[str]]:
    """What each job's targets answer: 1 if they do."""
    found: dict[str, list[str]] = {}
    for each in prometheus.query("up"):
        found.setdefault(each["metric"]["job"], []).append(each["value"][1])
    return found


def test_every_process_exporter_and_broker_is_found_and_answers(
    prometheus: Prometheus, say: Callable[[str], None]
) -> None:
    wanted = {component: ["1"] for component in measured()}
    say(f"left out: {', '.join(sorted(left_out())) or 'nothing'}")
    try:
        took = await_that(lambda: up(prometheus) == wanted, 180, "all targets are up")
    except AssertionError:
        assert up(prometheus) == wanted
        raise
    say(f"{len(wanted)} targets up {took:.0f} s after helm was done")
    assert set(prometheus.targets().values()) == {"up"}


def test_each_process_says_what_it_is_with_the_labels_that_panels_ask_for(
    watched: Release, prometheus: Prometheus
) -> None:
    found = {
        each["metric"]["job"]: each["metric"] for each in prometheus.query("eventcore_build_info")
    }
    assert set(found) == set(PROCESSES)
    for name, metric in found.items():
        assert metric["namespace"] == watched.namespace
        assert metric["pod"].startswith(f"shop-{name}-")
        assert metric["instance"].endswith(":9464")
        assert metric["version"]


def test_traffic_reaches_the_read_models_so_that_no_board_is_empty(prometheus: Prometheus) -> None:
    def applied() -> set[str]:
        found = prometheus.query("projection_events_applied_total > 0")
        return {each["metric"]["projection"] for each in found}

    wanted = {"users", "orders", "known-users", "customers/user", "customers/order"}
    await_that(lambda: applied() == wanted, 60, "each projection has applied events")


def test_the_broker_tells_of_each_queue(prometheus: Prometheus) -> None:
    def consumed() -> dict[str, str]:
        found = prometheus.query('rabbitmq_queue_consumers{queue!~".+dead-letters"}')
        return {each["metric"]["queue"]: each["value"][1] for each in found}

    await_that(lambda: consumed() == dict.fromkeys(QUEUES, "1"), 60, "each queue has a consumer")
    for metric in ("rabbitmq_connections", "rabbitmq_alarms_memory_used_watermark"):
        assert prometheus.query(metric), metric


def test_postgresqls_exporter_sees_what_panels_show(prometheus: Prometheus) -> None:
    if "postgres-exporter" in left_out():
        pytest.skip("The cluster has no image of it.")
    sizes = {each["metric"]["datname"] for each in prometheus.query("pg_database_size_bytes")}
    assert {"user_event_db", "order_event_db"} <= sizes
    assert [each["value"][1] for each in prometheus.query("pg_up")] == ["1"]
    for metric in (
        "pg_settings_max_connections",
        'pg_stat_activity_count{datname="user_event_db", state="idle"} > 0',
        "pg_stat_activity_max_tx_duration",
        'pg_stat_database_xact_commit{datname="order_event_db"}',
        'pg_stat_database_deadlocks{datname="order_event_db"}',
    ):
        assert prometheus.query(metric), metric


def test_mongodbs_exporter_sees_what_panels_show(prometheus: Prometheus) -> None:
    if "mongodb-exporter" in left_out():
        pytest.skip("The cluster has no image of it.")
    assert [each["value"][1] for each in prometheus.query("mongodb_up")] == ["1"]
    for metric in ('mongodb_ss_connections{conn_type="current"}', "mongodb_ss_opcounters"):
        assert prometheus.query(metric), metric


def test_grafana_loads_every_dashboard(watched: Release) -> None:
    if "grafana" in left_out():
        pytest.skip("The cluster has no image of it.")
    files = (ROOT / "charts/shop/files/dashboards").glob("*.json")
    wanted = {board["uid"]: board for board in (json.loads(file.read_text()) for file in files)}
    with watched.port("service/shop-grafana", 3000) as port:
        url = f"http://127.0.0.1:{port}/api"
        found = {board["uid"] for board in ask(f"{url}/search?type=dash-db")}
        assert found == set(wanted)
        for uid, board in wanted.items():
            loaded = ask(f"{url}/dashboards/uid/{uid}")["dashboard"]
            assert loaded["title"] == board["title"]
            assert len(loaded["panels"]) == len(board["panels"])


def ask(url: str) -> Any:
    """Returns what an HTTP API answers as JSON."""
    with urllib.request.urlopen(url, timeout=10) as answer:
        return json.load(answer)


def test_every_alert_is_evaluated_there(prometheus: Prometheus) -> None:
    def states() -> set[str]:
        return {rule["health"] for rule in prometheus.rules()}

    await_that(lambda: "unknown" not in states(), 60, "each rule has been evaluated")
    names = sorted(rule["name"] for rule in prometheus.rules() if rule["type"] == "alerting")
    assert names == sorted(alert.name for alert in alerts())
    assert states() == {"ok"}


def test_a_second_pod_is_found_and_a_gone_one_forgotten(
    watched: Release, prometheus: Prometheus
) -> None:
    def scraped(wanted: list[str]) -> bool:
        return up(prometheus)["user-projector"] == wanted

    for count in (2, 1):
        watched.kubectl("scale", "deployment/shop-user-projector", f"--replicas={count}")
        await_that(partial(scraped, ["1"] * count), 180, f"{count} projectors are scraped")


@pytest.fixture
def operator(watched: Release) -> Iterator[None]:
    """The kinds of Prometheus' operator are known to the cluster; the operator is not there."""
    known = "crd/podmonitors.monitoring.coreos.com"
    if run("kubectl", "get", known, "--ignore-not-found"):
        yield
        return
    files = [f"--filename={file}" for file in CRDS]
    run("kubectl", "create", *files)
    try:
        wait = ("kubectl", "wait", "--for=condition=Established", "--timeout=60s")
        run(*wait, *files)
        yield
    finally:
        run("kubectl", "delete", *files)


@pytest.mark.usefixtures("operator")
def test_the_api_accepts_monitor_and_rules_and_select_existing_metrics(
    watched: Release, tmp_path: Path
) -> None:
    chart = render("monitors")
    (monitor,), (rule,) = chart.of("PodMonitor"), chart.of("PrometheusRule")
    file = tmp_path / "monitors.json"
    file.write_text(json.dumps({"apiVersion": "v1", "kind": "List", "items": [monitor, rule]}))
    said = watched.kubectl("apply", "--dry-run=server", "--validate=strict", f"--filename={file}")
    assert said.count("created") == 2
    wrong = monitor | {"spec": monitor["spec"] | {"selectors": {}}}
    file.write_text(json.dumps(wrong))
    with pytest.raises(AssertionError, match="unknown field"):
        watched.kubectl("apply", "--dry-run=server", "--validate=strict", f"--filename={file}")

    labels = ",".join(f"{k}={v}" for k, v in monitor["spec"]["selector"]["matchLabels"].items())
    (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
    found = {
        pod["metadata"]["labels"][monitor["spec"]["jobLabel"]]
        for pod in watched.get("pods", f"--selector={labels}")
        for container in pod["spec"]["containers"]
        for port in container.get("ports", ())
        if port["name"] == endpoint["port"]
    }
    assert found == measured()
