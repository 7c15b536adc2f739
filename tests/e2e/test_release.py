"""The chart on a real cluster, through its ingress. The tests stand in the order of a release's
life and share one: installed, used, upgraded, rolled back, scaled, hurt, removed, found again.
"""

import base64
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import urllib3

from eventcore.store.migrate import SCHEMA_VERSION
from tests.chart.test_pods import quantity
from tests.e2e.load import steady_load
from tests.e2e.release import INGRESS, ROOT, SERVERS, Release, await_that, image_tag, run
from tests.graph import GRAPH

pytestmark = pytest.mark.timeout(900)

PROCESSES = [
    "credit-projector", "gateway", "order-customers", "order-projector", "order-relay",
    "order-saga", "order-service", "order-user-sync", "user-credit", "user-projector", "user-relay",
    "user-service",
]  # fmt: skip


def unharmed(release: Release, act: Callable[[], object], say: Callable[[str], None]) -> None:
    """`act` under a steady load: no request fails, no event is lost or doubled."""
    with steady_load(INGRESS) as record:
        await_that(lambda: record.requests > 50, 30, "the load has begun")
        act()
        seen = record.requests
        await_that(lambda: record.requests > seen + 50, 30, "the load goes on")
    say(record.summary())
    assert record.failures == []
    with release.stores() as stores:
        stores.await_converged()
        assert stores.differences(record) == []


def test_it_installs_from_nothing_within_five_minutes(
    release: Release, say: Callable[[str], None]
) -> None:
    took = release.install()
    say(f"installed in {took:.0f} s")
    assert took < 300
    assert set(release.restarts().values()) == {0}


def test_the_guides_six_requests_are_answered_through_the_ingress(release: Release) -> None:
    with release.port("service/shop-order-service", 3002) as port:
        said = run(
            sys.executable, "-m", "local.demo",
            f"--gateway={INGRESS}", f"--order-service=http://127.0.0.1:{port}", cwd=ROOT,
        )  # fmt: skip
    assert "ORDER_PLACED" in said


def test_helm_test_plays_the_journey_inside_the_cluster(release: Release) -> None:
    assert "The journey is whole" in release.test()


def test_rabbitmq_knows_the_limit_of_its_container(release: Release) -> None:
    (pod,) = release.get("pods", "--selector=app.kubernetes.io/component=rabbitmq")
    limit = quantity(pod["spec"]["containers"][0]["resources"]["limits"]["memory"])
    login = urllib3.make_headers(basic_auth=f"admin:{release.password('rabbitmq')}")
    with release.port("service/shop-rabbitmq", 15672) as port:
        (node,) = urllib3.request(
            "GET", f"http://127.0.0.1:{port}/api/nodes", headers=login, timeout=10
        ).json()
    assert node["mem_limit"] < limit / 2


def test_neither_probes_nor_metrics_nor_the_feed_pass_the_ingress(release: Release) -> None:
    http = urllib3.PoolManager(timeout=5, retries=False)
    for path in ("/metrics", "/healthz", "/readyz", "/internal/feed", "/users/../metrics"):
        assert http.request("GET", INGRESS + path).status in (403, 404), path


def test_a_pod_that_is_not_restricted_is_refused(release: Release) -> None:
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "privileged"},
        "spec": {"containers": [{"name": "any", "image": f"shop-user:{image_tag()}"}]},
    }
    refused = subprocess.run(
        ["kubectl", "--namespace", release.namespace, "apply", "--filename", "-"],
        input=json.dumps(pod), text=True, capture_output=True, check=False,
    )  # fmt: skip
    assert "violates PodSecurity" in refused.stderr


def containers(release: Release) -> list[tuple[str, str]]:
    """Every pod that runs, and each of its containers."""
    return [
        (pod["metadata"]["name"], container["name"])
        for pod in release.get("pods", "--field-selector=status.phase=Running")
        for container in pod["spec"]["containers"]
    ]


