"""Observability: discovery of metrics, dashboards, alerts, exporters, the stack."""

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from local.packages import prometheus_programs
from local.panels.alerts import NAMESPACE as ANY_NAMESPACE
from local.panels.alerts import alerts
from local.panels.objectives import records
from tests.chart.render import (
    CHART,
    EXPORTERS,
    NAMESPACE,
    STACK,
    Object,
    Pod,
    Render,
    notes,
    render,
    template,
)

PORTS = {"rabbitmq": 15692, "postgres-exporter": 9187, "mongodb-exporter": 9216}
"""The places of metrics that are not a process's own."""

BOARDS = {file.stem: file for file in (CHART / "files/dashboards").glob("*.json")}


def measured(chart: Render) -> dict[str, Pod]:
    """The pods that have metrics, by component."""
    return {pod.component: pod for pod in chart.pods if "http-metrics" in pod.ports}


def annotations(pod: Pod) -> dict[str, str]:
    """The annotations by which a Prometheus finds a pod."""
    return {key: text for key, text in pod.annotations.items() if key.startswith("prometheus.io/")}


def test_every_process_exporter_and_broker_has_a_metrics_port_of_one_name(
    chart: Render,
) -> None:
    expected = dict.fromkeys(chart.processes(), 9464)
    expected |= {
        pod.component: PORTS[pod.component] for pod in chart.pods if pod.component in PORTS
    }
    assert {name: pod.ports["http-metrics"] for name, pod in measured(chart).items()} == expected


def test_metrics_are_found_by_annotations_or_by_a_monitor_never_by_both(chart: Render) -> None:
    way = chart.values.get("global", {}).get("scrape", "annotations")
    assert bool(chart.of("PodMonitor", "ServiceMonitor")) == (way == "monitor")
    for pod in chart.pods:
        found = annotations(pod)
        if way == "annotations" and "http-metrics" in pod.ports:
            assert found == {
                "prometheus.io/scrape": "true",
                "prometheus.io/port": str(pod.ports["http-metrics"]),
                "prometheus.io/path": "/metrics",
            }, pod.owner
        else:
            assert not found, pod.owner


def test_without_either_nobody_is_told() -> None:
    chart = render(
        given={"global": {"scrape": "none"}, "exporters": {"postgres": {"enabled": True}}}
    )
    assert not chart.of("PodMonitor")
    assert not [pod.owner for pod in chart.pods if annotations(pod)]


def test_an_annotation_of_yours_wins() -> None:
    given = {"defaults": {"extra": {"podAnnotations": {"prometheus.io/scrape": "false"}}}}
    assert annotations(render(given=given).pod("gateway"))["prometheus.io/scrape"] == "false"


def test_the_monitor_finds_every_pod_with_metrics_at_the_port_it_names() -> None:
    chart = render("monitors")
    (monitor,) = chart.of("PodMonitor")
    spec = monitor["spec"]
    (endpoint,) = spec["podMetricsEndpoints"]
    selected = [
        pod
        for pod in chart.pods
        if spec["selector"]["matchLabels"].items() <= dict(pod.labels).items()
        and endpoint["port"] in pod.ports
    ]
    assert {pod.component for pod in selected} == set(measured(chart)) >= set(PORTS)
    assert all(spec["jobLabel"] in pod.labels for pod in selected)
    another = render("monitors", release="another")
    assert not [
        pod for pod in another.pods if spec["selector"]["matchLabels"].items() <= pod.labels.items()
    ]


def test_monitor_and_rules_have_the_labels_that_an_operator_selects() -> None:
    chart = render("monitors")
    (monitor,), (rule,) = chart.of("PodMonitor"), chart.of("PrometheusRule")
    assert monitor["metadata"]["labels"]["release"] == "monitoring"
    assert rule["metadata"]["labels"]["release"] == "monitoring"
    (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
    assert endpoint == {
        "port": "http-metrics",
        "path": "/metrics",
        "interval": "30s",
        "scrapeTimeout": "10s",
        "relabelings": [{"targetLabel": "cluster", "replacement": "east"}],
        "metricRelabelings": [
            {"sourceLabels": ["__name__"], "regex": "python_gc_.+", "action": "drop"}
        ],
    }


@pytest.mark.parametrize(
    "given", [{"global": {"scrape": "monitor"}}, {"alerts": {"prometheusRule": True}}]
)
def test_without_an_operator_its_objects_are_refused_in_a_sentence(given: Object) -> None:
    done, said = template(given=given, operator=False)
    assert not done
    assert "this cluster does not know monitoring.coreos.com/v1. Install the operator first" in said


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"global": {"scrape": "annotation"}}, "global.scrape is annotation: it must be"),
        (
            {"global": {"scrape": "monitor"}, "observability": {"enabled": True}},
            "the bundled Prometheus looks for annotations",
        ),
        (
            {"alerts": {"prometheusRule": True, "exclude": ["ShopDown"]}},
            "alerts.exclude: there is no alert ShopDown",
        ),
    ],
)
def test_what_cannot_be_is_refused_in_a_sentence(given: Object, sentence: str) -> None:
    done, said = template(given=given)
    assert not done
    assert sentence in said


