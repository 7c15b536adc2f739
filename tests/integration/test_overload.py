"""More is asked for than there are threads: who has waited for too long is told to come back."""

import time
from concurrent.futures import ThreadPoolExecutor

from eventcore.serving import MANY, PATIENCE
from eventcore.store import connect, transaction
from local.shop import Shop
from tests.conftest import Databases
from tests.integration.wire import Answer, Wire, user_body

THREADS = 16
"""Of the user service."""


def test_a_request_that_waited_too_long_for_a_thread_is_refused_and_writes_nothing(
    shop: Shop, databases: Databases
) -> None:
    wire = Wire(shop)
    owner = connect(databases("user", "owner"))

    def post(_: int) -> Answer:
        return wire.send("POST", "/users", user_body("Overload"), at="user-service")

    with ThreadPoolExecutor((2 + MANY) * THREADS) as callers:
        with transaction(owner) as connection:
            connection.exec_driver_sql("lock table streams in exclusive mode")
            answers = callers.map(post, range((2 + MANY) * THREADS))
            waiting = "select count(*) from pg_locks where not granted"
            while connection.exec_driver_sql(waiting).scalar_one() < 2:
                time.sleep(0.02)
            time.sleep(2 * PATIENCE)  # what is looked at is that time passes
        told = list(answers)

    accepted = [answer for answer in told if answer.status == 202]
    refused = [answer for answer in told if answer not in accepted]
    assert accepted
    assert any("More is asked for" in answer.value("detail") for answer in refused)
    for answer in refused:
        assert answer.status == 503
        assert int(answer.headers["retry-after"]) > 0
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.value("requestId") == answer.headers["x-request-id"]
    with owner.connect() as connection:
        written = "select count(*) from events where data->>'name' = 'Overload'"
        assert connection.exec_driver_sql(written).scalar_one() == len(accepted)
