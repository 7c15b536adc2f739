"""The connections that NetworkPolicies allow, computed as Kubernetes does it."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tests.chart.render import NAMESPACE, Object, Pod, Render

Edge = tuple[str, str, int]


@dataclass(frozen=True)
class Peer:
    """A pod as policies see it: its labels, where it is, its ports by name."""

    name: str
    labels: Mapping[str, str] = field(default_factory=dict)
    namespace: str = NAMESPACE
    ports: Mapping[str, int] = field(default_factory=dict)


STRANGERS = [
    Peer("stranger"),
    Peer("stranger from another namespace", {"app.kubernetes.io/part-of": "shop"}, "default"),
    Peer("ingress controller", {"app.kubernetes.io/name": "traefik"}, "traefik"),
    Peer("prometheus", {"app.kubernetes.io/name": "prometheus"}, "monitoring"),
    Peer("keda", {"app": "keda-operator"}, "keda"),
    Peer("dns", {"k8s-app": "kube-dns"}, "kube-system", {"dns": 53}),
    Peer("another pod of the system", {"k8s-app": "metrics-server"}, "kube-system", {"dns": 53}),
]
"""Pods that are not of the release; one in its namespace, the others in theirs."""


def peers(chart: Render) -> list[Peer]:
    """The pods of a release, by their components."""
    return [peer(pod) for pod in chart.pods]


def peer(pod: Pod) -> Peer:
    """A pod of the release."""
    return Peer(pod.component, pod.labels, NAMESPACE, pod.ports)


def edges(chart: Render, senders: Iterable[Peer], receivers: Iterable[Peer]) -> set[Edge]:
    """Sender, receiver and port of each connection that both may have."""
    both = [(a, b) for a in senders for b in receivers if a.name != b.name]
    return {
        (a.name, b.name, port)
        for a, b in both
        for port in b.ports.values()
        if may_send(chart, a, b, port) and may_receive(chart, a, b, port)
    }


def may_send(chart: Render, sender: Peer, receiver: Peer, port: int) -> bool:
    """Whether the policies of the sender let it reach the receiver's port."""
    return _may(chart, "egress", sender, receiver, port, receiver)


def may_receive(chart: Render, sender: Peer, receiver: Peer, port: int) -> bool:
    """Whether the policies of the receiver let the sender reach its port."""
    return _may(chart, "ingress", receiver, sender, port, receiver)


def policies(chart: Render, way: str, of: Peer) -> list[Object]:
    """The policies that hold for a pod, for what comes in or what goes out."""
    return [
        each["spec"]
        for each in chart.of("NetworkPolicy")
        if of.namespace == NAMESPACE
        and way.capitalize() in each["spec"]["policyTypes"]
        and _matches(each["spec"]["podSelector"], of.labels)
    ]


def _may(chart: Render, way: str, of: Peer, other: Peer, port: int, receiver: Peer) -> bool:
    holding = policies(chart, way, of)
    if not holding:
        return True
    peers_of = {"egress": "to", "ingress": "from"}[way]
    return any(
        _lets(rule.get(peers_of), other) and _opens(rule.get("ports"), port, receiver)
        for policy in holding
        for rule in policy.get(way) or ()
    )


def _lets(allowed: list[Object] | None, other: Peer) -> bool:
    return not allowed or any(_is(each, other) for each in allowed)


def _is(allowed: Object, other: Peer) -> bool:
    if "ipBlock" in allowed:
        return False
    if "namespaceSelector" in allowed:
        labels = {"kubernetes.io/metadata.name": other.namespace}
        if not _matches(allowed["namespaceSelector"], labels):
            return False
    elif other.namespace != NAMESPACE:
        return False
    return _matches(allowed.get("podSelector", {}), other.labels)


def _opens(allowed: list[Object] | None, port: int, receiver: Peer) -> bool:
    if not allowed:
        return True
    named = [each["port"] for each in allowed]
    return port in [receiver.ports.get(each) if isinstance(each, str) else each for each in named]


def _matches(selector: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    assert set(selector) <= {"matchLabels"}, "only labels are understood here"
    wanted: Mapping[str, str] = selector.get("matchLabels", {})
    return wanted.items() <= labels.items()
