"""The Jobs for a projection: verify on a schedule, rebuild as values ask."""

import pytest

from eventcore.settings import ProjectionSettings, ViewSettings
from tests.chart.render import VALUES, Object, Render, render
from tests.chart.test_code import image, projections, service_of, settings_of


def containers(chart: Render, kind: str) -> list[Object]:
    """The containers of the jobs of a kind, setup's left out."""
    found = (pod for pod in chart.pods if pod.kind == kind and pod.component.endswith("-job"))
    return [container for pod in found for container in pod.spec["containers"]]


def rebuilding(*names: str, **more: object) -> Render:
    return render(given={"rebuild": {"projections": list(names), **more}})


def test_each_projection_is_verified_where_its_projector_is(chart: Render) -> None:
    verified = containers(chart, "CronJob")
    run = [pod.spec["containers"][0]["args"] for pod in chart.processes().values()]
    projected = {args[1] for args in run if args[0] == "project"}
    if chart.name == "dev":  # Tilt would show each as a resource that waits
        projected = set()
    assert sorted(each["args"][1] for each in verified) == sorted(projected)
    for each in verified:
        assert each["args"][0] == "verify"
        assert each["args"][1] in projections(service_of(each))


@pytest.mark.parametrize("values", VALUES)
def test_every_job_reads_its_settings_from_what_it_is_told(values: str) -> None:
    for each in containers(render(values), "CronJob"):
        settings = settings_of(each)
        assert isinstance(settings, ProjectionSettings | ViewSettings)
        assert settings.readmodel.name == f"{service_of(each)}_read_model"
        feeds = settings.feeds if isinstance(settings, ViewSettings) else {"": settings.feed}
        assert all(feed.url for feed in feeds.values())


def test_a_job_has_the_login_and_the_feed_of_its_projector() -> None:
    chart = rebuilding("orders", "known-users", "users", "customers")
    for each in [*containers(chart, "Job"), *containers(chart, "CronJob")]:
        projector = next(
            pod.spec["containers"][0]
            for pod in chart.processes().values()
            if pod.spec["containers"][0]["args"] == ["project", each["args"][1]]
        )
        own, its = (dict(settings_of(one)) for one in (each, projector))
        assert own["readmodel"] == its["readmodel"]
        assert [own.get(name) for name in ("feed", "feeds")] == [
            its.get(name) for name in ("feed", "feeds")
        ]
        assert image(each) == image(projector)


def test_nothing_is_rebuilt_unless_it_is_named() -> None:
    assert not containers(render(), "Job")
    [job] = containers(rebuilding("orders"), "Job")
    assert job["args"] == ["rebuild", "orders", "--json"]
    [accepting] = containers(rebuilding("orders", acceptDifferences=True), "Job")
    assert accepting["args"][-1] == "--yes"


def test_a_rebuild_runs_once_for_each_name_it_is_given() -> None:
    def names(run: str) -> set[str]:
        jobs = rebuilding("orders", run=run).of("Job")
        return {each["metadata"]["name"] for each in jobs if "rebuild" in each["metadata"]["name"]}

    assert names("1") == names("1")
    assert not names("1") & names("2")


def test_verification_can_be_switched_off_or_be_of_everything() -> None:
    assert not render(given={"verify": {"enabled": False}}).of("CronJob")
    for each in containers(render(given={"verify": {"all": True}}), "CronJob"):
        assert each["args"][-1] == "--all"


def test_no_two_verifications_of_a_projection_run_at_once() -> None:
    for each in render().of("CronJob"):
        assert each["spec"]["concurrencyPolicy"] == "Forbid"
        assert each["spec"]["jobTemplate"]["spec"]["backoffLimit"] == 0
        assert len(each["metadata"]["name"]) <= 52