def boards(chart: Render) -> dict[str, Object]:
    """The ConfigMaps that hold a dashboard, by its file's name."""
    return {
        name.removesuffix(".json"): each
        for each in chart.of("ConfigMap")
        for name in each["data"]
        if name.endswith(".json")
    }


def shown(chart: Render) -> dict[str, Object]:
    """The dashboards, by their file's name."""
    return {name: json.loads(*each["data"].values()) for name, each in boards(chart).items()}


def test_each_dashboard_is_in_a_config_map_with_an_id_of_the_release(chart: Render) -> None:
    found = shown(chart)
    assert set(found) == set(BOARDS)
    base = chart.values.get("alerts", {}).get("runbooks", "")
    for name, board in found.items():
        expected = json.loads(BOARDS[name].read_text())
        assert len(board["uid"]) <= 40, "Grafana takes no longer one"
        variables = {each["name"]: each for each in expected["templating"]["list"]}
        variables["runbooks"]["query"] = base
        assert board == expected | {"uid": board["uid"]}
    assert len({board["uid"] for board in found.values()}) == len(found)


def test_two_releases_share_no_dashboard_and_no_alert() -> None:
    here, there = render("monitors"), render("monitors", release="another")
    ids = [{board["uid"] for board in shown(each).values()} for each in (here, there)]
    assert not ids[0] & ids[1]
    (rule,) = here.of("PrometheusRule")
    boards_of_alerts = {each["annotations"]["dashboard_url"] for each in rules(rule["spec"])}
    assert boards_of_alerts <= {f"/d/{uid}" for uid in ids[0]}
    for each in rules(rule["spec"]):
        assert ANY_NAMESPACE not in each["expr"]
        of_servers = re.search(r"\b(rabbitmq|pg|mongodb)_", each["expr"])
        assert of_servers or f'{{namespace="{NAMESPACE}"' in each["expr"], each["alert"]


@pytest.mark.parametrize(
    ("values", "label", "folder"),
    [
        ("default", ("grafana_dashboard", "1"), ("grafana_folder", "Shop")),
        ("monitors", ("grafana_board", "shop"), ("grafana_folder", "Orders")),
    ],
)
def test_dashboards_have_the_label_and_the_folder_that_a_sidecar_looks_for(
    values: str, label: tuple[str, str], folder: tuple[str, str]
) -> None:
    for each in boards(render(values)).values():
        assert label in each["metadata"]["labels"].items()
        assert folder in each["metadata"]["annotations"].items()


def test_dashboards_may_be_left_out() -> None:
    off: Object = {"dashboards": {"enabled": False}}
    assert not boards(render(given=off))
    bundled = render(given=off | {"observability": {"enabled": True}})
    assert set(boards(bundled)) == set(BOARDS), "the bundled Grafana shows them"


def rules(groups: Object, kind: str = "alert") -> list[Object]:
    """All rules of a kind, `alert` or `record`, of all groups."""
    return [rule for group in groups["groups"] for rule in group["rules"] if kind in rule]


def test_the_rules_are_those_of_the_rule_file_without_those_left_out() -> None:
    (rule,) = render("monitors").of("PrometheusRule")
    found = rules(rule["spec"])
    recorded = rules(rule["spec"], "record")
    assert [each["record"] for each in recorded] == [each["record"] for each in records()]
    assert all(f'{{namespace="{NAMESPACE}"' in each["expr"] for each in recorded)
    kept = [each for each in alerts() if each.name != "ShopDiskFillsSoon"]
    own = f'namespace="{NAMESPACE}"'
    assert [(each["alert"], each["expr"]) for each in found] == [
        (each.name, each.rule()["expr"].replace(ANY_NAMESPACE, own)) for each in kept
    ]
    for each, alert in zip(found, kept, strict=True):
        assert each["labels"] == {"severity": alert.severity, "team": "checkout"}
        link = f"https://git.example/shop/blob/main/docs/runbooks/{alert.name}.md"
        assert each["annotations"]["runbook_url"] == link


