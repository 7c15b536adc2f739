"""Requests byte for byte: a library would correct what is wrong with them, or refuse to send it."""

import json
import re
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from local.shop import Shop

Headers = Mapping[str, str]

USER_DOORS = ("gateway", "user-service")
ORDER_DOORS = ("gateway", "order-service")
"""Where the same request must be answered alike."""


@dataclass(frozen=True)
class Answer:
    """What came back, as it came, and from where."""

    at: str
    status: int
    headers: Headers
    body: bytes

    def value(self, name: str) -> str:
        """A field of the JSON that was answered."""
        return str(json.loads(self.body)[name])


class Wire:
    """Sends a request as it is, and gives back what is answered until the connection closes."""

    def __init__(self, shop: Shop) -> None:
        self._shop = shop

    def send(
        self,
        method: str,
        target: str | bytes,
        body: bytes | None = None,
        headers: Headers | None = None,
        at: str = "gateway",
        *,
        is_last: bool = False,
    ) -> Answer:
        """A request with the headers that belong to it, unless `headers` says otherwise; where it
        `is_last`, the connection's sending side is closed behind it.
        """
        given = {"Host": "shop", "Connection": "close"}
        if body is not None:
            given |= {"Content-Type": "application/json", "Content-Length": str(len(body))}
        given |= headers or {}
        path = target if isinstance(target, bytes) else target.encode("ascii")
        lines = [method.encode() + b" " + path + b" HTTP/1.1"]
        lines += [f"{name}: {value}".encode("latin-1") for name, value in given.items() if value]
        request = b"\r\n".join(lines) + b"\r\n\r\n" + (body or b"")
        return parse(at, self.exchange(request, at, is_last=is_last))

    def exchange(self, request: bytes, at: str = "gateway", *, is_last: bool = False) -> bytes:
        """All bytes that are answered to these."""
        place = urlsplit(self._shop.url(at))
        with socket.create_connection((place.hostname, place.port), timeout=15) as connection:
            answer = b""
            try:
                connection.sendall(request)
                if is_last:
                    connection.shutdown(socket.SHUT_WR)
                while some := connection.recv(65536):
                    answer += some
            except ConnectionError:
                pass  # it has answered and hung up before it had heard all
            return answer


def parse(at: str, answer: bytes) -> Answer:
    head, _, body = answer.partition(b"\r\n\r\n")
    status, *lines = head.decode("latin-1").split("\r\n")
    assert status.startswith("HTTP/1.1 "), answer
    headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
    return Answer(at, int(status.split()[1]), headers, body)


def in_chunks(body: bytes, size: int = 5000) -> bytes:
    """A body as `Transfer-Encoding: chunked` sends it."""
    chunks = [body[begin : begin + size] for begin in range(0, len(body), size)]
    return b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in [*chunks, b""])


CHUNKED: Headers = {"Transfer-Encoding": "chunked", "Content-Length": ""}


def new_user(wire: Wire, body: bytes = b'{"name": "Ada", "email": "ada@example.com"}') -> str:
    created = wire.send("POST", "/users", body)
    assert created.status == 202, created
    return created.value("userId")


def user_body(name: object = "Ada", email: object = "ada@example.com", **more: object) -> bytes:
    return json.dumps({"name": name, "email": email, **more}).encode()


def order_body(user_id: str, price: bytes, item: bytes = b'"Laptop"') -> bytes:
    return b'{"userId": "%b", "item": %b, "price": %b}' % (user_id.encode(), item, price)


def credentials(shop: Shop, service: str = "user-service") -> Headers:
    """The token of a feed, so that nothing but the routing keeps anybody out."""
    token = Path(shop.environment(service)["FEED_TOKEN_FILE"]).read_text().strip()
    return {"Authorization": f"Bearer {token}"}


def listed(wire: Wire, user_id: str, order_id: str) -> bytes:
    """The order in the list, which is the read model's alone, as soon as it is there."""
    deadline = time.monotonic() + 30
    while True:
        answer = wire.send("GET", f"/queries/orders?limit=100&userId={user_id}").body
        of_this = re.search(rb'\{"_id":"%b"[^}]*\}' % order_id.encode(), answer)
        if of_this:
            return of_this[0]
        assert time.monotonic() < deadline, answer
        time.sleep(0.05)


LEAKS = re.compile(
    rb"Traceback|File \"|\.py\b|site-packages|sqlalchemy|psycopg|pymongo|msgspec|pydantic"
)


def assert_refused(answer: Answer, *statuses: int) -> None:
    """A problem that says what is wrong and under which id it is logged, and no more."""
    assert answer.status in (statuses or range(400, 500)), answer
    assert answer.headers["content-type"] == "application/problem+json"
    problem = json.loads(answer.body)
    assert problem["status"] == answer.status
    assert problem["title"]
    assert len(problem["detail"]) > 10
    assert problem["type"].startswith("urn:problem:")
    assert problem["requestId"] == answer.headers["x-request-id"] != ""
    assert not LEAKS.search(answer.body), answer.body
