"""The chart says what the code says: processes, commands, images, queues, variables, logins."""

import importlib
import json
from collections.abc import Iterator, Mapping
from urllib.parse import urlsplit

import pytest
import yaml

from eventcore.model.service import STORE_LOGINS, Service
from eventcore.model.view import AnyProjection, View
from eventcore.operate.provision import COUNTERS
from eventcore.reactor import Reactor
from eventcore.settings import (
    ProjectionSettings,
    ProjectorSettings,
    ProvisionSettings,
    ReactionSettings,
    ReactorSettings,
    RelaySettings,
    Secret,
    Server,
    Settings,
    StoreSettings,
    ViewProjectorSettings,
    ViewSettings,
)
from local.processes import Process, Servers, processes
from local.services import SERVICES
from tests.chart.render import (
    PLANTED,
    ROOT,
    SERVERS,
    Object,
    Pod,
    Render,
    over,
    parse,
    render,
    template,
)
from tests.chart.test_pods import files
from tests.chart.values import documented
from tests.environment import settings_from, variables

PORTS = {"gateway": 3000} | {f"{name}-service": each.port for name, each in SERVICES.items()}

TUNING = {
    "BATCH",
    "CACHE_MARGIN",
    "CONSISTENCY_COOKIE",
    "CONSISTENCY_WAIT",
    "CORS_ORIGINS",
    "CREDIT_LIMIT",
    "DELIVERY_LIMIT",
    "HOST",
    "KNOWN_USER_WAIT",
    "LEASE",
    "QUEUE_BYTES",
    "SWEEP_INTERVAL",
    "THREADS",
    "UNIQUE_EMAILS",
    "WINDOW",
}
"""Settings with a default that is right for most: `env` of the values has them if need be."""

IDENTITY: Object = {
    "enabled": True,
    "issuer": "https://issuer.example.com/",
    "audience": "shop",
    "jwks": "https://issuer.example.com/keys",
    "apiKeys": {"secret": "keys"},
}
"""Values by which callers are asked for a credential."""

OF_THE_SDK = {"OTEL_RESOURCE_ATTRIBUTES", "K8S_NAMESPACE", "K8S_POD", "K8S_NODE"}
"""Variables that OpenTelemetry's SDK reads itself, and their source in the chart."""

OF_OPENSSL = {"SSL_CERT_FILE"}
"""Variables that OpenSSL reads itself."""


@pytest.fixture(scope="module")
def local_processes(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Process]:
    """The processes as `make run` starts them, by name."""
    server = Server("127.0.0.1", 1, "/", "any", Secret("none"))
    servers = Servers(server, server, {name: _readmodel(name) for name in SERVICES})
    folder = tmp_path_factory.mktemp("secrets")
    found = processes(servers, folder, ports=PORTS, free_port=lambda: 9464)
    return {each.name: each for each in found}


def _readmodel(service: str) -> Server:
    return Server("127.0.0.1", 1, f"{service}_read_model", "any", Secret("none"))


def test_the_cluster_runs_the_processes_that_a_laptop_runs(
    local_processes: Mapping[str, Process],
) -> None:
    in_cluster = {name: pod.spec["containers"][0] for name, pod in render().processes().items()}
    assert set(in_cluster) == set(local_processes)
    for name, process in local_processes.items():
        assert tuple(in_cluster[name]["args"]) == process.argv[3:], name
        assert service_of(in_cluster[name]) == process.env["SERVICE"], name


def test_the_cluster_tells_each_process_what_a_laptop_tells_it(
    local_processes: Mapping[str, Process],
) -> None:
    for name, pod in render().processes().items():
        (container,) = pod.spec["containers"]
        told = settings_of(container)
        on_laptop = settings_from(local_processes[name].env, kind_of(container))
        assert gist(told) == gist(on_laptop), name


def gist(settings: Settings) -> Object:
    """The settings of a process that are the same wherever it runs."""
    told = dict(settings)
    store, readmodel, feed = told.get("store"), told.get("readmodel"), told.get("feed")
    return {
        "service": settings.service,
        "port": told.get("port"),
        "metrics": settings.metrics_port,
        "store": store and (store.name, store.user),
        "broker": "broker" in told,
        "readmodel": readmodel and readmodel.name,
        "token": feed and bool(feed.token.file),
        "urls": {
            name: urlsplit(url).port
            for name, url in {**told, "feed": getattr(feed, "url", None)}.items()
            if name == "feed"
        },
        "upstreams": {
            name: (urlsplit(each.url).port, each.paths)
            for name, each in told.get("upstreams", {}).items()
        },
    }


