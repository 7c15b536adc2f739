"""The examples of k8s/ fit the docs, the chart and the objects that each server's operator makes.

No operator runs here. What they write, and the names they give, is in tables with their sources.
"""

import re
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import yaml

from local.services import LOGINS
from local.services import SERVICES as SHOP_SERVICES
from tests.chart.render import (
    HELMS,
    KUBERNETES,
    ROOT,
    SERVERS,
    Object,
    Pod,
    Render,
    masked,
    over,
    parse,
    render,
    title,
)
from tests.chart.test_pods import breaches
from tests.chart.test_render import invalid

K8S = ROOT / "k8s"
FILES = sorted(K8S.glob("**/*.yaml"))
OPERATED = {
    "postgres": K8S / "production/cloudnative-pg.yaml",
    "rabbitmq": K8S / "production/rabbitmq.yaml",
    "mongodb": K8S / "production/mongodb.yaml",
}

RESOURCES = {
    ("postgresql.cnpg.io/v1", "Cluster"),
    ("rabbitmq.com/v1beta1", "RabbitmqCluster"),
    ("mongodbcommunity.mongodb.com/v1", "MongoDBCommunity"),
    ("policy/v1", "PodDisruptionBudget"),
}

SECRETS = {
    # cloudnative-pg/cloudnative-pg: pkg/specs/secrets.go, docs/src/applications.md
    "postgres-app": "username user password dbname host port pgpass"
    " uri jdbc-uri fqdn-uri fqdn-jdbc-uri",
    # pkg/certs/certs.go
    "postgres-ca": "ca.crt ca.key",
    # rabbitmq/cluster-operator: internal/resource/default_user_secret.go
    "rabbitmq-default-user": "username password default_user.conf provider type host port",
    # ours: the command at the top of production/mongodb.yaml makes it
    "shop-mongodb-logins": " ".join({*LOGINS["mongodb"], "gateway"} - {"admin"}),
}
"""The Secrets that the examples speak of, each with all of its keys."""

SERVICES = {
    # docs/src/service_management.md: the one that leads to the primary
    "Cluster": "{}-rw",
    # internal/resource/service.go
    "RabbitmqCluster": "{}",
    # docs/mongodbcommunity/users.md in mongodb/mongodb-kubernetes
    "MongoDBCommunity": "{}-svc",
}
"""The Service by which clients find what a resource stands for."""

LABELS = {
    # pkg/utils/labels_annotations.go
    "Cluster": {"cnpg.io/cluster": "{}"},
    # internal/metadata/label.go
    "RabbitmqCluster": {"app.kubernetes.io/name": "{}"},
    # mongodb-community-operator/controllers/construct/mongodbstatefulset.go
    "MongoDBCommunity": {"app": "{}-svc"},
}
"""Labels that operators give to pods."""

WORKLOADS = {"Cluster": set[str](), "RabbitmqCluster": {"{}-server"}, "MongoDBCommunity": {"{}"}}
"""StatefulSets that operators make; CloudNativePG makes pods."""


@cache
def example(server: str) -> Object:
    """The operator's resource that replaces a bundled server; not to be changed."""
    first, *_ = parse(OPERATED[server].read_text())
    assert (first["apiVersion"], first["kind"]) in RESOURCES
    return first


def filled(server: str, template: str) -> str:
    return template.format(example(server)["metadata"]["name"])


def operators() -> Object:
    """The values for the chart on the three operators."""
    values: Object = yaml.safe_load((K8S / "production/values-operators.yaml").read_text())
    return values


def encrypted() -> Object:
    """The same, where all three servers speak TLS."""
    return over(operators(), yaml.safe_load((K8S / "production/tls/values.yaml").read_text()))


@pytest.mark.parametrize("given", [operators, encrypted], ids=lambda each: each.__name__)
def test_the_chart_on_the_operators_is_the_same_by_each_helm_and_valid(
    given: Callable[[], Object],
) -> None:
    first, *others = (
        sorted(masked(render("production", given=given(), program=helm).objects), key=title)
        for helm in HELMS
    )
    assert all(each == first for each in others)
    wrong = [invalid(each, kubernetes) for kubernetes in KUBERNETES for each in first]
    assert not any(wrong)


def test_with_certificates_every_process_speaks_tls_with_every_server() -> None:
    secrets = {"postgres": "postgres-ca", "rabbitmq": "rabbitmq-tls", "mongodb": "mongodb-tls"}
    seen = set()
    for pod in render("production", given=encrypted()).pods:
        told = {each["name"]: each.get("value") for each in variables(pod)}
        volumes = {each["name"]: each for each in pod.spec.get("volumes", ())}
        for server, secret in secrets.items():
            if f"{server.upper()}_HOST" in told:
                assert told[f"{server.upper()}_TLS"] == "on", pod.owner
                assert told[f"{server.upper()}_CA_FILE"] == f"/tls/{server}/ca.crt"
                assert volumes[f"tls-{server}"]["secret"]["secretName"] == secret
                seen.add(server)
    assert seen == set(secrets)


