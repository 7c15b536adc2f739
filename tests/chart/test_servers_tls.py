"""`global.serversTls`: the bundled servers take TLS alone, and each client verifies them."""

import re
import subprocess
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.chart.network import edges, peers
from tests.chart.render import (
    EXPORTERS,
    NAMESPACE,
    ROOT,
    SERVERS,
    Object,
    Pod,
    Render,
    notes,
    over,
    parse,
    render,
)
from tests.chart.test_code import environment
from tests.graph import GRAPH

ON: Object = {"global": {"serversTls": {"enabled": True}}}
SECRET = "shop-servers-tls"
CA = [{"key": "ca.crt", "path": "ca.crt"}]
ALL = [{"key": key, "path": key} for key in ("tls.crt", "tls.key", "ca.crt")]


@pytest.fixture(scope="module")
def encrypted() -> Render:
    """Everything that connects to a server, and TLS."""
    return render("servers-tls")


def volumes(pod: Pod) -> dict[str, Object]:
    return {each["name"]: each for each in pod.spec.get("volumes", ())}


def mounts(container: Object) -> dict[str, str]:
    return {each["name"]: each["mountPath"] for each in container.get("volumeMounts", ())}


def test_without_it_nothing_of_it_is_rendered() -> None:
    for values in ("default", "keda", "observability"):
        assert "servers-tls" not in render(values).text
        assert "TLS" not in render(values).text


def test_every_client_of_a_server_verifies_it_by_the_ca(encrypted: Render) -> None:
    seen = set()
    for pod in encrypted.pods:
        for container in pod.containers:
            told = environment(container)
            for server in SERVERS:
                prefix = server.upper()
                if f"{prefix}_HOST" not in told:
                    assert f"tls-{server}" not in mounts(container)
                    continue
                assert told[f"{prefix}_HOST"] == f"shop-{server}", "the certificate's name"
                assert told[f"{prefix}_TLS"] == "on", pod.owner
                assert told[f"{prefix}_CA_FILE"] == f"/tls/{server}/ca.crt"
                assert mounts(container)[f"tls-{server}"] == f"/tls/{server}"
                secret = volumes(pod)[f"tls-{server}"]["secret"]
                assert (secret["secretName"], secret["items"]) == (SECRET, CA), "no client's key"
                seen.add((pod.component, server))
    clients = {
        (sender, place.partition(":")[0])
        for sender, places in GRAPH.items()
        for place in places
        if place.partition(":")[0] in SERVERS
    }
    more = {("gateway", "mongodb"), *((f"{name}-backup", "postgres") for name in ("user", "order"))}
    exporters = {(name, name.removesuffix("-exporter")) for name in EXPORTERS}
    assert seen == clients | more | exporters
    kinds = {pod.kind for pod in encrypted.pods if "tls-postgres" in volumes(pod)}
    assert kinds == {"Deployment", "Job", "CronJob"}


def test_exporters_verify_in_their_own_words(encrypted: Render) -> None:
    postgres, mongodb = (
        environment(encrypted.pod(name).containers[0])
        for name in ("postgres-exporter", "mongodb-exporter")
    )
    place = "sslmode=verify-full&sslrootcert=/tls/postgres/ca.crt"
    assert postgres["DATA_SOURCE_URI"].endswith(f"?{place}")
    assert mongodb["MONGODB_URI"].endswith("?tls=true&tlsCAFile=/tls/mongodb/ca.crt")


PORTS = {
    "postgres": {"postgres": 5432},
    "rabbitmq": {"amqps": 5671, "management": 15671},
    "mongodb": {"mongodb": 27017},
}


def test_the_ports_are_those_of_tls_wherever_they_are_said(encrypted: Render) -> None:
    for name, ports in PORTS.items():
        metrics = {"http-metrics": 15692} if name == "rabbitmq" else {}
        assert encrypted.pod(name).ports == ports | metrics
        service = encrypted.named("Service")[f"shop-{name}"]["spec"]["ports"]
        assert {each["name"]: each["port"] for each in service} == ports
    assert not re.search(r"\b1?5672\b", encrypted.text), "a plain port of RabbitMQ"
    reached = edges(encrypted, peers(encrypted), peers(encrypted))
    own = {(receiver, port) for _, receiver, port in reached if receiver in SERVERS}
    assert own == {(name, port) for name, ports in PORTS.items() for port in ports.values()}
    assert {sender for sender, _, port in reached if port == 15671} == {"setup"}
    told = environment(encrypted.pod("setup").containers[0])
    assert told["RABBITMQ_PORT"] == "15671"
    assert environment(encrypted.pod("user-relay").containers[0])["RABBITMQ_PORT"] == "5671"


@pytest.mark.parametrize("name", SERVERS)
def test_a_server_has_the_certificate_that_only_its_group_reads(
    name: str, encrypted: Render
) -> None:
    pod = encrypted.pod(name)
    secret = volumes(pod)["tls"]["secret"]
    assert (secret["secretName"], secret["items"]) == (SECRET, ALL)
    assert secret["defaultMode"] == 0o440, "PostgreSQL refuses a key that others may read"
    assert mounts(pod.spec["containers"][0])["tls"] == "/tls"
    assert pod.spec["securityContext"]["fsGroup"] == 999


def test_postgres_refuses_plain_connections_and_keeps_its_socket(encrypted: Render) -> None:
    (container,) = encrypted.pod("postgres").spec["containers"]
    args = container["args"]
    assert args[:4] == [
        "-cssl=on",
        "-cssl_cert_file=/tls/tls.crt",
        "-cssl_key_file=/tls/tls.key",
        "-chba_file=/config/pg_hba.conf",
    ]
    assert mounts(container)["config"] == "/config"
    rules = encrypted.named("ConfigMap")["shop-postgres"]["data"]["pg_hba.conf"]
    lines = [line.split() for line in rules.splitlines() if not line.startswith("#")]
    assert [(line[0], line[-1]) for line in lines] == [
        ("local", "trust"),
        ("hostssl", "scram-sha-256"),
    ]
    assert not volumes(render().pod("postgres")).get("config")


