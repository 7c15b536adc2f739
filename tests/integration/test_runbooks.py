"""Each runbook's first command runs where its page says, and prints what its page shows."""

import re
import subprocess

import pytest

from local.inside import within
from local.servers import RabbitMQ
from local.services import ROOT
from local.shop import Shop
from tests.conftest import Databases
from tests.integration.scrape import metric
from tests.integration.test_shop import until
from tests.integration.trouble import append_what_no_code_knows, publish
from tests.integration.wire import Wire, new_user, order_body
from tests.panels.runbook import Runbook
from tests.panels.test_runbooks import NAMES


@pytest.fixture(scope="module")
def busy(shop: Shop, rabbitmq: RabbitMQ, databases: Databases) -> Shop:
    """A shop that has something to show: an order, a parked stream, a dead letter."""
    shop.start()
    wire = Wire(shop)
    placed = wire.send("POST", "/orders", order_body(new_user(wire), b"19.99"))
    assert placed.status == 200, placed
    append_what_no_code_knows(new_user(wire), databases)
    publish(rabbitmq, b"no event")
    parked = metric(shop, "user-service", "projection_parked_streams", "users")
    dead = metric(shop, "user-projector", "projection_dead_letters_total", "users")
    until(lambda: parked() >= 1 and dead() >= 1, 30)
    return shop


@pytest.mark.parametrize("name", NAMES)
def test_the_first_command_runs_and_prints_what_the_page_shows(busy: Shop, name: str) -> None:
    page = Runbook.of(name)
    done = subprocess.run(
        ["sh", "-c", page.command],
        env=dict(within(busy.environment(page.process))),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    printed = done.stdout.splitlines()
    missing = [line for line in page.shown if not any(map(alike(line).fullmatch, printed))]
    assert missing == [], done.stdout


def alike(line: str) -> re.Pattern[str]:
    """What is as `line` is, but for its numbers, times and ids."""
    some = r"\S+"
    words = [
        some if re.search(r"\d", word) and "{" not in word else re.escape(word)
        for word in line.split()
    ]
    return re.compile(r"\s+".join(words))
