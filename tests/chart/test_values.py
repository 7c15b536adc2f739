"""Every value is documented, known to the schema, checked, and of use."""

import json
import os
import re
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from local.chart_docs import README, Undescribed, described, with_table
from local.services import PROCESSES, PROJECTORS
from tests.chart.render import (
    CHART,
    HELMS,
    PLANTED,
    SERVERS,
    Object,
    over,
    parse,
    template,
)
from tests.chart.values import Path, at, documented, leaves, maps

OPEN = [
    r"services|services\.\w+\.projectors|processes",  # one more is an entry, which is checked
    r"image\.digests",  # by service
    r".*\.env",  # settings of processes that values add
    r"(.*\.)?(podAnnotations|podLabels|serviceAnnotations|nodeSelector|annotations)",
    r"global\.(commonLabels|commonAnnotations)",
    r"ingress\.tls\.secrets",  # by host
    r".*\.(affinity|behavior|podSecurityContext|securityContext)",  # Kubernetes checks them
    r".*\.extra\.pod",
    r".*\.resources\.(requests|limits)",
    r".*\.auth\.(secretKeys|users|passwords)",  # by login
    r"postgres\.parameters",
    r"restore\.stores",  # by store
    r"rateLimits\.costs",  # by path
    r"podMonitor\.labels|alerts\.(labels|extraLabels)",
]
"""Maps of values that take any key."""

UNUSED = {
    "auth.generate": "it decides whether a rendering without passwords is refused",
    "postgres.external.maxConnections": "it decides whether values that ask for more are refused",
}
"""Values that change nothing that is rendered, each with the reason why."""

PARTS = 6
"""So many tests look at all values, each at a part."""

PEER = {"podSelector": {"matchLabels": {"app": "changed"}}}

CHANGED: list[tuple[str, Any]] = [
    (r"global\.scrape", "none"),
    (r"tracing\.endpoint", "http://changed.example:4318"),
    (r"tracing\.ratio", 0.5),
    (r"podMonitor\.(interval|scrapeTimeout)|observability\.prometheus\.(interval|retention)", "7s"),
    (r"observability\.prometheus\.size", "3Gi"),
    (r"observability\.prometheus\.apiPorts", [8443]),
    (r"podMonitor\.\w*[rR]elabelings", [{"action": "labeldrop", "regex": "changed"}]),
    (r"alerts\.exclude", ["ShopDeadLetters"]),
    (r"exporters\.\w+\.enabled", True),
    (r".*pullSecrets|global\.imagePullSecrets", ["changed"]),
    (r".*pullPolicy", "Always"),
    (r"image\.digests", {"order": "sha256:" + "c" * 64}),
    (r".*digest", "sha256:" + "c" * 64),
    (r".*serviceType", "NodePort"),
    (r".*\.size", "9Gi"),
    (r".*\.(requests|limits)\.\w+", "123Mi"),
    (r".*\.extra\.env", [{"name": "THREADS", "value": "8"}]),
    (r".*\.extra\.envFrom", [{"secretRef": {"name": "changed"}}]),
    (r".*\.extra\.(volumes|volumeMounts|initContainers|containers)", [{"name": "changed"}]),
    (r".*\.extra\.pod", {"runtimeClassName": "changed"}),
    (r"mongodb\.args", ["--ipv6"]),
    (r".*\.tolerations", [{"operator": "Exists"}]),
    (r".*\.affinity", {"podAffinity": {}}),
    (r".*\.behavior", {"scaleDown": {"stabilizationWindowSeconds": 60}}),
    (r".*\.(podSecurityContext|securityContext)", {"runAsUser": 12345}),
    (r".*\.topologySpreadConstraints", [{"maxSkew": 2}]),
    (r".*\.(extraIngress|extraEgress)", [{"ports": [{"port": 1}]}]),
    (r"networkPolicy\.\w+From|networkPolicy\.dns|.*\.peers", [PEER]),
    (r"processes\.gateway\.service", "order"),
    (r"processes\.gateway\.run", "relay"),
    (r"services\.\w+\.paths", ["/changed"]),
    (r"services\.user\.projectors\.user-credit\.feed", "user"),
    (r"services\..*\.feed", "order"),
    (r"auth\.generate", "never"),
    (r".*ttlSecondsAfterFinished", 60),
    (r"ingress\.paths", ["/changed"]),
    (r"rateLimits\.(read|write)", "9/minute"),
    (r"rateLimits\.trustedProxies", ["10.0.0.0/8"]),
    (r"ingress\.hosts", ["changed.example"]),
    (r"ingress\.tls\.secrets", {"shop.example": "changed"}),
    (r"networkPolicy\.dnsPorts", [5353]),
    (r"httpRoute\.parentRefs", [{"name": "changed"}]),
    (r"httpRoute\.hostnames", ["changed.example"]),
    (r"rebuild\.projections", ["orders"]),
    (r"(verify|backup)\.schedule", "5 4 * * *"),
    (r"backup\.upload\.to", "backup:changed"),
    (r"backup\.upload\.ports", [9000]),
    (r"restore\.stores", {"user": "latest"}),
    (r"restore\.maxAge", "3d"),
    (r"extraObjects", [{"kind": "ConfigMap", "metadata": {"name": "changed"}}]),
    (r"postgres\.auth\.(secretKeys|users|passwords)", {"user_service": "Changed.Password"}),
    (r"rabbitmq\.auth\.(secretKeys|users|passwords)", {"user-relay": "Changed.Password"}),
    (r"mongodb\.auth\.(secretKeys|users|passwords)", {"user-service": "Changed.Password"}),
    (r"auth\.jwks", "http://changed.example:8080/keys"),
    (r"identity\.auth\.(secretKeys|passwords)", {"user": "Changed.Password"}),
    (r"feed\.auth\.(secretKeys|passwords)", {"user": "Changed.Password"}),
]
"""Other values for those that take not just anything."""