def test_a_certificate_is_made_for_each_name_by_which_a_server_is_called() -> None:
    made = parse((K8S / "production/tls/certificates.yaml").read_text())
    issuers = {each["metadata"]["name"] for each in made if each["kind"] == "Issuer"}
    certificates = {
        each["spec"]["secretName"]: each["spec"] for each in made if each["kind"] == "Certificate"
    }
    assert {each["issuerRef"]["name"] for each in certificates.values()} <= issuers
    servers = {
        each["kind"]: each for each in parse((K8S / "production/tls/servers.yaml").read_text())
    }
    rabbitmq, mongodb = servers["RabbitmqCluster"], servers["MongoDBCommunity"]
    values = encrypted()
    for server, secret in (
        (rabbitmq, rabbitmq["spec"]["tls"]["secretName"]),
        (mongodb, mongodb["spec"]["security"]["tls"]["certificateKeySecretRef"]["name"]),
    ):
        assert server["metadata"]["name"] in ("rabbitmq", "mongodb")
        host = values[server["metadata"]["name"]]["external"]["host"]
        assert host in certificates[secret]["dnsNames"], "clients verify this name"
        assert values[server["metadata"]["name"]]["external"]["tls"]["caSecret"] == secret


def test_with_certificates_services_take_tls_alone_under_their_names() -> None:
    certificates = {
        each["spec"]["secretName"]: each["spec"]["dnsNames"]
        for each in parse((K8S / "production/tls/certificates.yaml").read_text())
        if each["kind"] == "Certificate" and "dnsNames" in each["spec"]
    }
    called, served = set(), set()
    for pod in render("production", given=encrypted()).pods:
        told = {each["name"]: str(each.get("value")) for each in variables(pod)}
        urls = re.findall(r"https?://shop-[^\s\"]+", " ".join(told.values()))
        if pod.component in ("test", "traffic"):
            continue
        called |= {(urlsplit(url).scheme, urlsplit(url).hostname) for url in urls}
        volumes = {each["name"]: each["secret"] for each in pod.spec["volumes"] if "secret" in each}
        if "TLS_CERT_FILE" in told:
            assert volumes["tls-services"]["secretName"] == "shop-services-tls"
            probes = pod.spec["containers"][0]
            for each in ("startupProbe", "readinessProbe"):
                assert probes[each]["httpGet"]["scheme"] == "HTTPS"
            served.add(pod.component)
        if urls:
            assert told["SSL_CERT_FILE"] == "/tls/services/ca.crt", pod.owner
            assert [each["key"] for each in volumes["tls-services"]["items"]] == ["ca.crt"]
    assert served == {f"{name}-service" for name in SHOP_SERVICES}
    assert called == {("https", name) for name in certificates["shop-services-tls"]}


def test_what_is_merged_into_an_operators_resource_is_of_the_same_name() -> None:
    names = {(each["kind"], each["metadata"]["name"]) for each in map(example, SERVERS)}
    for each in parse((K8S / "production/tls/servers.yaml").read_text()):
        assert (each["kind"], each["metadata"]["name"]) in names
        assert (each["apiVersion"], each["kind"]) in RESOURCES


def test_production_spreads_each_process_over_zones_and_nodes() -> None:
    for name, pod in render("production").processes().items():
        constraints = pod.spec["topologySpreadConstraints"]
        assert [each["topologyKey"] for each in constraints] == [
            "topology.kubernetes.io/zone",
            "kubernetes.io/hostname",
        ], name
        for each in constraints:
            assert each["labelSelector"]["matchLabels"].items() <= pod.labels.items()
            # by them each process is spread by itself, and the new pods of an update too
            component, template = each["matchLabelKeys"]
            assert (component, template) == ("app.kubernetes.io/component", "pod-template-hash")
            assert component in pod.labels


@pytest.fixture(params=["default", "production"])
def operated(request: pytest.FixtureRequest) -> Render:
    """The chart on the three operators, by itself and over the production values."""
    return render(request.param, given=operators())


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_every_file_is_yaml_without_a_key_that_is_there_twice(file: Path) -> None:
    assert all(isinstance(each, dict) for each in parse(file.read_text()))


def test_every_example_is_of_a_kind_that_its_operator_knows() -> None:
    for file in OPERATED.values():
        for each in parse(file.read_text()):
            assert (each["apiVersion"], each["kind"]) in RESOURCES
            assert "namespace" not in each["metadata"], "the namespace is the user's to choose"


