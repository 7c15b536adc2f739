"""One release on the cluster that kubectl points to, for all tests of this folder."""

import shutil
from collections.abc import Callable, Iterator

import pytest

from tests.e2e.release import Release, build_stand_ins, run


@pytest.fixture(scope="session", autouse=True)
def stand_ins() -> None:
    """The images that this cluster cannot pull."""
    build_stand_ins()


@pytest.fixture(scope="session")
def release() -> Iterator[Release]:
    """An empty namespace that admits only restricted pods, and the release that is to be there."""
    for program in ("kubectl", "helm"):
        assert shutil.which(program), f"{program} is not on the PATH"
    release = Release("shop", "shop-e2e")
    run("kubectl", "delete", "namespace", release.namespace, "--ignore-not-found", "--wait")
    run("kubectl", "create", "namespace", release.namespace)
    label = "pod-security.kubernetes.io/enforce=restricted"
    run("kubectl", "label", "namespace", release.namespace, label)
    yield release
    run("kubectl", "delete", "namespace", release.namespace, "--wait=false")


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str]) -> Callable[[str], None]:
    """Print what was measured, also where a test passes."""

    def say(text: str) -> None:
        with capsys.disabled():
            print(f"\n  {text}", end="", flush=True)  # noqa: T201

    return say
