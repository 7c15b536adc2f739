"""The network lets through what each process needs, and nothing else."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from urllib.parse import urlsplit

import pytest

from tests.chart.network import (
    STRANGERS,
    Edge,
    Peer,
    edges,
    may_receive,
    may_send,
    peer,
    peers,
    policies,
)
from tests.chart.render import EXPORTERS, SERVERS, STACK, VALUES, Pod, Render, render, template
from tests.chart.test_code import environment
from tests.chart.test_pods import references
from tests.graph import GRAPH, OBSERVED

METRICS = {
    (name, 9464)
    for name in GRAPH
    if name not in (*SERVERS, "setup", "test") and not name.endswith("-job")
}
METRICS |= {("rabbitmq", 15692)}

GRAPHS = [("default", GRAPH), ("observability", OBSERVED)]

WITH_POLICIES = [name for name in VALUES if name != "minimal"]


def declared(graph: Mapping[str, Sequence[str]]) -> set[Edge]:
    """The edges of a graph."""
    return {(sender, *_place(place)) for sender, places in graph.items() for place in places}


def _place(text: str) -> tuple[str, int]:
    name, _, port = text.partition(":")
    return name, int(port)


@pytest.mark.parametrize(("values", "graph"), GRAPHS)
def test_the_policies_let_through_exactly_what_is_declared(
    values: str, graph: Mapping[str, Sequence[str]]
) -> None:
    chart = render(values)
    assert {each.name for each in peers(chart)} == set(graph)
    assert edges(chart, peers(chart), peers(chart)) == declared(graph)


@pytest.mark.parametrize(("values", "graph"), GRAPHS)
def test_what_processes_are_told_is_exactly_what_is_declared(
    values: str, graph: Mapping[str, Sequence[str]]
) -> None:
    chart = render(values)
    needed = {(pod.component, *place) for pod in chart.pods for place in told(chart, pod)}
    assert needed == declared(graph)


@pytest.mark.parametrize("values", WITH_POLICIES)
def test_both_ends_of_every_connection_say_the_same(values: str) -> None:
    chart = render(values)
    for a in peers(chart):
        for b in peers(chart):
            if a.name == b.name:
                continue
            for port in b.ports.values():
                sends = may_send(chart, a, b, port)
                if sends or b.name != "gateway":
                    assert sends == may_receive(chart, a, b, port), (a.name, b.name, port)


@pytest.mark.parametrize("values", WITH_POLICIES)
def test_with_any_values_what_is_told_is_what_is_let_through(values: str) -> None:
    chart = render(values)
    here = {each.name for each in peers(chart)}
    needed = {
        (pod.component, *place)
        for pod in chart.pods
        for place in told(chart, pod)
        if place[0] in here
    }
    assert edges(chart, peers(chart), peers(chart)) == needed


@pytest.mark.parametrize("values", WITH_POLICIES)
def test_every_pod_is_denied_what_it_is_not_granted_both_ways(values: str) -> None:
    chart = render(values)
    (deny,) = (
        each for each in chart.of("NetworkPolicy") if each["metadata"]["name"].endswith("-deny")
    )
    assert set(deny["spec"]) == {"podSelector", "policyTypes"}
    for each in peers(chart):
        for way in ("ingress", "egress"):
            assert deny["spec"] in policies(chart, way, each), each.name


@pytest.mark.parametrize("values", ["default", "ha", "keda", "ingress-tls", "names"])
def test_no_policy_holds_for_another_release_or_a_stranger(values: str) -> None:
    chart = render(values)
    for each in [*peers(render(values, release="another")), STRANGERS[0]]:
        assert not policies(chart, "ingress", each)
        assert not policies(chart, "egress", each)


def test_another_release_in_the_namespace_reaches_nothing_but_the_gateway() -> None:
    others = [replace(each, name=f"other {each.name}") for each in peers(render(release="another"))]
    reached = {
        (b.name, port)
        for a in others
        for b in peers(render())
        for port in b.ports.values()
        if may_receive(render(), a, b, port)
    }
    assert reached == {("gateway", 3000)}


def reached_by(chart: Render, name: str) -> set[tuple[str, int]]:
    """Components and ports that one of the strangers may reach."""
    (sender,) = (each for each in STRANGERS if each.name == name)
    return {(receiver, port) for _, receiver, port in edges(chart, [sender], peers(chart))}


def test_by_default_anyone_may_reach_the_gateway_and_nothing_else() -> None:
    for each in STRANGERS:
        expected = {("gateway", 3000)} | (METRICS if each.name == "prometheus" else set())
        assert reached_by(render(), each.name) == expected, each.name


def test_where_values_say_who_may_reach_the_gateway_nobody_else_may() -> None:
    chart = render("ingress-tls")
    assert reached_by(chart, "ingress controller") == {("gateway", 3000)}
    assert reached_by(chart, "prometheus") == METRICS
    for name in ("stranger", "stranger from another namespace", "keda", "dns"):
        assert reached_by(chart, name) == set()
    assert ("test", "gateway", 3000) in edges(chart, peers(chart), peers(chart))


def test_metrics_are_for_those_alone_that_values_name() -> None:
    nobody = render(given={"networkPolicy": {"metricsFrom": []}})
    assert reached_by(nobody, "prometheus") == {("gateway", 3000)}
    peer_of_values = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "keda"}}}
    other = render(given={"networkPolicy": {"metricsFrom": [peer_of_values]}})
    assert reached_by(other, "keda") == {("gateway", 3000)} | METRICS
    assert reached_by(other, "prometheus") == {("gateway", 3000)}


def test_keda_asks_rabbitmq_alone_and_only_where_a_process_scales_by_it() -> None:
    assert ("rabbitmq", 15672) in reached_by(render("keda"), "keda")
    assert ("rabbitmq", 5672) not in reached_by(render("keda"), "keda")
    assert ("rabbitmq", 15672) not in reached_by(render("keda"), "stranger")
    assert ("rabbitmq", 15672) not in reached_by(render(), "keda")


def test_names_are_asked_of_the_clusters_dns_alone() -> None:
    chart = render()
    outside = [each for each in STRANGERS if each.ports]
    found = {(a, b) for a, b, _ in edges(chart, peers(chart), outside)}
    assert found == {(each, "dns") for each in GRAPH if each not in SERVERS}


def test_nothing_else_is_reached_that_is_not_of_the_release() -> None:
    chart = render()
    ports = {port for each in peers(chart) for port in each.ports.values()} | {22, 53, 443, 6443}
    reached = {
        (stranger.name, port)
        for each in peers(chart)
        for stranger in STRANGERS
        for port in ports
        if may_send(chart, each, stranger, port)
    }
    assert reached == {("dns", 53)}


def test_the_servers_reach_nothing_at_all() -> None:
    chart = render()
    for each in peers(chart):
        if each.name in SERVERS:
            assert not any(policy.get("egress") for policy in policies(chart, "egress", each))


def test_external_servers_accept_only_the_pods_that_need_their_ports() -> None:
    chart = render("external")
    ports = {"postgres": 5432, "rabbitmq": 5671, "mongodb": 27017}
    reached: dict[str, set[int]] = {}
    for each in peers(chart):
        away = [
            port for port in (*ports.values(), 15671, 5672, 22, 443) if _leaves(chart, each, port)
        ]
        reached[each.name] = set(away)
    for name, places in GRAPH.items():
        if name in SERVERS:
            continue
        wanted = {ports[server] for server, _ in map(_place, places) if server in ports}
        if name == "setup":
            # no administrator is known for RabbitMQ, and MongoDB's users have names of their own
            wanted = {5432}
        assert reached[name] == wanted, name


def _leaves(chart: Render, sender: Peer, port: int) -> bool:
    """Whether a pod may reach a port of a server that is nobody's pod."""
    return may_send(chart, sender, Peer("away", {}, "nowhere", {"there": port}), port)


