"""More requests than there are permits: those that waited too long are told to come back."""

import time
from concurrent.futures import ThreadPoolExecutor

from eventcore.store.connection import connect
from eventcore.web.overload import PATIENCE
from local.shop import Shop
from tests.conftest import Databases
from tests.integration.trouble import transaction
from tests.integration.wire import Answer, Wire, user_body

PERMITS = 16
"""THREADS of the user service."""


def test_a_request_that_waits_too_long_for_a_permit_writes_nothing(
    shop: Shop, databases: Databases
) -> None:
    shop.start()
    wire = Wire(shop)
    owner = connect(databases("user", "owner"))

    def post(_: int) -> tuple[Answer, float]:
        began = time.monotonic()
        answer = wire.send("POST", "/users", user_body("Overload"), at="user-service")
        return answer, time.monotonic() - began

    with ThreadPoolExecutor(4 * PERMITS) as callers:
        with transaction(owner) as connection:
            connection.exec_driver_sql("lock table streams in exclusive mode")
            sent = [callers.submit(post, number) for number in range(4 * PERMITS)]
            while sum(each.done() for each in sent) < 3 * PERMITS:
                time.sleep(0.02)
            for path in ("/healthz", "/readyz"):
                assert wire.send("GET", path, at="user-service").status == 200
        told = [each.result() for each in sent]

    accepted = [answer for answer, _ in told if answer.status == 202]
    refused = [(answer, seconds) for answer, seconds in told if answer.status != 202]
    assert len(refused) >= 3 * PERMITS
    for answer, seconds in refused:
        assert answer.status == 503
        assert int(answer.headers["retry-after"]) > 0
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.value("requestId") == answer.headers["x-request-id"]
        if "The service is overloaded" in answer.value("detail"):
            assert seconds < PATIENCE + 2
    with owner.connect() as connection:
        written = "select count(*) from events where data->>'name' = 'Overload'"
        assert connection.exec_driver_sql(written).scalar_one() == len(accepted)