EXTERNAL = {
    server: {
        "enabled": False,
        "external": {
            "host": "away",
            "secret": "given",
            "secretKeys": {"host": "" if server == "rabbitmq" else "host", "adminUser": "user"},
            "tls": {"enabled": True, "caSecret": "ca"},
        },
    }
    for server in SERVERS
}

PLAIN = over(EXTERNAL, {server: {"external": {"tls": {"enabled": False}}} for server in SERVERS})

THERE = {server: {"external": {"host": "away"}} for server in SERVERS}

BARE = over(
    EXTERNAL,
    {server: {"external": {"secretKeys": {"host": "", "adminUser": ""}}} for server in SERVERS},
)

UNSCALED = {
    "processes": {
        name: {"keda": {"enabled": False}} for name in PROCESSES if name not in PROJECTORS
    }
}

SCALED = {"processes": {name: {"keda": {"enabled": True}} for name in PROJECTORS}}

ROOMY = {"postgres": {"parameters": {"max_connections": 1000}}}

OBSERVED = {"observability": {"enabled": True}}

TRAFFIC = {"traffic": {"enabled": True}}

IDENTITY: Object = {
    "auth": {
        "enabled": True,
        "issuer": "https://issuer.example.com/",
        "audience": "shop",
        "jwks": "https://issuer.example.com/keys",
        "apiKeys": {"secret": "keys"},
        "client": {"secret": "client"},
    },
    "identity": {"auth": {"passwords": {"user": "Planted.user", "order": "Planted.order"}}},
}

BACKUP = {"backup": {"enabled": True}}

UPLOADED = over(BACKUP, {"backup": {"upload": {"to": "backup:bucket"}}})

ENCRYPTED_INGRESS = {
    "ingress": {"enabled": True, "hosts": ["shop.example"], "tls": {"enabled": True}}
}

RESTORED = {"restore": {"stores": {"user": "latest"}}}

WITHIN: list[tuple[str, Object]] = [
    (r"tracing\.(endpoint|ratio|peers)", {"tracing": {"endpoint": "http://away.example:4318"}}),
    (r"auth\.enabled", {"auth": {**IDENTITY["auth"], "enabled": False}}),
    (r"(auth|identity)\.(?!generate).*", IDENTITY),
    (r"podMonitor\..*", {"global": {"scrape": "monitor"}}),
    (r"alerts\.(?!prometheusRule).*", {"alerts": {"prometheusRule": True}}),
    (r"exporters\.\w+\.enabled", {}),
    (r"exporters\..*|observability\.\w+\..*", OBSERVED),
    (r"(postgres|rabbitmq|mongodb)\.enabled", THERE),
    (r"\w+\.external\.tls\.enabled", PLAIN),
    (r"\w+\.external\.(host|adminUser)", BARE),
    (r"\w+\.external\..*", EXTERNAL),
    (r".*\.autoscaling\.enabled", ROOMY),
    (r".*\.autoscaling\..*", over(ROOMY, {"defaults": {"autoscaling": {"enabled": True}}})),
    (r"defaults\.keda\.enabled", UNSCALED),
    (r".*\.keda\..*|.*\.queue|networkPolicy\.managementFrom", SCALED),
    (r".*\.pdb\..*", {"defaults": {"replicas": 2}}),
    (r"ingress\.enabled", {}),
    (r"ingress\.tls\.enabled", {"ingress": {"enabled": True}}),
    (r"ingress\..*", ENCRYPTED_INGRESS),
    (r"tls\.secretName", {"tls": {"enabled": True}}),
    (r"global\.serversTls\.secretName", {"global": {"serversTls": {"enabled": True}}}),
    (r"rebuild\.(?!projections).*", {"rebuild": {"projections": ["orders"]}}),
    (r"backup\.enabled|restore\.stores", {}),
    (r"backup\.upload\.(?!to).*", UPLOADED),
    (r"backup\..*", BACKUP),
    (r"traffic\.(?!enabled).*", TRAFFIC),
    (r"restore\.maxAge", over(UPLOADED, RESTORED)),
    (r"restore\..*", RESTORED),
    (r"rateLimits\.(costs.*|trustedProxies)", {"rateLimits": {"read": "600/minute"}}),
    (r"httpRoute\.enabled", {"httpRoute": {"parentRefs": [{"name": "public"}]}}),
    (r"httpRoute\..*", {"httpRoute": {"enabled": True, "parentRefs": [{"name": "public"}]}}),
]  # fmt: skip
"""What else values must say for some of them to matter: the first that fits."""


