"""A rendering without a cluster, as Argo CD does it, never makes new passwords in silence."""

import pytest
import yaml

from local.services import LOGINS
from tests.chart.render import (
    CHART,
    HELMS,
    PLANTED,
    ROOT,
    SERVERS,
    VALUES,
    Object,
    helm,
    over,
    parse,
)

GITOPS = ROOT / "k8s" / "gitops"


def rendered(given: Object | None = None, program: str = HELMS[0]) -> tuple[bool, str]:
    """`helm template` as it is."""
    return helm(
        "template", "shop", str(CHART), "--kube-version=1.34.0", program=program, given=given
    )


@pytest.mark.parametrize("program", HELMS)
def test_a_rendering_that_would_make_passwords_is_refused(program: str) -> None:
    done, said = rendered(program=program)
    assert not done
    assert "would make new passwords each time" in said
    assert "postgres.auth.existingSecret" in said
    assert "auth.generate=always" in said


@pytest.mark.parametrize("login", ["postgres.user_owner", "feed.order", "rabbitmq.monitor"])
def test_one_missing_password_is_named(login: str) -> None:
    place, name = login.split(".")
    given = over(PLANTED, {place: {"auth": {"passwords": {name: ""}}}})
    done, said = rendered(given)
    assert not done
    assert f"no password {name} for the Secret shop-{place}" in said


def test_given_passwords_and_secrets_of_yours_need_no_cluster() -> None:
    assert rendered(PLANTED) == rendered(PLANTED)
    assert rendered(PLANTED)[0]
    existing = yaml.safe_load((VALUES["existing-secrets"] or CHART).read_text())
    done, said = rendered(existing)
    assert done, said


def test_passwords_may_be_forbidden_to_be_made_at_all() -> None:
    done, said = rendered({"auth": {"generate": "never"}})
    assert not done
    assert "There is no password" in said


def test_argo_and_flux_name_secrets_for_all_that_has_passwords() -> None:
    (application,) = parse((GITOPS / "argocd.yaml").read_text())
    values = application["spec"]["source"]["helm"]["valuesObject"]
    done, said = rendered(values)
    assert done, said
    *_, release = parse((GITOPS / "flux.yaml").read_text())
    assert release["kind"] == "HelmRelease"
    assert rendered(release["spec"]["values"])[0]
    assert release["spec"]["values"] == values


def test_external_secrets_has_every_login_of_the_secrets_that_are_named() -> None:
    (application,) = parse((GITOPS / "argocd.yaml").read_text())
    values = application["spec"]["source"]["helm"]["valuesObject"]
    secrets = {
        each["spec"]["target"]["name"]: each
        for each in parse((GITOPS / "external-secrets.yaml").read_text())
    }
    logins = LOGINS | {"identity": LOGINS["feed"], "mongodb": (*LOGINS["mongodb"], "gateway")}
    for place in (*SERVERS, "feed", "identity"):
        found = secrets[values[place]["auth"]["existingSecret"]]["spec"]
        assert {each["secretKey"] for each in found["data"]} >= set(logins[place]), place
    assert "template" in secrets["shop-rabbitmq-logins"]["spec"]["target"], "monitor.user, for KEDA"