def test_no_password_is_in_an_environment_an_argument_or_a_log(release: Release) -> None:
    secrets = {
        f"{name}/{key}": base64.b64decode(value).decode()
        for name, data in release.passwords().items()
        for key, value in data.items()
        if key != "monitor.user"
    }
    assert len(secrets) > 20
    found = []
    for pod, container in containers(release):
        inside = ("exec", pod, "--container", container, "--", "sh", "-c")
        shown = release.kubectl(*inside, "cat /proc/[0-9]*/environ /proc/[0-9]*/cmdline || true")
        shown += release.kubectl("logs", pod, "--container", container)
        assert "PATH=" in shown
        found += [f"{name} in {pod}" for name, secret in secrets.items() if secret in shown]
    assert found == []


def test_a_process_sees_its_own_passwords_and_can_write_nowhere(release: Release) -> None:
    sees = {
        "gateway": "",
        "user-service": "feed mongodb postgres",
        "order-relay": "postgres rabbitmq",
        "order-user-sync": "feed mongodb rabbitmq",
    }
    for process, passwords in sees.items():
        inside = ("exec", f"deployment/shop-{process}", "--", "sh", "-c")
        assert (
            release.kubectl(*inside, "ls /secrets 2>/dev/null | xargs || true").strip() == passwords
        )
        tried = (
            "for d in / /app /app/services /etc; do touch $d/x 2>/dev/null && echo $d; done; id -u"
        )
        assert release.kubectl(*inside, tried).split() == ["10001"]
        account = "ls /var/run/secrets/kubernetes.io 2>/dev/null | wc -l"
        assert release.kubectl(*inside, account).strip() == "0"


START = """
import os, subprocess, sys, time, urllib.request
env = {**os.environ, "PORT": "4000", "METRICS_PORT": "4001"}
took = []
for _ in range(3):
    began = time.monotonic()
    command = [sys.executable, "-m", "eventcore", "serve"]
    server = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL)
    while True:
        try:
            urllib.request.urlopen("http://127.0.0.1:4000/healthz", timeout=1).close()
            break
        except OSError:
            time.sleep(0.02)
    took.append(time.monotonic() - began)
    server.terminate()
    server.wait()
print(min(took))
"""


def test_an_image_adds_little_to_its_base_and_starts_at_once(
    release: Release, say: Callable[[str], None]
) -> None:
    inside = ("exec", "deployment/shop-order-service", "--")
    added = int(release.kubectl(*inside, "du", "-skx", "/app").split()[0]) / 1024
    started = float(release.kubectl(*inside, "python", "-c", START))
    say(f"the order service adds {added:.0f} MB to its base and answers after {started:.1f} s")
    assert added < 120  # cryptography, for tokens, has 16 of them
    assert started < 2


PROBE = """
import json, socket, sys
from concurrent.futures import ThreadPoolExecutor
def reaches(target):
    host, _, port = target.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=3).close()
    except OSError:
        return False
    return True
with ThreadPoolExecutor(40) as pool:
    found = pool.map(reaches, sys.argv[1:])
print(json.dumps([target for target, reached in zip(sys.argv[1:], found) if reached]))
"""


def imitation(component: str) -> dict[str, object]:
    """A pod that has the labels of a component, and nothing else of it."""
    labels = {
        "app.kubernetes.io/instance": "shop",
        "app.kubernetes.io/name": "shop",
        "app.kubernetes.io/part-of": "shop",
        "app.kubernetes.io/component": component,
    }
    container = {
        "name": "imitation",
        "image": f"shop-user:{image_tag()}",
        "command": ["sleep", "300"],
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
        },
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": f"imitation-{component}",
            "labels": {"e2e": "imitation"} | (labels if component != "stranger" else {}),
        },
        "spec": {
            "restartPolicy": "Never",
            "automountServiceAccountToken": False,
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": 10001,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": [container],
        },
    }


def listening(release: Release) -> dict[str, str]:
    """Every port that a pod listens on: address:port, and its `component:port`."""
    ports = {"postgres": [5432], "rabbitmq": [5672, 15672, 15692], "mongodb": [27017]}
    ports |= {process: [9464] for process in PROCESSES}
    for process, port in (("gateway", 3000), ("user-service", 3001), ("order-service", 3002)):
        ports[process].append(port)
    found = {}
    for pod in release.get("pods", "--selector=!e2e", "--field-selector=status.phase=Running"):
        component = pod["metadata"]["labels"].get("app.kubernetes.io/component", "")
        for port in ports.get(component, []):
            found[f"{pod['status']['podIP']}:{port}"] = f"{component}:{port}"
    return found


