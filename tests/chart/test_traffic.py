"""Traffic: calls to the gateway at a bounded rate, where values ask for them."""

import inspect
from urllib.parse import urlsplit

import pytest

from gateway import traffic
from tests.chart.network import edges, peers
from tests.chart.render import Object, render, template

ON: Object = {"traffic": {"enabled": True}}


def test_there_is_no_traffic_unless_it_is_asked_for() -> None:
    assert "traffic" not in {pod.component for pod in render().pods}
    assert not [name for name in render().named("NetworkPolicy") if "traffic" in name]


def test_it_runs_a_module_of_the_gateway_with_its_address_and_rate() -> None:
    chart = render(given={"traffic": {"enabled": True, "rate": 2.5}})
    (container,) = chart.pod("traffic").containers
    assert container["image"] == chart.pod("gateway").containers[0]["image"]
    assert container["command"] == ["python", "-m", traffic.__name__]
    gateway, rate = container["args"]
    assert len(inspect.signature(traffic.main).parameters) == len(container["args"])
    assert float(rate) == 2.5
    assert urlsplit(gateway).hostname in chart.named("Service")


def test_it_reaches_the_gateway_and_nothing_reaches_it() -> None:
    chart = render(given=ON)
    found = {each for each in edges(chart, peers(chart), peers(chart)) if "traffic" in each}
    assert found == {("traffic", "gateway", 3000)}


def test_where_values_say_who_may_reach_the_gateway_traffic_may_too() -> None:
    chart = render("ingress-tls", given=ON)
    assert ("traffic", "gateway", 3000) in edges(chart, peers(chart), peers(chart))


@pytest.mark.parametrize("rate", [0, -1, 101, "many"])
def test_a_rate_out_of_bounds_is_refused(rate: object) -> None:
    done, said = template(given={"traffic": {"enabled": True, "rate": rate}})
    assert not done
    assert "/traffic/rate" in said