def test_an_external_server_whose_peers_are_known_is_reached_there_alone() -> None:
    chart = render("prepared")
    found = [
        rule
        for each in chart.of("NetworkPolicy")
        for rule in each["spec"].get("egress", ())
        if {"port": 5432, "protocol": "TCP"} in rule["ports"]
    ]
    assert found
    assert all(rule["to"] == [{"ipBlock": {"cidr": "192.0.2.10/32"}}] for rule in found)


def test_values_may_open_more_for_a_process() -> None:
    chart = render("names")
    debugger = Peer("debugger", {"app": "debugger"})
    assert may_receive(chart, debugger, peer(chart.pod("user-relay")), 9464)
    assert not may_receive(chart, STRANGERS[0], peer(chart.pod("user-relay")), 9464)
    backup = Peer("backup", {"app": "backup"})
    assert may_receive(chart, backup, peer(chart.pod("postgres")), 5432)
    assert not may_receive(chart, STRANGERS[0], peer(chart.pod("postgres")), 5432)


def test_only_prometheus_of_the_bundled_stack_may_leave_the_namespace() -> None:
    chart = render("observability")
    leaving = {
        (each.name, port)
        for each in peers(chart)
        for port in (22, 53, 80, 443, 4318, 6443)
        if _leaves(chart, each, port)
    }
    assert leaving == {("prometheus", 443), ("prometheus", 6443)}


def test_nobody_but_those_of_the_release_that_need_it_reaches_the_stack() -> None:
    chart = render("observability")
    stack = [peer(chart.pod(name)) for name in STACK]
    assert edges(chart, STRANGERS, stack) == set()
    exporters = [peer(chart.pod(name)) for name in EXPORTERS]
    assert edges(chart, STRANGERS, exporters) == {
        ("prometheus", "postgres-exporter", 9187),
        ("prometheus", "mongodb-exporter", 9216),
    }


