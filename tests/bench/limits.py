"""P36: what a rate limit takes of a request's time."""

import time
from collections.abc import Sequence
from contextlib import closing
from functools import partial

from flask import Flask, Response

from gateway.limit_store import SharedCounters
from gateway.limits import Limit, Limiter, Limits, limit_requests
from tests.bench.bed import Bed, Size
from tests.bench.rows import Row, Values, require

REQUESTS = 20_000

CLIENTS = 50

REPLICAS = 3


class RateLimits:
    """Measures Flask's hooks of the gateway, with limits that MongoDB shares, and without any."""

    def __init__(self, bed: Bed, _size: Size) -> None:
        self._bed = bed

    def rows(self) -> Sequence[Row]:
        """The rows of this family."""
        return (
            Row(
                "P36", f"rate limit of {CLIENTS} clients, 6000/minute, shared by {REPLICAS}",
                partial(self._request, is_limited=True), (" µs", " µs of CPU"),
                "without a limit", partial(self._request, is_limited=False),
            ),
        )  # fmt: skip

    def _request(self, *, is_limited: bool) -> Values:
        """Mean time of the hooks of a request, in µs: calls to the store included, and the CPU's.

        In the difference of the two a request waits for the store, and others go on.
        """
        app, limit = Flask("gateway"), Limit.read("read", "6000/minute")
        with closing(SharedCounters(self._bed.mongodb.login("bench_rate_limits"))) as counters:
            if is_limited:
                limit_requests(app, Limiter(counters, REPLICAS), Limits(limit, limit))
            answer, began, busy = Response(), time.perf_counter(), time.process_time()
            for number in range(REQUESTS):
                address = f"192.0.2.{number % CLIENTS}"
                with app.test_request_context("/", environ_base={"REMOTE_ADDR": address}):
                    app.preprocess_request()
                    answer = app.process_response(Response())
            took = time.perf_counter() - began, time.process_time() - busy
        require(("RateLimit" in answer.headers) == is_limited, "the answer says what is left")
        return tuple(seconds / REQUESTS * 1e6 for seconds in took)