def test_the_bundled_prometheus_loads_all_alerts_as_they_are() -> None:
    config = render("observability").named("ConfigMap")["shop-prometheus"]["data"]
    loaded = rules(yaml.safe_load(config["alerts.yaml"]))
    written = rules(yaml.safe_load((CHART / "files/alerts.yaml").read_text()))
    own = f'namespace="{NAMESPACE}"'
    assert [(each["alert"], each["expr"]) for each in loaded] == [
        (each["alert"], each["expr"].replace(ANY_NAMESPACE, own)) for each in written
    ]


def test_exporters_are_there_where_somebody_asks_for_them() -> None:
    def there(given: Object) -> set[str]:
        return {pod.component for pod in render(given=given).pods} & set(EXPORTERS)

    stack: Object = {"observability": {"enabled": True}}
    assert there({}) == set()
    assert there(stack) == set(EXPORTERS)
    assert there({"exporters": {"mongodb": {"enabled": True}}}) == {"mongodb-exporter"}
    assert there(stack | {"exporters": {"mongodb": {"enabled": False}}}) == {"postgres-exporter"}
    no_prometheus = {"enabled": True, "prometheus": {"enabled": False}}
    assert there({"observability": no_prometheus}) == set()


def test_an_exporter_brings_its_login_and_one_step_of_setup_makes_it(chart: Render) -> None:
    there = {pod.component for pod in chart.pods}
    for server in ("postgres", "mongodb"):
        exported = f"{server}-exporter" in there
        for each in chart.of("Secret"):
            if each["metadata"]["labels"]["app.kubernetes.io/component"] == server:
                assert ("monitor" in each["data"]) == exported
        making = [
            container["name"]
            for pod in chart.pods
            for container in pod.containers
            if f"--monitor={server}" in container.get("args", ())
        ]
        if exported and "setup" in there:
            assert making == ["provision-order"], "once: MongoDB refuses a second at the same time"
        if not exported:
            assert not making


def test_exporters_reach_a_server_of_yours_as_processes_do() -> None:
    tls = {"enabled": True, "caSecret": "ca"}
    away: Object = {
        "postgres": {"enabled": False, "external": {"host": "db", "port": 6432, "tls": tls}},
        "mongodb": {
            "enabled": False,
            "external": {"host": "docs", "options": "replicaSet=rs0", "tls": tls},
            "auth": {"users": {"monitor": "watcher"}},
        },
        "exporters": {"postgres": {"enabled": True}, "mongodb": {"enabled": True}},
    }
    chart = render(given=away)
    postgres, mongodb = (expanded(chart.pod(name)) for name in EXPORTERS)
    assert postgres["DATA_SOURCE_URI"] == (
        "db:6432/postgres?sslmode=verify-full&sslrootcert=/tls/postgres/ca.crt"
    )
    assert postgres["DATA_SOURCE_USER"] == "monitor"
    assert mongodb["MONGODB_URI"] == (
        "mongodb://docs:27017/admin?replicaSet=rs0&tls=true&tlsCAFile=/tls/mongodb/ca.crt"
    )
    assert mongodb["MONGODB_USER"] == "watcher"


def expanded(pod: Pod) -> dict[str, str]:
    """A pod's variables as its process has them: $(NAME) is what was said above it."""
    found: dict[str, str] = {}
    for each in pod.spec["containers"][0]["env"]:
        text = each.get("value", "")
        for name in re.findall(r"\$\((\w+)\)", text):
            text = text.replace(f"$({name})", found[name])
        found[each["name"]] = text
    return found


def test_every_process_is_told_where_spans_go_and_what_it_is() -> None:
    for values, endpoint, ratio in (
        ("observability", "http://shop-collector:4318", "0.5"),
        ("monitors", "http://collector.tracing:4318", "0.1"),
    ):
        for name, pod in render(values).processes().items():
            told = {each["name"]: each for each in pod.spec["containers"][0]["env"]}
            assert told["OTEL_EXPORTER_OTLP_ENDPOINT"]["value"] == endpoint
            assert told["OTEL_TRACES_SAMPLER_ARG"]["value"] == ratio
            attributes = told["OTEL_RESOURCE_ATTRIBUTES"]["value"]
            assert f"k8s.deployment.name=shop-{name}" in attributes.split(",")
            order = list(told)
            for variable in re.findall(r"\$\((\w+)\)", attributes):
                assert "fieldRef" in told[variable]["valueFrom"]
                assert order.index(variable) < order.index("OTEL_RESOURCE_ATTRIBUTES")