def test_a_pod_reaches_what_it_needs_and_nothing_else(release: Release) -> None:
    targets = listening(release)
    assert len(targets) == len(PROCESSES) + 3 + 5  # their metrics, three that serve, the servers
    wanted = {each: sorted(reached) for each, reached in GRAPH.items()}
    wanted["stranger"] = ["gateway:3000"]
    pods = {"apiVersion": "v1", "kind": "List", "items": [imitation(each) for each in wanted]}
    release.kubectl("apply", "--filename=-", input=json.dumps(pods))

    def reached(component: str) -> list[str]:
        ask = ("exec", f"imitation-{component}", "--", "python", "-c", PROBE)
        return sorted(targets[each] for each in json.loads(release.kubectl(*ask, *targets)))

    try:
        release.kubectl("wait", "--for=condition=Ready", "pod", "--selector=e2e", "--timeout=90s")
        with ThreadPoolExecutor(4) as pool:
            # rules may come a moment after the pods that they are for
            for _ in range(2):
                found = dict(zip(wanted, pool.map(reached, wanted), strict=True))
                if found == wanted:
                    break
        assert found == wanted
    finally:
        release.kubectl("delete", "pod", "--selector=e2e", "--grace-period=0", "--force")


def test_an_upgrade_with_new_settings_loses_nothing(
    release: Release, say: Callable[[str], None]
) -> None:
    before, passwords = release.generations(), release.passwords()
    unharmed(release, lambda: release.upgrade("--set=defaults.env.LOG_LEVEL=WARNING"), say)
    after = release.generations()
    assert all(after[f"shop-{process}"] > before[f"shop-{process}"] for process in PROCESSES)
    assert release.passwords() == passwords


def test_a_rollback_loses_nothing(release: Release, say: Callable[[str], None]) -> None:
    unharmed(release, release.rollback, say)


def test_an_upgrade_with_the_same_values_restarts_nothing(release: Release) -> None:
    release.await_ready()
    generations, restarts = release.generations(), release.restarts()
    release.upgrade()
    assert (release.generations(), release.restarts()) == (generations, restarts)


def test_a_rolling_restart_of_everything_loses_nothing(
    release: Release, say: Callable[[str], None]
) -> None:
    def restart() -> None:
        release.kubectl("rollout", "restart", "deployment")
        release.await_ready()

    unharmed(release, restart, say)


def test_projectors_are_scaled_up_and_down_and_lose_nothing(
    release: Release, say: Callable[[str], None]
) -> None:
    projectors = [f"deployment/shop-{p}" for p in PROCESSES if p.endswith(("projector", "sync"))]

    def scale() -> None:
        for replicas in (3, 1):
            release.kubectl("scale", f"--replicas={replicas}", *projectors)
            release.await_ready()

    unharmed(release, scale, say)


def test_a_projection_is_verified_and_rebuilt_by_jobs_while_it_is_written(
    release: Release, say: Callable[[str], None]
) -> None:
    def work() -> None:
        cron = "cronjob/shop-order-projector-verify"
        release.kubectl("create", "job", "verify-now", f"--from={cron}")
        release.kubectl("wait", "job/verify-now", "--for=condition=Complete", "--timeout=180s")
        release.upgrade("--set=rebuild.projections={orders}")
        jobs = [each["metadata"]["name"] for each in release.get("jobs")]
        [job] = [name for name in jobs if "-rebuild-" in name]
        release.kubectl("wait", f"job/{job}", "--for=condition=Complete", "--timeout=180s")
        assert '{"serves": "orders.2"}' in release.kubectl("logs", f"job/{job}")

    unharmed(release, work, say)
    release.upgrade()


SERVED = (*SERVERS, "gateway", "user-service", "order-service")
"""Of these there is one, and requests need it: while its pod is replaced some are refused."""