def test_every_value_has_a_description() -> None:
    rows = {row.name for row in described(CHART)}
    undescribed = [
        ".".join(path)
        for path, _ in leaves(documented())
        if not any(".".join(path[:end]) in rows for end in range(1, len(path) + 1))
    ]
    assert not undescribed


def test_the_readme_has_every_value_with_its_description_and_default() -> None:
    text = README.read_text()
    assert text == with_table(text, described(CHART)), "run `make docs`"


def test_a_value_without_a_description_is_an_error(tmp_path: Any) -> None:
    (tmp_path / "values.yaml").write_text("a:\n  # -- known\n  b: 1\n  c: 2\n")
    with pytest.raises(Undescribed, match=r"a\.c"):
        described(tmp_path)


@pytest.mark.timeout(900)
@pytest.mark.parametrize("part", range(PARTS))
def test_every_documented_value_is_used(part: int) -> None:
    """Changed alone, each changes what is rendered."""
    assert not set(UNUSED) - {name(path) for path, _ in leaves(documented())}
    known = sorted(leaves(documented()), key=lambda each: name(each[0]))
    begin, end = (len(known) * each // PARTS for each in (part, part + 1))
    paths = [(path, value) for path, value in known[begin:end] if name(path) not in UNUSED]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        found = list(pool.map(lambda each: _effect(*each), paths))
    unused = [name(path) for (path, _), effect in zip(paths, found, strict=True) if not effect]
    assert not unused, "\n".join(unused)


_rendered: dict[str, str] = {}


def _effect(path: Path, value: Any) -> bool:
    base = over(PLANTED, first(WITHIN, name(path)) or {})
    other = at(path, changed(path, value))
    return _text(base) != _text(over(base, other))


def _text(given: Object) -> str:
    key = json.dumps(given, sort_keys=True)
    if key not in _rendered:
        done, text = template(given=given)
        assert done, f"{text}: {given}"
        _rendered[key] = text
    return _rendered[key]


def changed(path: Path, value: Any) -> Any:
    """Another value for the one at this path."""
    if (known := first(CHANGED, name(path))) is not None:
        return known
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
    if isinstance(value, str):
        return f"changed{value}".replace("/", "-")
    assert value == {}, f"{name(path)}: say in CHANGED what else it may be"
    return {"changed": "changed"}


@pytest.mark.parametrize("program", HELMS)
def test_a_value_that_is_unknown_is_refused_with_its_name(program: str) -> None:
    paths = [path for path in maps(documented()) if not _is_one_of(OPEN, path)]
    given: Object = {}
    for path in paths:
        given = over(given, at((*path, "unknownKey"), "value"))
    done, said = template(program=program, given=given)
    assert not done
    refused = re.findall(r"at '([^']*)': additional properties 'unknownKey' not allowed", said)
    assert {"/" + "/".join(path) if path else "" for path in paths} == set(refused)


@pytest.mark.parametrize(
    ("given", "place"),
    [
        ({"ingres": {}}, "'': additional properties 'ingres'"),
        ({"image": {"tags": "1"}}, "'/image': additional properties 'tags'"),
        (
            {"processes": {"gateway": {"replica": 2}}},
            "'/processes/gateway': additional properties 'replica'",
        ),
        (
            {"postgres": {"persistence": {"sizes": "1Gi"}}},
            "'/postgres/persistence': additional properties 'sizes'",
        ),
    ],
)  # fmt: skip
def test_a_typing_error_is_named_where_it_is(given: Object, place: str) -> None:
    done, said = template(given=given)
    assert not done
    assert place in said


@pytest.mark.parametrize("program", HELMS)
def test_a_value_of_a_wrong_type_is_refused_with_its_name(program: str) -> None:
    given: Object = {}
    wanted = set()
    for path, value in leaves(documented()):
        wrong: Any = "wrong" if isinstance(value, dict | list) else {"wrong": "type"}
        given = over(given, at(path, wrong))
        wanted.add("".join("/" + key.replace("/", "~1") for key in path))  # RFC 6901
    done, said = template(program=program, given=given)
    assert not done
    refused = set(re.findall(r"at '([^']*)': (?:got|value must be|'.*' does not match)", said))
    assert wanted - refused == set()


@pytest.mark.parametrize(
    "given",
    [
        {"image": {"tag": "latest"}},
        {"defaults": {"replicas": -1}},
        {"processes": {"gateway": {"port": 70000}}},
        {"processes": {"Gateway": {"service": "gateway", "run": "serve"}}},
        {"services": {"parcel": {"port": 3003}}},
        {"services": {"parcel": {"port": 3003, "paths": ["parcels"]}}},
        {"processes": {"one-more": {"service": "user", "run": "do something"}}},
        {"postgres": {"auth": {"passwords": {"admin": "short"}}}},
        {"rabbitmq": {"auth": {"passwords": {"admin": "what's this, a quote"}}}},
    ],
)
def test_a_value_that_could_not_work_is_refused(given: Object) -> None:
    done, said = template(given=given)
    assert not done
    assert "don't meet the specifications of the schema" in said


def test_a_process_of_no_service_is_refused_with_its_name() -> None:
    done, said = template(given={"processes": {"one-more": {"service": "user"}}})
    assert not done
    assert "say its service and what it runs, in processes.one-more.service" in said


def test_one_more_process_is_one_more_entry() -> None:
    given = {
        "processes": {
            "mailer": {
                "service": "user",
                "run": "project mails",
                "feed": "user",
                "queue": "mail_queue",
                "keda": {"enabled": True},
            }
        }
    }
    objects = parse(template(given=given)[1])
    mine = [each["kind"] for each in objects if each["metadata"]["name"] == "shop-mailer"]
    assert sorted(mine) == ["Deployment", "NetworkPolicy", "ScaledObject", "TriggerAuthentication"]
    secrets = {each["metadata"]["name"]: each for each in objects if each["kind"] == "Secret"}
    assert "mailer" in secrets["shop-rabbitmq"]["data"]
    assert "mailer" in secrets["shop-mongodb"]["data"]


def test_a_number_of_a_million_stays_a_number() -> None:
    """Helm reads every number as a float, and would print it with an exponent."""
    given: Object = {
        "postgres": {"parameters": {"max_connections": 2000000}},
        "defaults": {"env": {"QUEUE_BYTES": 536870912}},
        "setup": {"env": {"QUEUE_BYTES": 536870912}},
        "processes": {"user-projector": {"keda": {"enabled": True}, "env": {"BATCH": 1234567}}},
        "rebuild": {"projections": ["orders"]},
        "observability": {"enabled": True},
        "image": {"tag": 20261127},
    }
    small = (
        r"traffic\.rate|processes\..*\.port|.*[pP]ort|.*maxConnections|.*\.enabled|.*\.external\..*"
    )
    for path, value in leaves(documented()):
        if type(value) is int and not re.fullmatch(small, name(path)):
            given = over(given, at(path, 1234567))
    given = over(given, {"defaults": {"autoscaling": {"maxReplicas": 1}, "replicas": 3}})
    done, text = template(given=over(PLANTED, given))
    assert done, text
    assert 'value: "536870912"' in text
    assert "--sample=1234567" in text
    assert "max_traces: 1234567" in text
    assert "image: shop-user:20261127" in text
    rendered = "\n".join(line for line in text.splitlines() if '"expr"' not in line)
    assert not re.findall(r"\b[0-9.]+e\+[0-9]+", rendered)


@pytest.mark.parametrize("place", ["image", "postgres.image", "exporters.mongodb.image"])
def test_a_tag_may_be_a_number(place: str) -> None:
    given = at((*place.split("."), "tag"), 18)
    done, text = template(given=over(OBSERVED, given))
    assert done, text
    assert re.search(r"image: \S+:18\n", text)


def name(path: Path) -> str:
    """A path as --set takes it."""
    return ".".join(path)


def first(known: list[tuple[str, Any]], text: str) -> Any:
    """What is known for the first pattern that fits."""
    return next((value for pattern, value in known if re.fullmatch(pattern, text)), None)


def _is_one_of(patterns: list[str], path: Path) -> bool:
    return any(re.fullmatch(pattern, name(path)) for pattern in patterns)