def test_without_an_endpoint_nothing_of_traces_is_told() -> None:
    for pod in render().processes().values():
        names = {each["name"] for each in pod.spec["containers"][0]["env"]}
        assert not [name for name in names if "OTEL" in name or "TRACE" in name]
    without = {"observability": {"enabled": True, "collector": {"enabled": False}}}
    text = json.dumps(render(given=without).objects)
    assert "OTEL_EXPORTER" not in text


def test_the_stack_is_off_by_default_and_each_part_can_be_left_out() -> None:
    assert not {pod.component for pod in render().pods} & {*STACK, *EXPORTERS}
    assert {pod.component for pod in render("observability").pods} >= {*STACK, *EXPORTERS}
    for part in STACK:
        chart = render(given={"observability": {"enabled": True, part: {"enabled": False}}})
        assert {pod.component for pod in chart.pods} & set(STACK) == set(STACK) - {part}
        assert f"shop-{part}" not in json.dumps(chart.objects), (
            "nobody is sent to what is not there"
        )


def test_the_stacks_images_are_official_and_of_one_exact_version() -> None:
    official = {
        "prometheus": "prom/prometheus",
        "grafana": "grafana/grafana",
        "collector": "otel/opentelemetry-collector",
        "jaeger": "jaegertracing/jaeger",
        "postgres-exporter": "prometheuscommunity/postgres-exporter",
        "mongodb-exporter": "percona/mongodb_exporter",
    }
    chart = render("observability")
    for component, name in official.items():
        (container,) = chart.pod(component).containers
        assert re.fullmatch(rf"{name}:v?\d+\.\d+\.\d+", container["image"])


def test_prometheus_may_read_the_pods_of_its_namespace_and_nothing_else() -> None:
    chart = render("observability")
    assert not chart.of("ClusterRole", "ClusterRoleBinding")
    (role,), (binding,) = chart.of("Role"), chart.of("RoleBinding")
    assert role["rules"] == [
        {"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list", "watch"]}
    ]
    assert binding["roleRef"]["name"] == role["metadata"]["name"]
    (account,) = chart.of("ServiceAccount")
    assert binding["subjects"] == [{"kind": "ServiceAccount", "name": account["metadata"]["name"]}]
    spec = chart.pod("prometheus").spec
    assert spec["serviceAccountName"] == account["metadata"]["name"]
    for kind in ("Role", "RoleBinding", "ServiceAccount"):
        assert not render().of(kind)


def configuration(name: str, given: Any = None) -> Object:
    """The configuration that one of the stack is given, read as it reads it."""
    chart = render("observability", given=given)
    pod = chart.pod(name)
    (argument,) = (each for each in pod.spec["containers"][0]["args"] if "--config" in each)
    file = argument.rpartition("/")[2]
    config: Object = yaml.safe_load(chart.named("ConfigMap")[f"shop-{name}"]["data"][file])
    return config


@pytest.mark.parametrize("name", ["collector", "jaeger"])
def test_what_a_pipeline_names_is_configured_and_nothing_else_is(name: str) -> None:
    config = configuration(name)
    pipelines = config["service"]["pipelines"].values()
    for kind in ("receivers", "processors", "exporters"):
        assert {each for pipeline in pipelines for each in pipeline[kind]} == set(config[kind])
    assert set(config["service"]["extensions"]) == set(config["extensions"])


def test_a_collector_without_jaeger_writes_what_it_gets_into_its_log() -> None:
    config = configuration("collector", {"observability": {"jaeger": {"enabled": False}}})
    assert set(config["exporters"]) == {"debug"}
    assert config["service"]["pipelines"]["traces"]["exporters"] == ["debug"]


def test_the_stack_listens_where_its_pods_and_services_say() -> None:
    chart = render("observability")
    said = json.dumps(configuration("collector")) + json.dumps(configuration("jaeger"))
    listening = {int(port) for port in re.findall(r"0\.0\.0\.0:(\d+)", said)}
    ports = {*chart.pod("collector").ports.values(), *chart.pod("jaeger").ports.values()}
    assert listening == ports - {16686}, "which is where Jaeger's page is by default"