@pytest.mark.parametrize("component", [*PROCESSES, *SERVERS])
def test_a_deleted_pod_comes_back_and_the_read_models_converge(
    release: Release, component: str, say: Callable[[str], None]
) -> None:
    with steady_load(INGRESS) as record:
        await_that(lambda: record.requests > 20, 30, "the load has begun")
        label = f"--selector=app.kubernetes.io/component={component}"
        release.kubectl("delete", "pod", label, "--wait=true")
        ready = release.await_ready()
        seen = record.requests
        await_that(lambda: record.requests > seen + 50, 60, "the load goes on")
    with release.stores() as stores:
        converged = stores.await_converged()
        assert stores.differences(record) == []
    say(
        f"{component}: back in {ready:.0f} s, converged {converged:.1f} s after the load;"
        f" {record.summary()}"
    )
    # What lies behind the log hurts nobody who writes or reads; but an order of a new user waits
    # for the order service to know him, and is told to come back where that takes too long.
    if component not in SERVED:
        late = [each for each in record.failures if "POST /orders" in each and ": 503 " in each]
        on_the_way = ("user-relay", "order-user-sync")
        assert record.failures == (late if component in on_the_way else [])
    assert len(record.failures) < record.requests / 2


@pytest.mark.parametrize("server", SERVERS)
def test_a_server_may_be_away_for_a_minute(
    release: Release, server: str, say: Callable[[str], None]
) -> None:
    before = release.restarts()
    with steady_load(INGRESS, pause=0.2) as record:
        await_that(lambda: record.requests > 20, 30, "the load has begun")
        release.kubectl("scale", f"statefulset/shop-{server}", "--replicas=0")
        release.kubectl(
            "wait", "--for=delete", f"pod/shop-{server}-0", "--timeout=120s", timeout=150
        )
        quiet = let_pass(60)
        release.kubectl("scale", f"statefulset/shop-{server}", "--replicas=1")
        ready = release.await_ready()
        seen, failed = record.requests, len(record.failures)
        await_that(lambda: record.requests > seen + 50, 60, "the load goes on")
        late = record.failures[failed:]
    with release.stores() as stores:
        drained = stores.await_converged()
        assert stores.differences(record) == []
    after = release.restarts()
    restarted = {name: count for name, count in after.items() if count != before.get(name, 0)}
    say(
        f"{server} away {quiet:.0f} s: all ready {ready:.0f} s after its return,"
        f" drained {drained:.1f} s after the load; {record.summary()}"
    )
    assert restarted == {}
    assert late == []


def let_pass(seconds: float) -> float:
    """Let a server be away for so long: the one wait here that is for nothing but time."""
    time.sleep(seconds)
    return seconds


def test_an_autoscaler_owns_the_number_of_its_pods_through_upgrades(release: Release) -> None:
    def pods() -> int:
        [gateway] = release.get("deployment", "shop-gateway")
        return int(gateway["status"].get("readyReplicas", 0))

    scaled = "--set=processes.gateway.autoscaling.enabled=true"
    release.upgrade(scaled)
    await_that(lambda: pods() == 2, 120, "the autoscaler has made a second gateway")
    release.upgrade(scaled, "--set=defaults.env.LOG_LEVEL=WARNING")
    assert pods() == 2
    assert [each["spec"]["minReplicas"] for each in release.get("hpa")] == [2]
    budget = release.get("poddisruptionbudget")
    assert [each["metadata"]["name"] for each in budget] == ["shop-gateway"]
    # without it nobody owns the number: what it was stays until it is set, and no upgrade minds
    release.upgrade()
    release.kubectl("scale", "deployment/shop-gateway", "--replicas=1")
    release.upgrade("--set=defaults.env.LOG_LEVEL=WARNING")
    await_that(lambda: pods() == 1, 120, "there is one gateway again")
    assert not release.get("hpa")


def copied(copy: Path) -> Path:
    """A copy of all that images and the chart are made of."""
    for each in ("services", "charts", "local"):
        shutil.copytree(ROOT / each, copy / each, ignore=shutil.ignore_patterns("__pycache__"))
    for each in (".dockerignore", "Makefile", "init.sql"):
        shutil.copy(ROOT / each, copy)
    return copy


