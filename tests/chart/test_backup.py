"""Backups: dumps of each event store by the clock, and restores while values ask for them."""

import re
from pathlib import Path

import pytest

from tests.chart.render import CHART, Object, Pod, Render, notes, over, render, template
from tests.chart.test_pods import references

STORES = ("user", "order")
KEPT: Object = {"backup": {"enabled": True}}
UPLOADED: Object = over(KEPT, {"backup": {"upload": {"to": "backup:bucket/shop", "secret": "s3"}}})


def pods(chart: Render, kind: str, word: str) -> dict[str, Pod]:
    """The pods of a kind whose owner has this word in its name, by store."""
    return {
        pod.component.removesuffix("-backup"): pod
        for pod in chart.pods
        if pod.kind == kind and re.search(rf"-{word}", pod.owner)
    }


def container(pod: Pod) -> Object:
    (found,) = pod.spec["containers"]
    assert isinstance(found, dict)
    return found


def variables(pod: Pod) -> dict[str, str]:
    return {each["name"]: each["value"] for each in container(pod)["env"]}


def test_there_are_no_backups_unless_they_are_asked_for() -> None:
    assert "backup" not in render().text


def test_each_event_store_is_dumped_by_the_clock_as_its_owner() -> None:
    found = pods(render(given=KEPT), "CronJob", "backup")
    assert set(found) == set(STORES)
    for store, pod in found.items():
        told = variables(pod)
        assert told["POSTGRES_USER"] == f"{store}_owner"
        assert told["POSTGRES_DATABASE"] == f"{store}_event_db"
        secrets = [each for each in references(pod) if each[0] == "Secret"]
        assert secrets == [("Secret", "shop-postgres", {f"{store}_owner"})]
        assert container(pod)["args"] == ["/backup", store, "14"]


def test_a_first_dump_is_made_at_once_so_that_its_claim_is_bound() -> None:
    chart = render(given=KEPT)
    clocked, at_once = (pods(chart, kind, "backup") for kind in ("CronJob", "Job"))
    assert set(at_once) == set(STORES)
    for store in STORES:
        assert at_once[store].spec == clocked[store].spec


def test_dumps_stay_on_a_claim_of_each_store_that_outlives_the_release() -> None:
    chart = render(given=KEPT)
    for store, pod in pods(chart, "CronJob", "backup").items():
        claim = chart.named("PersistentVolumeClaim")[f"shop-{store}-backup"]
        assert claim["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"
        named = {name for kind, name, _ in references(pod) if kind == "PersistentVolumeClaim"}
        assert named == {f"shop-{store}-backup"}
    given = over(KEPT, {"backup": {"persistence": {"existingClaim": "mine"}}})
    assert not render(given=given).of("PersistentVolumeClaim")


def test_a_dump_is_uploaded_once_it_is_whole() -> None:
    chart = render(given=UPLOADED)
    assert not chart.of("PersistentVolumeClaim")
    for store, pod in pods(chart, "CronJob", "backup").items():
        (first,) = pod.spec["initContainers"]
        assert first["name"] == "dump"
        args = ["copy", "--include", f"{store}-*.dump", "/backup", "backup:bucket/shop/"]
        assert container(pod)["args"] == args


def test_a_restore_is_a_job_while_values_name_it() -> None:
    given = over(KEPT, {"restore": {"stores": {"user": "latest"}}})
    chart = render(given=given)
    found = pods(chart, "Job", "restore")
    assert set(found) == {"user"}
    assert variables(found["user"])["POSTGRES_USER"] == "user_owner"
    assert container(found["user"])["args"] == ["/backup", "user", "latest", "/schema/init.sql"]
    (again,) = [
        each["metadata"]["name"]
        for each in render(given=over(given, {"restore": {"run": "2"}})).of("Job")
        if "restore" in each["metadata"]["name"]
    ]
    assert again != found["user"].owner.partition(" ")[2]


def test_nothing_appends_to_a_store_or_dumps_it_while_it_is_restored() -> None:
    chart = render(given=over(KEPT, {"restore": {"stores": {"user": "latest"}}}))
    replicas = {
        each["metadata"]["name"]: each["spec"].get("replicas", 1) for each in chart.of("Deployment")
    }
    stopped = {name for name, count in replicas.items() if count == 0}
    assert stopped == {"shop-user-service", "shop-user-relay", "shop-user-credit"}
    suspended = {
        each["metadata"]["name"] for each in chart.of("CronJob") if each["spec"].get("suspend")
    }
    assert suspended == {"shop-user-backup"}
    assert set(pods(chart, "Job", "backup")) == {"order"}


@pytest.mark.parametrize(
    ("name", "include"),
    [("latest", "user-*.dump"), ("user-20261127T020000Z.dump", "user-20261127T020000Z.dump")],
)
def test_an_uploaded_dump_is_fetched_before_it_is_restored(name: str, include: str) -> None:
    pod = pods(
        render(given=over(UPLOADED, {"restore": {"stores": {"user": name}}})), "Job", "restore"
    )
    (fetch,) = pod["user"].spec["initContainers"]
    assert fetch["args"][:5] == ["copy", "--include", include, "backup:bucket/shop/", "/backup"]
    assert container(pod["user"])["args"][2] == name


def test_a_store_that_is_not_there_cannot_be_restored() -> None:
    done, said = template(given={"restore": {"stores": {"users": "latest"}}})
    assert not done
    assert "restore.stores.users: there is no such event store; there are order, user." in said


def test_dumps_are_made_by_the_programs_of_the_servers_own_version() -> None:
    def image(given: Object) -> str:
        return str(container(pods(render(given=given), "CronJob", "backup")["user"])["image"])

    line = re.search('appVersion: "(.+)"', (CHART / "charts/postgres/Chart.yaml").read_text())
    assert line
    assert image(KEPT) == f"postgres:{line[1]}"
    assert image(over(KEPT, {"postgres": {"image": {"tag": 18}}})) == "postgres:18"
    assert image(over(KEPT, {"backup": {"image": {"tag": "18.1"}}})) == "postgres:18.1"


def test_the_notes_say_when_nothing_keeps_the_event_stores() -> None:
    assert "backup.enabled" in notes()
    assert "backup.enabled" not in notes(KEPT)
    assert "backup.enabled" not in notes(values="external")


def test_the_scripts_are_those_that_were_tested() -> None:
    (scripts,) = [
        each["data"] for each in render(given=KEPT).of("ConfigMap") if "dump.sh" in each["data"]
    ]
    for name, text in scripts.items():
        assert text.strip() == (CHART / "files/backup" / name).read_text().strip()
    assert Path(CHART / "files/backup").is_dir()
