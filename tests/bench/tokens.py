"""P30, P31: what consistency tokens take of a command's time, and of a query's."""

from collections.abc import Sequence
from functools import cached_property
from statistics import median
from time import perf_counter, process_time, sleep
from types import SimpleNamespace

import urllib3

from eventcore.consistency import Epoch
from eventcore.ids import new_id
from eventcore.model.token import SEEN_HEADER, Token, token_of
from tests.bench.bed import Bed, Size
from tests.bench.rows import Row, Values, require
from tests.bench.visitor import Visitor

COMMANDS = 20_000


class Tokens:
    """Measures the CPU time of what a command calls for its token, without a server; and the
    latency of a list through the gateway whose read model has what the token names.
    """

    def __init__(self, bed: Bed, size: Size) -> None:
        self._bed = bed
        self._size = size
        store = SimpleNamespace(progress=lambda _: SimpleNamespace(epoch=str(new_id())))
        self._epoch = Epoch(store, "order")
        self._seen = str(Token({("user", str(new_id())): 1 for _ in range(7)}, {"user": "e" * 36}))

    def rows(self) -> Sequence[Row]:
        """The rows of this family."""
        return (
            Row("P30", "token of a command that brings none", lambda: self._command(""), (" µs",)),
            Row("P30", "the same, bringing one", lambda: self._command(self._seen), (" µs",)),
            Row(
                "P31", "list with a token, caught up", lambda: self._list(with_token=True),
                (" ms p50",), "without a token", lambda: self._list(with_token=False),
            ),
        )  # fmt: skip

    def _command(self, given: str) -> Values:
        id, text, began = new_id(), "", process_time()
        for _ in range(COMMANDS):
            seen = Token.parse(given) if given else None
            self._epoch.require(seen)
            token_of("order", id, 1)  # of the answer that the append records
            text = self._epoch.answered(token_of("order", id, 1, 1000), seen)
        took = (process_time() - began) / COMMANDS * 1e6
        require(Token.parse(text).version("order", id) == 1, "the token names the version")
        return (took,)

    def _list(self, *, with_token: bool) -> Values:
        pool, url, token = self._lists
        headers = {SEEN_HEADER: token} if with_token else {}
        took: list[float] = []
        for _ in range(self._size.answered):
            began = perf_counter()
            answer = pool.request("GET", url, headers=headers)
            took.append(perf_counter() - began)
            require(answer.headers["Answered-From"] == "view", "the read model has caught up")
        return (median(took) * 1e3,)

    @cached_property
    def _lists(self) -> tuple[urllib3.PoolManager, str, str]:
        """A client, the URL of a list of orders, and a token that its read model has."""
        self._bed.shop.start()
        visitor = Visitor(self._bed)
        pool = urllib3.PoolManager(retries=False, timeout=10)
        answer = pool.request(
            "POST",
            visitor.url,
            body=visitor.order_body,
            headers={"Content-Type": "application/json"},
        )
        require(answer.status == 200, f"{visitor.url} answered {answer.status}")
        while not visitor.readmodel.find("orders", [answer.json()["orderId"]]):
            sleep(0.01)
        url = f"{self._bed.shop.url('gateway')}/queries/orders?userId={visitor.user_id}"
        return pool, url, answer.headers[SEEN_HEADER]