def test_every_process_reads_its_settings_from_what_it_is_told(chart: Render) -> None:
    for pod in chart.processes().values():
        (container,) = pod.spec["containers"]
        told = settings_of(container)
        assert told.metrics_port == pod.ports["http-metrics"]
        assert dict(told).get("port") == pod.ports.get("http")


def test_every_step_of_the_setup_job_has_all_its_settings(
    chart: Render,
) -> None:
    for container in setup_steps(chart):
        settings_of(container)


def test_no_process_is_told_what_it_does_not_read(chart: Render) -> None:
    containers = [pod.spec["containers"][0] for pod in chart.processes().values()]
    for container in [*containers, *setup_steps(chart)]:
        read = variables() | {f"{name}_FILE" for name in variables()} | OF_THE_SDK | OF_OPENSSL
        unread = set(environment(container)) - read
        assert not unread, container["name"]


def test_every_setting_is_told_by_the_chart_or_has_a_default() -> None:
    tls = {"enabled": True, "caSecret": "ca"}
    external = {"host": "away", "options": "some", "tls": tls}
    away: Object = {server: {"enabled": False, "external": external} for server in SERVERS}
    away["tracing"] = {"endpoint": "http://collector:4318"}
    away["tls"] = {"enabled": True}
    away["auth"] = IDENTITY
    away["rateLimits"] = {"read": "6000/minute"}
    told = {
        name
        for pod in render(given=away).processes().values()
        for name in environment(pod.spec["containers"][0])
    }
    as_files = {name.removesuffix("_FILE") for name in told if name.endswith("_FILE")}
    in_image = {"SERVICE", "VERSION", "REVISION"}
    assert variables() - told - as_files - TUNING == in_image
    assert variables() >= TUNING


def test_the_gateway_reaches_no_server_and_has_no_password() -> None:
    gateway = render().pod("gateway")
    assert not [name for name in environment(gateway.spec["containers"][0]) if "FILE" in name]
    assert [volume["name"] for volume in gateway.spec["volumes"]] == ["tmp"]


def test_every_process_has_a_login_of_its_own_and_a_reactor_its_services_store() -> None:
    chart = render()
    stores = {
        each.name: ("POSTGRES", f"{service.name}_service")
        for service in SERVICES.values()
        for each in service.projectors
        if isinstance(each.projection, Reactor)
    }
    seen: set[tuple[str, str]] = set()
    for name, pod in chart.processes().items():
        told = environment(pod.spec["containers"][0])
        for server in ("POSTGRES", "RABBITMQ", "MONGODB"):
            if user := told.get(f"{server}_USER"):
                if stores.get(name) == (server, user):
                    continue
                assert (server, user) not in seen, name
                assert user != "admin"
                seen.add((server, user))
        assert keys(pod) == {*_passwords(told)}, name


def _passwords(variables: Mapping[str, str]) -> Iterator[str]:
    for server in ("POSTGRES", "RABBITMQ", "MONGODB"):
        if f"{server}_USER" in variables:
            yield variables[f"{server}_USER"]
    for name in variables:
        if name.startswith("FEED_") and name.endswith("_TOKEN_FILE"):
            url = variables.get(name.removesuffix("TOKEN_FILE") + "URL", "")
            owner = (urlsplit(url).hostname or "").removeprefix("shop-").removesuffix("-service")
            yield owner or _service_of(variables)


def _service_of(variables: Mapping[str, str]) -> str:
    return variables["POSTGRES_USER"].removesuffix("_service")


def keys(pod: Pod) -> set[str]:
    """The keys of Secrets that a pod mounts."""
    return {
        item["key"]
        for volume in pod.spec["volumes"]
        for source in volume.get("projected", {}).get("sources", ())
        for item in source["secret"]["items"]
    }


def test_images_are_named_for_the_folders_of_services() -> None:
    folders = {each.parent.name for each in (ROOT / "services").glob("*/main.py")}
    images = {
        image(each) for pod in render().pods for each in pod.containers if pod.kind != "StatefulSet"
    }
    assert images == {f"shop-{folder}" for folder in folders}