def test_grafana_has_its_sources_and_dashboards_and_nobody_logs_in() -> None:
    chart = render("observability")
    data = chart.named("ConfigMap")["shop-grafana"]["data"]
    sources = yaml.safe_load(data["sources.yaml"])["datasources"]
    assert {each["type"]: each["url"] for each in sources} == {
        "prometheus": "http://shop-prometheus:9090",
        "jaeger": "http://shop-jaeger:16686",
    }
    (provider,) = yaml.safe_load(data["dashboards.yaml"])["providers"]
    pod = chart.pod("grafana")
    (container,) = pod.containers
    mounts = {each["mountPath"]: each["name"] for each in container["volumeMounts"]}
    (shown,) = (v for v in pod.spec["volumes"] if v["name"] == mounts[provider["options"]["path"]])
    mounted = {source["configMap"]["name"] for source in shown["projected"]["sources"]}
    assert mounted == {each["metadata"]["name"] for each in boards(chart).values()}
    told = {each["name"]: each["value"] for each in container["env"]}
    assert told["GF_AUTH_ANONYMOUS_ORG_ROLE"] == "Viewer", "who cannot save"
    assert told["GF_USERS_VIEWERS_CAN_EDIT"] == "true", "and may explore"
    assert told["GF_AUTH_DISABLE_LOGIN_FORM"] == told["GF_AUTH_ANONYMOUS_ENABLED"] == "true"
    assert told["GF_SECURITY_DISABLE_INITIAL_ADMIN_CREATION"] == "true"
    assert not [name for name in told if "PASSWORD" in name]
    home = told["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert home.removeprefix(f"{provider['options']['path']}/").removesuffix(".json") in BOARDS


def test_a_changed_configuration_of_the_stack_restarts_what_reads_it() -> None:
    def configs(given: Object) -> dict[str, str]:
        chart = render(given={"observability": {"enabled": True}} | given)
        return {name: chart.pod(name).annotations["checksum/config"] for name in STACK}

    before, after = configs({}), configs({"alerts": {"exclude": ["ShopDeadLetters"]}})
    assert {name for name in STACK if before[name] != after[name]} == {"prometheus"}


def test_prometheus_forgets_before_its_volume_is_full() -> None:
    for size, megabytes in (("2Gi", 1536), ("400Mi", 300)):
        given = {"observability": {"enabled": True, "prometheus": {"size": size}}}
        pod = render(given=given).pod("prometheus")
        assert f"--storage.tsdb.retention.size={megabytes}MB" in pod.containers[0]["args"]
        assert {"name": "data", "emptyDir": {"sizeLimit": size}} in pod.spec["volumes"]


def test_the_notes_name_services_and_ports_that_are_there() -> None:
    for values, parts in (("observability", ("grafana", "prometheus", "jaeger")), ("default", ())):
        chart = render(values)
        said = notes(values=values)
        forwarded = re.findall(r"port-forward service/shop-(\w+) (\d+):(\d+) .*:(\d+)$", said, re.M)
        assert [part for part, *_ in forwarded] == list(parts)
        for part, mine, port, shown in forwarded:
            assert mine == shown
            ports = chart.named("Service")[f"shop-{part}"]["spec"]["ports"]
            assert int(port) in [each["port"] for each in ports]
    assert 'the label grafana_dashboard: "1"' in notes()


def test_prometheus_takes_its_configuration(tmp_path: Path) -> None:
    data = render("observability").named("ConfigMap")["shop-prometheus"]["data"]
    for name, text in data.items():
        (tmp_path / name).write_text(text.replace("/config/", f"{tmp_path}/"))
    file = tmp_path / "prometheus.yaml"
    config = yaml.safe_load(file.read_text())
    for job in config["scrape_configs"]:
        # which Debian's build of Prometheus does not know: how pods are found is for a cluster
        (found,) = job.pop("kubernetes_sd_configs")
        assert (found["role"], found["namespaces"]) == ("pod", {"own_namespace": True})
    file.write_text(yaml.safe_dump(config))
    promtool = str(prometheus_programs() / "promtool")
    done = subprocess.run(
        [promtool, "check", "config", str(file)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert f"{len([*alerts(), *records()])} rules found" in done.stdout