def test_mongodb_takes_tls_alone_by_one_file_of_certificate_and_key(
    encrypted: Render, tmp_path: Path
) -> None:
    spec = encrypted.pod("mongodb").spec
    (container,) = spec["containers"]
    args = container["args"]
    assert args[args.index("--tlsMode") + 1] == "requireTLS"
    assert args[args.index("--tlsCAFile") + 1] == "/tls/ca.crt"
    assert "--tlsAllowConnectionsWithoutCertificates" in args
    file = args[args.index("--tlsCertificateKeyFile") + 1]
    assert mounts(container)["pem"] == str(Path(file).parent)
    assert volumes(encrypted.pod("mongodb"))["pem"]["emptyDir"]["medium"] == "Memory"

    (init,) = spec["initContainers"]
    for part in ("crt", "key"):
        (tmp_path / f"tls.{part}").write_text(f"the {part}, without a line break")
    program, flags, script = init["command"]
    script = script.replace(file, f"{tmp_path}/server.pem").replace("/tls/", f"{tmp_path}/")
    subprocess.run([program, flags, script], check=True)
    made = tmp_path / "server.pem"
    assert made.read_text().splitlines() == [
        f"the {part}, without a line break" for part in ("crt", "key")
    ]
    assert made.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("name", SERVERS)
def test_a_server_is_ready_only_if_clients_could_verify_it(name: str, encrypted: Render) -> None:
    (container,) = encrypted.pod(name).spec["containers"]
    probes = {
        each: container[f"{each}Probe"]["exec"]["command"]
        for each in ("startup", "readiness", "liveness")
    }
    for each in ("startup", "readiness"):
        if name == "postgres":
            assert "host=shop-postgres " in probes[each][-1]
            assert "sslmode=verify-full sslrootcert=/tls/ca.crt" in probes[each][-1]
        else:
            assert probes[each] == ["bash", "/config/answers", "verified"]
    assert "verif" not in str(probes["liveness"]), "an expired certificate ends no connection"
    plain = render().pod(name).spec["containers"][0]
    assert container["livenessProbe"] == plain["livenessProbe"]


def test_keda_asks_by_https_and_verifies_by_the_ca(encrypted: Render) -> None:
    (scaler,) = encrypted.of("ScaledObject")
    host = scaler["spec"]["triggers"][0]["metadata"]["host"]
    assert host == "https://shop-rabbitmq.elsewhere.svc:15671/"
    (login,) = encrypted.of("TriggerAuthentication")
    assert {"parameter": "ca", "name": SECRET, "key": "ca.crt"} in login["spec"]["secretTargetRef"]
    (switch,) = login["spec"]["configMapTargetRef"]
    assert switch["parameter"] == "tls"
    data = encrypted.named("ConfigMap")[switch["name"]]["data"]
    assert data[switch["key"]] == "enable", "KEDA's word for it"
    unscaled = render(given=ON)
    assert switch["name"] not in unscaled.named("ConfigMap")


def test_keda_verifies_a_server_of_yours_by_its_ca() -> None:
    tls = {"enabled": True, "caSecret": "my-ca", "caKey": "root.pem"}
    external = {"host": "mq.example.com", "managementPort": 443, "tls": tls}
    chart = render("keda", given={"rabbitmq": {"enabled": False, "external": external}})
    for login in chart.of("TriggerAuthentication"):
        wanted = {"parameter": "ca", "name": "my-ca", "key": "root.pem"}
        assert wanted in login["spec"]["secretTargetRef"]


def test_a_server_of_yours_is_called_as_its_own_values_say() -> None:
    away = {"mongodb": {"enabled": False, "external": {"host": "db.example.com"}}}
    chart = render(given=over(ON, away))
    told = environment(chart.pod("user-service").containers[0])
    assert told["POSTGRES_TLS"] == "on"
    assert "MONGODB_TLS" not in told
    assert told["MONGODB_HOST"] == "db.example.com"


def test_the_secret_may_have_another_name() -> None:
    chart = render(given=over(ON, {"global": {"serversTls": {"secretName": "mine"}}}))
    named = {
        volume["secret"]["secretName"]
        for pod in chart.pods
        for name, volume in volumes(pod).items()
        if name == "tls" or name.startswith("tls-")
    }
    assert named == {"mine"}


def test_the_example_has_a_certificate_for_every_name_that_is_verified(encrypted: Render) -> None:
    made = parse((ROOT / "k8s/production/tls/certificates.yaml").read_text())
    (certificate,) = (each["spec"] for each in made if each["spec"].get("secretName", "") == SECRET)
    names = {name.replace("NAMESPACE", NAMESPACE) for name in certificate["dnsNames"]}
    (scaler,) = encrypted.of("ScaledObject")
    told = {
        environment(container).get(f"{server.upper()}_HOST")
        for pod in encrypted.pods
        for container in pod.containers
        for server in SERVERS
    }
    url = urlsplit(scaler["spec"]["triggers"][0]["metadata"]["host"])
    assert names == told - {None} | {url.hostname}


def test_the_notes_name_the_secret_that_the_pods_wait_for() -> None:
    assert SECRET not in notes()
    said = notes(ON)
    assert SECRET in said
    assert "a certificate for the names shop-postgres, shop-rabbitmq, shop-mongodb." in said