def test_the_values_have_an_entry_for_each_service_as_it_declares_itself() -> None:
    wanted = {name: entry(service) for name, service in SERVICES.items()}
    assert documented()["services"] == wanted, (
        "write this into `services:` of charts/shop/values.yaml:\n" + yaml.safe_dump(wanted)
    )


def entry(service: Service) -> Object:
    """A service's entry in the values."""
    projectors: Object = {}
    for each in service.projectors:
        owner = " ".join(each.projection.owners)
        projectors[each.name] = {
            "projection": each.projection.name,
            "queue": each.projection.queue,
            **({"feed": owner} if owner != service.name else {}),
            **({"reacts": True} if isinstance(each.projection, Reactor) else {}),
            **({"env": dict(each.settings)} if each.settings else {}),
        }
    return {"port": service.port, "paths": list(service.paths), "projectors": projectors}


def test_the_ingress_routes_every_path_of_the_gateway() -> None:
    [ingress] = render(given={"ingress": {"enabled": True}}).of("Ingress")
    routed = {each["path"] for rule in ingress["spec"]["rules"] for each in rule["http"]["paths"]}
    paths = {path for service in SERVICES.values() for path in service.paths}
    assert routed == {f"/{path.split('/')[1]}" for path in paths} | {
        "/docs",
        "/openapi.json",
        "/asyncapi.json",
        "/page",
        "/",
    }


def test_without_the_page_no_way_in_leads_to_it() -> None:
    given = {"ingress": {"enabled": True}, "page": {"enabled": False}}
    chart = render(given=given)
    [ingress] = chart.of("Ingress")
    routed = {each["path"] for rule in ingress["spec"]["rules"] for each in rule["http"]["paths"]}
    assert routed.isdisjoint({"/", "/page"})
    [container] = chart.named("Deployment")["shop-gateway"]["spec"]["template"]["spec"][
        "containers"
    ]
    assert {"name": "PAGE", "value": "off"} in container["env"]


def test_keda_asks_for_the_queue_that_its_process_reads() -> None:
    chart = render("keda")
    asked = {
        each["metadata"]["name"].removeprefix("shop-"): each["spec"]["triggers"][0]["metadata"]
        for each in chart.of("ScaledObject")
    }
    for name, told in asked.items():
        (container,) = chart.pod(name).spec["containers"]
        projection = projections(service_of(container))[container["args"][1]]
        assert told["queueName"] == projection.queue


def test_the_setup_job_makes_the_login_of_every_process() -> None:
    chart = render()
    for container in setup_steps(chart):
        if container["args"][0] != "provision":
            continue
        service = service_of(container)
        runs = dict(
            each.removeprefix("--projector=").split("=")
            for each in container["args"]
            if each.startswith("--projector=")
        )
        assert set(runs.values()) == set(projections(service))
        logins = {f"postgres/{service}_{purpose}" for purpose in STORE_LOGINS}
        logins |= {f"rabbitmq/{login}" for login in ("monitor", f"{service}-relay", *runs)}
        logins |= {f"mongodb/{login}" for login in (f"{service}-service", *runs)}
        there = files(chart, chart.pod("setup"), container)
        assert {f"/passwords/{login}" for login in logins} <= there, "as eventcore.__main__ reads"


def test_the_setup_job_migrates_each_event_store_as_its_owner() -> None:
    steps = [each for each in setup_steps(render()) if each["args"][0] == "migrate"]
    assert {service_of(each) for each in steps} == set(SERVICES)
    for each in steps:
        service, told = service_of(each), environment(each)
        assert told["POSTGRES_DATABASE"] == f"{service}_event_db"
        assert told["POSTGRES_USER"] == f"{service}_owner"


def test_the_charts_version_is_the_projects() -> None:
    project = (ROOT / "pyproject.toml").read_text()
    dockerfile = (ROOT / "services" / "Dockerfile").read_text()
    (tag,) = {each.rpartition(":")[2] for each in _images("Deployment")}
    assert f'version = "{tag}"' in project
    assert f"ARG VERSION={tag}\n" in dockerfile