def test_kind_maps_the_ports_that_the_docs_name_to_those_of_the_ingress() -> None:
    (node,) = yaml.safe_load((K8S / "kind.yaml").read_text())["nodes"]
    mapped = {each["hostPort"]: each["containerPort"] for each in node["extraPortMappings"]}
    assert {each["listenAddress"] for each in node["extraPortMappings"]} == {"127.0.0.1"}
    ports = traefik("traefik-values.yaml")["ports"]
    assert sorted(mapped.values()) == sorted(each["hostPort"] for each in ports.values())
    docs = ROOT / "local/cluster-up", K8S / "README.md", K8S / "kind.yaml"
    said = " ".join(file.read_text() for file in docs)
    assert {int(port) for port in re.findall(r"localhost:(8\d+)", said)} == set(mapped)


def test_traefik_needs_no_load_balancer_and_frees_its_ports_on_an_upgrade() -> None:
    values = traefik("traefik-values.yaml")
    assert values["service"] == {"enabled": False}
    assert values["updateStrategy"]["rollingUpdate"]["maxSurge"] == 0
    assert values["ingressClass"]["isDefaultClass"]


def test_the_gateway_listens_where_traefik_does_by_default() -> None:
    listener = traefik("traefik-gateway-values.yaml")["gateway"]["listeners"]["web"]
    assert listener["port"] == 8000
    assert "port" not in traefik("traefik-values.yaml")["ports"]["web"]


def traefik(file: str) -> Object:
    values: Object = yaml.safe_load((K8S / file).read_text())
    return values


def test_a_server_can_be_switched_beside_the_bundled_one() -> None:
    bundled = {(each["kind"], each["metadata"]["name"]) for each in render().objects}
    for server in SERVERS:
        kind = example(server)["kind"]
        makes = {("Service", filled(server, SERVICES[kind]))}
        makes |= {("StatefulSet", filled(server, name)) for name in WORKLOADS[kind]}
        makes |= {("PodDisruptionBudget", example(server)["metadata"]["name"])}
        assert not makes & bundled
    assert not {("Secret", name) for name in SECRETS} & bundled


def test_nothing_of_the_bundled_servers_is_left(operated: Render) -> None:
    assert not operated.of("StatefulSet")
    assert not {pod.component for pod in operated.pods} & set(SERVERS)


@pytest.mark.parametrize("server", SERVERS)
def test_every_pod_goes_to_the_operators_service(server: str, operated: Render) -> None:
    service = filled(server, SERVICES[example(server)["kind"]])
    hosts = [
        variable.get("value")
        for pod in operated.pods
        for variable in variables(pod)
        if variable["name"] == f"{server.upper()}_HOST"
    ]
    assert hosts
    assert set(hosts) == {service}


def test_every_key_of_a_secret_is_one_that_is_written(operated: Render) -> None:
    rendered = {name: set(secret["data"]) for name, secret in operated.named("Secret").items()}
    known = rendered | {name: set(keys.split()) for name, keys in SECRETS.items()}
    used = [use for pod in operated.pods for use in secret_keys(pod)]
    assert set(SECRETS) <= {name for name, _ in used}
    assert not [(name, key) for name, key in used if key not in known.get(name, set())]


def secret_keys(pod: Pod) -> Iterator[tuple[str, str]]:
    """The Secrets that a pod takes something from, with the keys."""
    for variable in variables(pod):
        if reference := variable.get("valueFrom", {}).get("secretKeyRef"):
            yield reference["name"], reference["key"]
    for volume in pod.spec.get("volumes", ()):
        projected = volume.get("projected", {}).get("sources", [])
        sources = [source["secret"] for source in projected if "secret" in source]
        if "secret" in volume:
            sources.append({**volume["secret"], "name": volume["secret"]["secretName"]})
        for source in sources:
            for item in source["items"]:
                yield source["name"], item["key"]


def variables(pod: Pod) -> list[Object]:
    return [variable for each in pod.containers for variable in each.get("env", ())]


@pytest.mark.parametrize("server", SERVERS)
def test_peers_are_the_pods_that_the_operator_labels(server: str) -> None:
    labels = LABELS[example(server)["kind"]]
    expected = {key: filled(server, value) for key, value in labels.items()}
    (peer,) = operators()[server]["external"]["peers"]
    assert peer == {"podSelector": {"matchLabels": expected}}


