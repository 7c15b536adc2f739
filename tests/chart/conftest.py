"""The chart, rendered by the Helm that is there."""

import os
import shutil

import pytest

from tests.chart.render import HELMS, VALUES, Render, render


@pytest.fixture(scope="session", autouse=True)
def helm_is_there() -> None:
    """Without Helm there is nothing to test; where CI says so, it must be there."""
    if shutil.which(HELMS[0]):
        return
    if os.environ.get("CI"):
        pytest.fail("Helm is not on the PATH, and CI is set: the chart must be tested here.")
    pytest.skip("Helm is not on the PATH.")


@pytest.fixture(params=VALUES)
def chart(request: pytest.FixtureRequest) -> Render:
    """The chart with each set of values."""
    return render(request.param)