def test_an_image_tells_its_process_its_version_and_revision() -> None:
    dockerfile = (ROOT / "services" / "Dockerfile").read_text()
    _, run = dockerfile.split(" AS run\n")
    assert {"VERSION", "REVISION"} <= variables()
    assert "ENV VERSION=${VERSION} REVISION=${REVISION}\n" in run


def _images(kind: str) -> set[str]:
    return {pod.spec["containers"][0]["image"] for pod in render().pods if pod.kind == kind}


def test_the_user_is_the_images() -> None:
    dockerfile = (ROOT / "services" / "Dockerfile").read_text()
    for pod in render().processes().values():
        user = pod.spec["securityContext"]["runAsUser"]
        assert f"USER {user}:{user}\n" in dockerfile


def image(container: Object) -> str:
    """The name of a container's image, without registry and version."""
    name: str = container["image"]
    return name.partition("@")[0].rpartition("/")[2].partition(":")[0]


def service_of(container: Object) -> str:
    """The service whose image a container runs."""
    return image(container).removeprefix("shop-")


def environment(container: Object) -> dict[str, str]:
    """A container's variables; one from a Secret has a value that will do."""
    return {each["name"]: each.get("value", "1") for each in container.get("env", ())}


def kind_of(container: Object) -> type[Settings]:
    """The settings of a container's command, as eventcore.__main__ reads them."""
    command = container["args"]
    known = projections(service_of(container)) if service_of(container) in SERVICES else {}
    projection = known.get(command[1]) if len(command) > 1 else None
    is_view, reacts = isinstance(projection, View), isinstance(projection, Reactor)
    kinds: dict[str, type[Settings]] = {
        "serve": importlib.import_module(f"{service_of(container)}.main").Settings,
        "relay": RelaySettings,
        "project": ReactorSettings if reacts else ProjectorSettings,
        "provision": ProvisionSettings,
        "migrate": StoreSettings,
        "verify": ProjectionSettings,
        "rebuild": ReactionSettings if reacts else ProjectionSettings,
    }
    if is_view:
        kinds |= {"project": ViewProjectorSettings, "verify": ViewSettings, "rebuild": ViewSettings}
    return kinds[command[0]]


def settings_of(container: Object) -> Settings:
    """The settings that a container reads. Raises Misconfigured."""
    told = environment(container) | {"SERVICE": service_of(container)}
    return settings_from(told, kind_of(container), container["name"])


def projections(service: str) -> dict[str, AnyProjection]:
    """A service's projections by name."""
    return {each.name: each for each in SERVICES[service].projections}


def setup_steps(chart: Render) -> list[Object]:
    """The containers of the setup Job, if there is one."""
    return [each for pod in chart.pods if pod.component == "setup" for each in pod.containers]


@pytest.mark.parametrize("name", ["order-user-sync", "order-projector", "user-projector"])
def test_a_process_that_is_switched_off_leaves_no_login_behind(name: str) -> None:
    off = over(PLANTED, {"processes": {name: {"enabled": False}}})
    done, text = template(given=off)
    assert done, text
    named = [
        f"{each['kind']} {each['metadata']['name']}"
        for each in parse(text)
        if name in json.dumps(each)
    ]
    assert named == []


def test_rate_limits_are_one_value_and_a_login_that_sees_nothing_else() -> None:
    given = {
        "rateLimits": {"write": "600/minute", "trustedProxies": ["10.0.0.0/8"]},
        "processes": {"gateway": {"replicas": 3}},
    }
    chart = render(given=given)
    env = environment(chart.pod("gateway").spec["containers"][0])
    assert env["RATE_LIMIT_WRITE"] == "600/minute"
    assert env["RATE_LIMIT_READ"] == ""
    assert env["RATE_LIMIT_REPLICAS"] == "3"
    assert env["TRUSTED_PROXIES"] == "10.0.0.0/8"
    assert json.loads(env["RATE_LIMIT_COSTS"]) == {"/orders/batch": 10}
    assert (env["MONGODB_USER"], env["MONGODB_DATABASE"]) == ("gateway", COUNTERS)
    setup = [each for pod in chart.pods if pod.component == "setup" for each in pod.containers]
    assert sum("--counters=gateway" in each.get("args", ()) for each in setup) == 1


def test_without_rate_limits_no_login_is_made_for_them() -> None:
    assert "--counters" not in render().text