@pytest.mark.parametrize("server", ["rabbitmq", "mongodb"])
def test_one_pod_of_a_server_at_a_time_may_be_drained(server: str) -> None:
    (budget,) = parse(OPERATED[server].read_text())[1:]
    labels = LABELS[example(server)["kind"]]
    expected = {key: filled(server, value) for key, value in labels.items()}
    assert budget["spec"] == {"maxUnavailable": 1, "selector": {"matchLabels": expected}}


def test_mongodb_has_each_login_with_the_rights_that_setup_would_give() -> None:
    spec = example("mongodb")["spec"]
    limited = {"rateLimits": {"read": "6000/minute"}}
    operated = render("production", given=over(operators(), limited))
    needed = {}
    for name, pod in operated.processes().items():
        told = {each["name"]: each.get("value") for each in variables(pod)}
        if "MONGODB_USER" in told:
            needed[told["MONGODB_USER"]] = told["MONGODB_DATABASE"], name.endswith("-service")
    assert needed
    declared = {user["name"]: user for user in spec["users"]}
    assert set(declared) == set(needed) == set(SECRETS["shop-mongodb-logins"].split())
    for login, (database, reads) in needed.items():
        user = declared[login]
        assert user["db"] == database, "the database is where its login is looked for"
        assert user["roles"] == [{"name": "read" if reads else "readWrite", "db": database}]
        assert user["passwordSecretRef"] == {"name": "shop-mongodb-logins", "key": login}
    names = [user["scramCredentialsSecretName"] for user in spec["users"]]
    assert len(set(names)) == len(names)


def test_the_command_for_the_passwords_of_mongodb_names_every_login() -> None:
    comment = OPERATED["mongodb"].read_text().split("apiVersion")[0]
    names = " ".join(re.findall(r"for login in(.*?);", comment, re.DOTALL)[0].split("\\\n#"))
    assert set(names.split()) == set(SECRETS["shop-mongodb-logins"].split())


def test_mongodb_is_found_as_the_replica_set_that_it_is_and_retries_writes() -> None:
    options = operators()["mongodb"]["external"]["options"]
    assert options == filled("mongodb", "replicaSet={}")


def test_each_server_has_three_of_its_kind() -> None:
    counts = {"postgres": "instances", "rabbitmq": "replicas", "mongodb": "members"}
    assert {example(server)["spec"][count] for server, count in counts.items()} == {3}


def test_postgres_acknowledges_and_fails_over_only_what_a_standby_has() -> None:
    postgresql = example("postgres")["spec"]["postgresql"]
    assert postgresql["synchronous"] == {
        "method": "any",
        "number": 1,
        "dataDurability": "required",
        "failoverQuorum": True,
    }


def test_setup_is_no_superuser_of_postgres() -> None:
    spec = example("postgres")["spec"]
    owner = spec["bootstrap"]["initdb"]["owner"]
    assert spec["bootstrap"]["initdb"]["postInitSQL"] == [f"alter role {owner} createdb createrole"]
    assert not spec.get("enableSuperuserAccess")
    assert "managed" not in spec, "it would take from the owner what it was granted since"


def test_postgres_takes_all_connections_that_the_autoscalers_may_ask_for() -> None:
    operated = render("production", given=operators())
    most = {
        each["spec"]["scaleTargetRef"]["name"]: each["spec"]["maxReplicas"]
        for each in operated.of("HorizontalPodAutoscaler")
    }
    asked = 0
    for deployment in operated.of("Deployment"):
        name, spec = deployment["metadata"]["name"], deployment["spec"]
        told = {
            each["name"]: each.get("value")
            for container in spec["template"]["spec"]["containers"]
            for each in container.get("env", ())
        }
        if "POSTGRES_HOST" in told:
            pods = most.get(name) or spec["replicas"]
            serves = "MONGODB_HOST" in told
            asked += (pods + 1) * (int(told.get("THREADS") or 16) + 1 if serves else 1)
    reserved = 3 + 3 + 10  # superusers', the operator's own, and the setup Job's with room
    assert asked > 100
    available = int(example("postgres")["spec"]["postgresql"]["parameters"]["max_connections"])
    assert asked + reserved <= available


def test_rabbitmqs_pods_meet_the_restricted_standard() -> None:
    override = example("rabbitmq")["spec"]["override"]["statefulSet"]["spec"]["template"]["spec"]
    assert [each["name"] for each in override["initContainers"]] == ["setup-container"]
    assert [each["name"] for each in override["containers"]] == ["rabbitmq"]
    assert not list(breaches(override))


def test_mongodbs_pods_meet_the_restricted_standard_where_values_can() -> None:
    pod = example("mongodb")["spec"]["statefulSet"]["spec"]["template"]["spec"]["securityContext"]
    assert pod["runAsNonRoot"]
    assert pod["runAsUser"] > 0
    assert pod["seccompProfile"] == {"type": "RuntimeDefault"}