def test_spans_go_to_the_port_and_the_peers_of_an_external_endpoint() -> None:
    there = Peer("collector of yours", {}, "tracing", {"otlp": 4318})
    chart = render("monitors")
    for pod in chart.processes().values():
        assert may_send(chart, peer(pod), there, 4318), pod.component
        assert not _leaves(chart, peer(pod), 4318), pod.component
    for endpoint, port in (("https://otlp.example", 443), ("http://otlp.example/v1", 80)):
        anywhere = render(given={"tracing": {"endpoint": endpoint}})
        assert _leaves(anywhere, peer(anywhere.pod("gateway")), port)
        assert not _leaves(anywhere, peer(anywhere.pod("gateway")), 4318)


def test_off_means_that_there_is_no_policy() -> None:
    assert not render("minimal").of("NetworkPolicy")


def told(chart: Render, pod: Pod) -> Iterator[tuple[str, int]]:
    """Hosts and ports that a pod is told of, by component if they have one: by its environment,
    its arguments, its configuration, or by annotations if it looks for those.
    """
    if pod.component in SERVERS:
        return
    if pod.component == "prometheus":
        for each in chart.pods:
            if port := each.annotations.get("prometheus.io/port"):
                yield each.component, int(port)
    for kind, name, _ in references(pod):
        if kind == "ConfigMap":
            for text in chart.named(kind)[name]["data"].values():
                for host, port in re.findall(r"([a-z0-9-]+):(\d+)", text):
                    if host in chart.named("Service"):
                        yield _component(chart, host, int(port))
    for container in pod.containers:
        variables = environment(container)
        for name, value in variables.items():
            if server := re.fullmatch("(.+)_HOST", name):
                yield _component(chart, value, int(variables[f"{server[1]}_PORT"]))
        addresses = json.loads(variables.pop("UPSTREAMS", "{}")).values()
        urls = [each["url"] for each in addresses]
        for text in (*urls, *variables.values(), *container.get("args", ())):
            if text.startswith("http://"):
                url = urlsplit(text)
                assert url.hostname
                yield _component(chart, url.hostname, url.port or 80)


def _component(chart: Render, host: str, port: int) -> tuple[str, int]:
    service = chart.named("Service").get(host)
    if not service:
        return host, port
    component = service["spec"]["selector"]["app.kubernetes.io/component"]
    (target,) = (each["targetPort"] for each in service["spec"]["ports"] if each["port"] == port)
    return component, chart.pod(component).ports[target]


TOY = {"projection": "toy", "queue": "toy", "feed": "order", "reacts": True}


def with_reactor(**given: object) -> Render:
    """The chart with a reactor in the user service, which reads the events of the order service."""
    return render(given={"services": {"user": {"projectors": {"toy": TOY}}}, **given})


@pytest.mark.parametrize("rebuilt", [False, True])
def test_a_reactor_reaches_what_it_needs_and_nothing_else(rebuilt: bool) -> None:
    chart = with_reactor(**({"rebuild": {"projections": ["toy"]}} if rebuilt else {}))
    job = ["mongodb:27017", "order-service:3002", *(["postgres:5432"] if rebuilt else [])]
    toy = ["postgres:5432", "rabbitmq:5672", "mongodb:27017", "order-service:3002"]
    graph = {**GRAPH, "toy": toy, "toy-job": job}
    assert edges(chart, peers(chart), peers(chart)) == declared(graph)
    needed = {(pod.component, *place) for pod in chart.pods for place in told(chart, pod)}
    assert needed == declared(graph)


def test_a_reactor_has_the_login_of_its_own_services_store_and_a_verification_has_none() -> None:
    chart = with_reactor(rebuild={"projections": ["toy"]})
    by_kind = {pod.kind: pod for pod in chart.pods if pod.component in ("toy", "toy-job")}
    assert set(by_kind) == {"Deployment", "CronJob", "Job"}
    for kind, pod in by_kind.items():
        variables = environment(pod.spec["containers"][0])
        if kind == "CronJob":
            assert not [each for each in variables if each.startswith("POSTGRES_")]
            continue
        assert variables["POSTGRES_DATABASE"] == "user_event_db"
        assert variables["POSTGRES_USER"] == "user_service"
        assert variables["POSTGRES_PASSWORD_FILE"] == "/secrets/postgres"
        keys = {key for *_, named in references(pod) for key in named}
        assert keys >= {"user_service", "toy", "order"}


def test_the_pool_of_a_reactor_counts_among_the_connections() -> None:
    few = {"external": {"host": "away", "maxConnections": 70}, "enabled": False}
    toy = {"user": {"projectors": {"toy": TOY}}}
    done, said = template(given={"services": toy, "postgres": few})
    assert not done
    assert "toy 2 pods of 3" in said