def test_make_deploy_runs_the_code_changed_since_the_deploy_before(
    release: Release, tmp_path: Path, say: Callable[[str], None]
) -> None:
    """`make deploy` of the same version again: other content is another tag, and other pods."""
    copy = copied(tmp_path / "changed")
    assert image_tag(copy) == image_tag(), "what is deployed is what the copy would deploy"
    with (copy / "services/gateway/__init__.py").open("a") as module:
        module.write('\nCHANGED = "by the second deploy"\n')
    began = time.monotonic()
    run("make", "deploy", cwd=copy, timeout=900, env=os.environ | {"NAMESPACE": release.namespace})
    say(f"changed code deployed in {time.monotonic() - began:.0f} s")
    ask = ("python", "-c", "import gateway; print(gateway.CHANGED)")
    assert "by the second" in release.kubectl("exec", "deployment/shop-gateway", "--", *ask)
    assert image_tag(copy) in json.dumps(release.get("deployment", "shop-gateway"))
    release.upgrade()


@pytest.fixture(scope="module")
def next_version(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The next code of the same version: its schema has one more step, which it needs. Its images
    have a tag of their own.
    """
    copy = copied(tmp_path_factory.mktemp("next") / "code")
    script = (ROOT / "init.sql").read_text()
    now, then = f"this_version constant int := {SCHEMA_VERSION};", SCHEMA_VERSION + 1
    assert now in script
    script = script.replace(now, f"this_version constant int := {then};")
    step = f"""
    if recorded < {then} then
    alter table public.events add column tenant text;
    create index events_tenant on public.events (tenant) where tenant is not null;
    insert into public.schema_versions (version) values ({then});
    end if;

    -- ── functions"""
    assert "    -- ── functions" in script
    script = script.replace("    -- ── functions", step, 1)
    for place in (copy / "init.sql", copy / "charts/shop/files/init.sql"):
        place.write_text(script)
    store = copy / "services/eventcore/store/migrate.py"
    code = store.read_text()
    assert f"VERSION = {SCHEMA_VERSION} " in code
    store.write_text(code.replace(f"VERSION = {SCHEMA_VERSION} ", f"VERSION = {then} "))
    run(str(copy / "local/make-images"), timeout=600)
    return copy / "charts/shop"


def test_an_upgrade_across_a_migration_and_its_rollback_lose_nothing(
    release: Release, next_version: Path, say: Callable[[str], None]
) -> None:
    def schema() -> int:
        with release.stores() as stores:
            return int(stores.query("user", "select max(version) from schema_versions")[0][0])

    assert schema() == SCHEMA_VERSION
    unharmed(release, lambda: release.upgrade(chart=next_version), say)
    assert schema() == SCHEMA_VERSION + 1
    images = {
        container["image"]
        for deployment in release.get("deployments")
        for container in deployment["spec"]["template"]["spec"]["containers"]
    }
    tag = image_tag(next_version.parents[1])
    assert tag != image_tag()
    assert images == {f"shop-{service}:{tag}" for service in ("gateway", "user", "order")}
    said = release.kubectl(
        "exec",
        "deployment/shop-gateway",
        "--",
        "python",
        "-m",
        "eventcore",
        "metrics",
        "eventcore_build_info",
    )
    assert tag in said
    # back to the old code, which now meets the newer schema
    unharmed(release, release.rollback, say)
    assert schema() == SCHEMA_VERSION + 1
    unharmed(release, lambda: release.upgrade("--set=defaults.env.LOG_LEVEL=INFO"), say)


RESTORED = {
    "user-projector": "users",
    "order-user-sync": "known-users",
    "order-customers": "customers",
    "credit-projector": "credit",
    "order-saga": "order-saga",
    "user-credit": "user-credit",
}
"""Projections and reactors of the user service's log, by process: rebuilt after its restore."""


def test_every_password_is_replaced_while_requests_go_on(
    release: Release, say: Callable[[str], None]
) -> None:
    before = release.passwords()
    with steady_load(INGRESS) as record:
        run(str(ROOT / "local/rotate"), "--release", release.name, "--namespace", release.namespace)
    say(record.summary())
    assert [each for each in record.failures if ": 503 " not in each] == []
    after = release.passwords()
    for name in (*(f"shop-{server}" for server in SERVERS), "shop-feed"):
        kept = {key for key, value in before[name].items() if after[name][key] == value}
        assert kept <= {"monitor.user"}, name
    with release.stores() as stores:
        stores.await_converged()
        assert stores.differences(record) == []
    assert "Succeeded" in release.test()


def test_a_deleted_event_store_comes_back_from_the_dump_of_its_cronjob(
    release: Release, say: Callable[[str], None]
) -> None:
    """The drill of docs/backup.md: append, dump, delete the store, restore, rebuild, compare."""
    backed_up = "--set=backup.enabled=true"
    with steady_load(INGRESS) as record:
        await_that(lambda: record.requests > 100, 30, "the load")
    release.upgrade(backed_up)
    release.await_jobs("user-backup", "user-backup-")
    cron = "--from=cronjob/shop-user-backup"
    release.kubectl("create", "job", "user-backup-now", cron)
    release.await_jobs("user-backup", "backup-now")
    with release.stores() as stores:
        stores.await_converged()
        before = stores.events("user")
    assert len(before) > 10

    release.kubectl("scale", "deployment/shop-user-service", "--replicas=0")
    drop = "drop database user_event_db with (force)"
    psql = ("exec", "shop-postgres-0", "--", "psql", "--username=postgres", f"--command={drop}")
    release.kubectl(*psql)
    began = time.monotonic()
    release.kubectl("delete", "job", "--selector=app.kubernetes.io/component=setup")
    release.upgrade(backed_up, "--set=restore.stores.user=latest", wait=False)
    release.await_jobs("user-backup", "restore")
    release.upgrade(
        backed_up, f"--set=rebuild.projections={{{','.join(RESTORED.values())}}}",
        "--set=rebuild.acceptDifferences=true", "--set=rebuild.run=restored", wait=False,
    )  # fmt: skip
    for process in RESTORED:
        release.await_jobs(f"{process}-job", "-rebuild-")
    release.await_ready()
    say(f"restored and rebuilt in {time.monotonic() - began:.0f} s")

    with release.stores() as stores:
        assert stores.events("user") == before
        stores.await_converged()
        assert stores.differences(record) == []
    with steady_load(INGRESS) as more:
        await_that(lambda: more.requests > 50, 30, "it takes commands again")
    with release.stores() as stores:
        stores.await_converged()
        assert stores.differences(more) == []
    release.upgrade()
    claims = "persistentvolumeclaim/shop-user-backup"
    release.kubectl("delete", claims, "persistentvolumeclaim/shop-order-backup")


def test_a_release_that_goes_leaves_data_and_passwords_to_the_next(
    release: Release, say: Callable[[str], None]
) -> None:
    with steady_load(INGRESS) as record:
        await_that(lambda: record.requests > 100, 30, "the load")
    with release.stores() as stores:
        stores.await_converged()
    passwords = release.passwords()
    release.uninstall()
    kept = {each["metadata"]["name"] for each in release.get("persistentvolumeclaims")}
    assert kept == {f"data-shop-{server}-0" for server in SERVERS}
    assert {f"shop-{server}" for server in SERVERS} < set(release.passwords())

    # a claim without its password is of no use, and a new password would not open it
    secret = release.kubectl("get", "secret", "shop-mongodb", "--output=json")
    release.kubectl("delete", "secret", "shop-mongodb")
    with pytest.raises(AssertionError, match="data-shop-mongodb-0 holds mongodb's data, but"):
        release.install()
    release.kubectl("create", "--filename=-", input=secret)

    other = release.using("helm3") if shutil.which("helm3") else release
    took = other.install()
    say(f"installed again by {other.helm} in {took:.0f} s")
    assert release.passwords() == passwords
    with release.stores() as stores:
        stores.await_converged()
        assert stores.differences(record) == []
    other.upgrade("--set=defaults.env.LOG_LEVEL=WARNING")
    assert "Succeeded" in other.test()
