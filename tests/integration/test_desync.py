"""Requests that two readers may read differently, sent to the gateway before a service that writes
down what reaches it: each is refused, or reaches the service as exactly what was meant.
"""

import re
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from eventcore.settings import Secret, Server
from local.processes import Servers, processes
from local.servers import free_port
from local.shop import Shop
from tests.beside import beside
from tests.integration.test_http_paths import INSIDE
from tests.integration.test_shop import until
from tests.integration.wire import Wire

Seen = tuple[str, str, bytes]
"""A request as the service has read it: method, target, body."""


class Service(ThreadingHTTPServer):
    """Answers everything with nothing, and writes down what it was asked."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.seen: list[Seen] = []


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Service

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        assert "Transfer-Encoding" not in self.headers
        self.server.seen.append((self.command, self.path, body))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_POST = do_PUT = do_GET

    def log_message(self, format: str, *args: object) -> None:
        """Nothing is worth a line."""


@pytest.fixture(scope="module")
def listening() -> Iterator[Service]:
    with beside(Service()) as service:
        yield service


@pytest.fixture(scope="module")
def gateway(listening: Service, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    """A gateway that logs text, before two services of which nobody knows more than this."""
    nowhere = Server("127.0.0.1", 1, "", "", Secret())
    port = listening.server_port
    all_of_them = processes(
        Servers(nowhere, nowhere, {"user": nowhere, "order": nowhere}),
        tmp_path_factory.mktemp("secrets"),
        ports={"gateway": free_port(), "user-service": port, "order-service": port},
        free_port=free_port,
        settings={"LOG_FORMAT": "text"},
    )
    gateway = Shop([all_of_them[0]], tmp_path_factory.mktemp("logs"))
    gateway.start()
    yield gateway
    gateway.stop()


@pytest.fixture
def service(listening: Service) -> Service:
    listening.seen.clear()
    return listening


@pytest.fixture
def wire(gateway: Shop) -> Wire:
    return Wire(gateway)


HIDDEN = b"GET /users/smuggled HTTP/1.1\r\nHost: x\r\nX-Forged: forged\r\n\r\n"


def post(framing: bytes, body: bytes) -> bytes:
    first = b"POST /users HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
    return first + framing + b"\r\n" + body


CHUNKED = b"Transfer-Encoding: chunked\r\n"
LENGTH = b"Content-Length: %d\r\n" % len(HIDDEN)
IN_ONE_CHUNK = b"%x\r\n%b\r\n0\r\n\r\n" % (len(HIDDEN), HIDDEN)

TWO_READINGS = {
    "a length before chunks": post(b"Content-Length: 4\r\n" + CHUNKED, b"0\r\n\r\n" + HIDDEN),
    "chunks before a length": post(CHUNKED + LENGTH, b"0\r\n\r\n" + HIDDEN),
    "chunks and a length of nothing": post(CHUNKED + b"Content-Length: 0\r\n", IN_ONE_CHUNK),
    "chunks, then identity": post(CHUNKED + b"Transfer-Encoding: identity\r\n", IN_ONE_CHUNK),
    "identity, then chunks": post(b"Transfer-Encoding: identity\r\n" + CHUNKED, IN_ONE_CHUNK),
    "compressed": post(b"Transfer-Encoding: gzip, chunked\r\n", IN_ONE_CHUNK),
    "chunks twice": post(CHUNKED * 2, IN_ONE_CHUNK),
    "chunks twice in one": post(b"Transfer-Encoding: chunked, chunked\r\n", IN_ONE_CHUNK),
    "chunks and something behind": post(b"Transfer-Encoding: chunked, x\r\n", IN_ONE_CHUNK),
    "another word": post(b"Transfer-Encoding: xchunked\r\n" + LENGTH, HIDDEN),
    "a quoted word": post(b'Transfer-Encoding: "chunked"\r\n' + LENGTH, HIDDEN),
    "an empty coding": post(b"Transfer-Encoding:\r\n" + LENGTH, HIDDEN),
    "a vertical tab before": post(b"Transfer-Encoding: \x0bchunked\r\n" + LENGTH, HIDDEN),
    "a blank before the colon": post(b"Transfer-Encoding : chunked\r\n" + LENGTH, HIDDEN),
    "a blank before the name": post(b"X: y\r\n Transfer-Encoding: chunked\r\n" + LENGTH, HIDDEN),
    "a folded coding": post(b"Transfer-Encoding:\r\n chunked\r\n" + LENGTH, HIDDEN),
    "a folded length": post(b"Content-Length:\r\n 0\r\n", HIDDEN),
    "a name with a NUL": post(b"Transfer-Encoding\x00: chunked\r\n" + LENGTH, HIDDEN),
    "chunks in HTTP/1.0": b"POST /users HTTP/1.0\r\n" + CHUNKED + b"\r\n" + IN_ONE_CHUNK,
    "two lengths": post(b"Content-Length: 0\r\n" + LENGTH, HIDDEN),
    "the same length twice": post(LENGTH * 2, HIDDEN),
    "two lengths in one": post(b"Content-Length: 0, %d\r\n" % len(HIDDEN), HIDDEN),
    "a length with a sign": post(b"Content-Length: +%d\r\n" % len(HIDDEN), HIDDEN),
    "a negative length": post(b"Content-Length: -1\r\n", HIDDEN),
    "a length in hexadecimal": post(b"Content-Length: 0x10\r\n", HIDDEN),
    "a length with an underscore": post(b"Content-Length: 1_0\r\n", HIDDEN),
    "a length of no digits": post(b"Content-Length: \r\n", HIDDEN),
    "a length in another script": post("Content-Length: ٣\r\n".encode(), HIDDEN),
    "bare line feeds": post(LENGTH, HIDDEN).replace(b"\r\n", b"\n"),
    "a bare line feed in a header": post(b"X: y\nContent-Length: 0\r\n", HIDDEN),
    "a bare line feed at the end": b"POST /users HTTP/1.1\r\nHost: x\r\n\n" + HIDDEN,
    "a bare carriage return": post(b"X: y\rContent-Length: 0\r\n" + LENGTH, HIDDEN),
    "a NUL in a header": post(b"X: y\x00\r\n" + LENGTH, HIDDEN),
    "a header without a colon": post(b"Content-Length\r\n" + LENGTH, HIDDEN),
    "a header without a name": post(b": 0\r\n" + LENGTH, HIDDEN),
    "an extension with a line feed": post(CHUNKED, b"0;\n" + HIDDEN + b"\r\n0\r\n\r\n"),
    "an extension with a carriage return": post(CHUNKED, b"0;a\rb\r\n\r\n" + HIDDEN),
    "an extension that is none": post(CHUNKED, b"0;a=\x01\r\n\r\n" + HIDDEN),
    "a size with a blank": post(CHUNKED, b"0 \r\n\r\n" + HIDDEN),
    "a size with a sign": post(CHUNKED, b"+0\r\n\r\n" + HIDDEN),
    "a size with 0x": post(CHUNKED, b"0x0\r\n\r\n" + HIDDEN),
    "a negative size": post(CHUNKED, b"-0\r\n\r\n" + HIDDEN),
    "a size with a line feed": post(CHUNKED, b"0\n\n" + HIDDEN),
    "a size that no machine holds": post(CHUNKED, b"1%032x\r\n" % 0 + HIDDEN + b"x" * 70_000),
    "a chunk longer than its size": post(CHUNKED, b"1\r\nab\r\n0\r\n\r\n" + HIDDEN),
    "a length in a trailer": post(CHUNKED, b"0\r\nContent-Length: 9\r\n\r\n" + HIDDEN),
    "a host in a trailer": post(CHUNKED, b"0\r\nHost: y\r\n\r\n" + HIDDEN),
    "two hosts": b"POST /users HTTP/1.1\r\nHost: x\r\nHost: y\r\n" + LENGTH + b"\r\n" + HIDDEN,
    "a folded host": post(b"X: y\r\n Host: y\r\n" + LENGTH, HIDDEN),
    "a protocol of its own": b"POST /users HTTP/1.1 HTTP/1.1\r\nHost: x\r\n" + LENGTH + b"\r\n",
    "a version that is none": b"POST /users HTTP/1.1.1\r\nHost: x\r\n\r\n" + HIDDEN,
    "a version of its own": b"GET /users HTTP/9.9\r\nHost: x\r\n\r\n",
    "no version": b"GET /users\r\n\r\n" + HIDDEN,
    "tabs in the first line": b"GET\t/users\tHTTP/1.1\r\nHost: x\r\n\r\n",
    "two blanks in the first line": b"GET  /users HTTP/1.1\r\nHost: x\r\n\r\n",
    "a method of its own": b"G(T /users HTTP/1.1\r\nHost: x\r\n\r\n",
    "the end of the line in the address": b"GET /users\rX HTTP/1.1\r\nHost: x\r\n\r\n",
    "another's tunnel": b"CONNECT 127.0.0.1:22 HTTP/1.1\r\nHost: x\r\n\r\n",
    "the preface of HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
}  # fmt: skip


@pytest.mark.parametrize("sent", TWO_READINGS.values(), ids=TWO_READINGS)
def test_what_can_be_read_in_two_ways_is_refused_and_reaches_no_service(
    wire: Wire, service: Service, sent: bytes
) -> None:
    [status] = statuses(wire.exchange(sent))
    assert status in (400, 404, 405, 413, 501)
    assert service.seen == []


AS_BODY: Seen = ("POST", "/users", HIDDEN)
"""What is hidden was meant as the body, and is no more than that."""

EMPTY: Seen = ("POST", "/users", b"")
NEXT = b"GET /users/next HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
KEPT = b"POST /users HTTP/1.1\r\nHost: x\r\n"

ONE_READING: dict[str, tuple[bytes, list[Seen]]] = {
    "a length": (post(LENGTH, HIDDEN), [AS_BODY]),
    "a length among blanks": (post(LENGTH.replace(b": ", b": \t "), HIDDEN), [AS_BODY]),
    "chunks": (post(CHUNKED, IN_ONE_CHUNK), [AS_BODY]),
    "chunks in capitals": (post(CHUNKED.upper(), IN_ONE_CHUNK), [AS_BODY]),
    "an extension": (
        post(CHUNKED, IN_ONE_CHUNK.replace(b"\r\n", b';a="0;\\"";b\r\n', 1)), [AS_BODY],
    ),
    "trailers, which are dropped": (
        post(CHUNKED, IN_ONE_CHUNK[:-2] + b"X-Request-ID: forged\r\n\r\n"), [AS_BODY],
    ),
    "a name with an underscore": (
        post(b"Transfer_Encoding: chunked\r\nContent_Length: 0\r\n" + LENGTH, HIDDEN), [AS_BODY],
    ),
    "a length that is said to be for one hop": (
        post(b"Connection: Content-Length\r\n" + LENGTH, HIDDEN), [AS_BODY],
    ),
    "an upgrade to what it does not speak": (
        post(b"Upgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n" + LENGTH, HIDDEN), [AS_BODY],
    ),
    "another method in a header": (
        post(b"X-HTTP-Method-Override: GET\r\n" + LENGTH, HIDDEN), [AS_BODY],
    ),
    "another address in a header": (
        post(b"X-Original-URL: /internal/heads\r\nX-Rewrite-URL: /internal/heads\r\n"
             b"X-Forwarded-Host: y\r\nForwarded: host=y\r\n" + LENGTH, HIDDEN), [AS_BODY],
    ),
    "no body, and no request behind the last": (post(b"", HIDDEN), [EMPTY]),
    "a body of a query": (
        NEXT[:-2] + LENGTH + b"\r\n" + HIDDEN, [("GET", "/users/next", HIDDEN)],
    ),
    "another request behind a length": (
        KEPT + LENGTH + b"\r\n" + HIDDEN + NEXT, [AS_BODY, ("GET", "/users/next", b"")],
    ),
    "another request behind chunks": (
        KEPT + CHUNKED + b"\r\n" + IN_ONE_CHUNK + NEXT, [AS_BODY, ("GET", "/users/next", b"")],
    ),
}  # fmt: skip


@pytest.mark.parametrize(("sent", "meant"), ONE_READING.values(), ids=ONE_READING)
def test_what_can_be_read_in_one_way_is_read_so_by_the_service_as_well(
    wire: Wire, service: Service, sent: bytes, meant: list[Seen]
) -> None:
    assert statuses(wire.exchange(sent)) == [200] * len(meant)
    assert service.seen == meant


def statuses(answered: bytes) -> list[int]:
    return [int(status) for status in re.findall(rb"HTTP/1\.[01] (\d+)", answered)]


# ── what does not reach a service ─────────────────────────────────────────────────────────

INSIDE_TOO = [
    "/Internal/heads", "/internal/heads/", "/internal/heads;", "/internal/heads%00",
    "/internal/heads%20", "/internal/heads#", "/internal/heads?", "/internal/log",
    "/internal./heads", "/internal%20/heads", "/%2e/internal/heads", "/..;/internal/heads",
    "/;/internal/heads", "//shop/internal/heads", "/users//internal/heads",
    "/users/%2e%2e%2finternal%2fheads", "/users/..%c0%afinternal/heads",
    "/queries/orders/%2e%2e/%2e%2e/internal/heads", "/users/../metrics",
    "/internal\xef\xbc\x8fheads", "/users/\xe2\x80\xa8/internal", "HTTP://SHOP/INTERNAL/HEADS",
]  # fmt: skip


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize("target", [*INSIDE, *INSIDE_TOO])
def test_no_spelling_of_what_is_inside_gets_as_far_as_a_service(
    gateway: Shop, wire: Wire, service: Service, method: str, target: str
) -> None:
    port = gateway.url("gateway").rpartition(":")[2]
    aimed = target.replace("{user}", "some-user").replace("{port}", port).encode("latin-1")
    answer = wire.send(method, aimed)
    for _, seen, _ in service.seen:
        assert re.fullmatch("/(users|orders|queries/orders)(/[A-Za-z0-9-]+)*", seen)
    assert service.seen or answer.status in (400, 403, 404, 405)


# ── what nobody can write into the log ────────────────────────────────────────────────────

MARK = "Forged"
BREAKS = [
    *(
        "%0d%0a",
        "%0a",
        "%0d",
        "%00",
        "%1b[2K",
        "%7f",
        "%c2%85",
        "%c2%9b2K",
        "%e2%80%a8",
        "%e2%80%a9",
    ),
    *("\\r\\n", "\r", "\x0b", "\x0c", "\x1c", "\x85", "\x9b2K"),
]
LINE = re.compile(r"(DEBUG|INFO|WARNING|ERROR) +[^\x00-\x1f\x7f-\x9f\u2028\u2029]+")


@pytest.mark.parametrize("given", BREAKS, ids=repr)
def test_nothing_in_an_address_or_a_header_begins_a_line_of_the_log(
    gateway: Shop, wire: Wire, given: str
) -> None:
    forged = f"{given}INFO    {MARK}"
    heard = len(gateway.log("gateway"))
    spoken = forged.replace(" ", "%20").encode("latin-1")
    wire.send("GET", b"/users/" + spoken)
    wire.send("GET", b"/" + spoken)
    wire.send("GET", b"/users?name=" + spoken)
    wire.send("BREW" + MARK, "/users")
    for name in ("User-Agent", "X-Correlation-ID", "X-Request-ID", "traceparent", "Referer",
                 "Idempotency-Key", "Authorization", "Host", "X-Forwarded-For"):  # fmt: skip
        wire.exchange(
            f"POST /users HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{name}: x{forged}\r\n\r\n"
            .encode("latin-1")
        )  # fmt: skip
    wire.exchange(f"GET /users HTTP/1.1\r\nX{forged}: x\r\n\r\n".encode("latin-1"))
    until(lambda: gateway.log("gateway").count("\n", heard) > 3, 10)  # it is written a little later
    said = gateway.log("gateway")[heard:]
    assert MARK not in said
    for line in said.removesuffix("\n").split("\n"):
        assert LINE.fullmatch(line), line
