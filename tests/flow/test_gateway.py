"""The gateway: forwards a request as it is, once, unless it may be repeated; says why it cannot."""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Thread, Timer

import pytest
from flask import Flask, g
from flask.testing import FlaskClient

from eventcore.web import openapi
from eventcore.web.app import create_app
from gateway import forward
from gateway.api import Description, add_forwarding
from gateway.forward import Upstream
from local.services import SERVICES
from tests.beside import beside

USER = "/users/01890000-0000-7000-8000-000000000000"


@dataclass
class Seen:
    """A request as a service has read it."""

    method: str
    target: str
    headers: Message
    body: bytes


@dataclass
class Reply:
    """A service's answer; a `status` of 0 closes the connection without one."""

    status: int = 200
    body: bytes = b"{}"
    headers: dict[str, str] = field(default_factory=dict)


class Service(ThreadingHTTPServer):
    """Answers by `replies`, the last one again and again; hangs until `go` is set."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.connections = 0
        self.seen: list[Seen] = []
        self.replies = [Reply()]
        self.go = Event()
        self.go.set()
        self.closes_silently = False
        self.closed = Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Service

    def setup(self) -> None:
        super().setup()
        self.server.connections += 1

    def finish(self) -> None:
        super().finish()
        self.connection.close()
        self.server.closed.set()

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.seen.append(Seen(self.command, self.path, self.headers, body))
        self.server.go.wait(30)
        replies = self.server.replies
        reply = replies.pop(0) if len(replies) > 1 else replies[0]
        self.close_connection = self.server.closes_silently or not reply.status
        if not reply.status:
            return
        self.send_response(reply.status)
        for name, value in reply.headers.items():
            self.send_header(name, value)
        if "Content-Length" not in reply.headers:
            self.send_header("Content-Length", str(len(reply.body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(reply.body)

    do_POST = do_PUT = do_HEAD = do_DELETE = do_OPTIONS = do_GET

    def log_message(self, format: str, *args: object) -> None:
        """Logs nothing."""


@pytest.fixture
def service() -> Iterator[Service]:
    with beside(Service()) as service:
        yield service
        service.go.set()


@pytest.fixture
def upstream(service: Service) -> Iterator[Upstream]:
    upstream = Upstream(service.url, calls=4)
    yield upstream
    upstream.close()


def gateway(upstream: Upstream) -> Flask:
    """The gateway's application, with one service behind it under both names."""
    upstreams = {"user": upstream, "order": upstream}
    description = Description(upstreams)
    app = create_app("Gateway", (), missing=dict, is_ready=lambda: True, document=description)
    add_forwarding(app, {name: SERVICES[name].paths for name in upstreams}, upstreams)
    return app


@pytest.fixture
def app(upstream: Upstream) -> Flask:
    return gateway(upstream)


@pytest.fixture
def client(app: Flask) -> FlaskClient:
    return app.test_client()


def pause(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Advances the gateway's clock."""
    ahead = [0.0]
    monkeypatch.setattr(forward, "monotonic", lambda: time.monotonic() + ahead[0])

    def advance(seconds: float) -> None:
        ahead[0] += seconds

    return advance


# ── what is forwarded ─────────────────────────────────────────────────────────────────────


def test_a_request_and_its_answer_are_forwarded_with_their_headers(
    service: Service, client: FlaskClient
) -> None:
    sent = {
        "Idempotency-Key": "k",
        "If-Match": '"1"',
        "X-Correlation-ID": "c",
        "Authorization": "Bearer t",
        "X-Forwarded-Host": "evil",
        "Connection": "X-Request-ID",
    }
    service.replies = [Reply(202, b'{"a":1}', {"ETag": '"2"', "Server": "x", "Set-Cookie": "a=b"})]
    answer = client.post("/users?a=%41&b=\x85", data=b"{}", headers=sent)
    [seen] = service.seen
    assert (seen.method, seen.body) == ("POST", b"{}")
    assert seen.target.startswith("/users?a=%41&b=%")
    for name in ("Idempotency-Key", "If-Match", "X-Correlation-ID", "Authorization"):
        assert seen.headers[name] == sent[name]
    assert "X-Forwarded-Host" not in seen.headers
    assert (answer.status_code, answer.data) == (202, b'{"a":1}')
    assert answer.headers["ETag"] == '"2"'
    assert "Set-Cookie" not in answer.headers
    assert answer.headers["X-Request-ID"] == seen.headers["X-Request-ID"]


@pytest.mark.parametrize("path", ["/users/x", "/%75sers/x", "http://shop/users/x"])
def test_another_spelling_of_a_path_is_the_same_path(
    service: Service, client: FlaskClient, path: str
) -> None:
    assert client.get(path).status_code == 200
    assert service.seen[0].target == "/users/x"


@pytest.mark.parametrize(
    "path", ["/internal/heads", "/users/", "/users/a/b/c", "/users/..", "/users/a%2Fb", "/users/;"]
)
def test_what_is_not_on_the_list_reaches_no_service(
    service: Service, client: FlaskClient, path: str
) -> None:
    answer = client.get(path)
    assert (answer.status_code, answer.mimetype) == (404, "application/problem+json")
    assert not service.seen


def test_head_tells_the_length_that_get_would_have(service: Service, client: FlaskClient) -> None:
    service.replies = [Reply(200, b"12345678")]
    answer = client.head(USER)
    assert (answer.headers["Content-Length"], answer.data) == ("8", b"")


def test_a_method_that_a_route_does_not_have_is_refused_where_the_route_is(
    service: Service, client: FlaskClient
) -> None:
    service.replies = [Reply(405, b"{}", {"Allow": "GET"})]
    assert client.delete(USER).headers["Allow"] == "GET"
    assert len(service.seen) == 1
    own = client.delete("/healthz")
    assert own.status_code == 405
    assert "GET" in own.headers["Allow"]
    assert len(service.seen) == 1


def test_the_hooks_of_flask_run_for_every_request(app: Flask, service: Service) -> None:
    ran: list[int] = []
    app.before_request(lambda: setattr(g, "mine", True))

    @app.after_request
    def note(response):  # type: ignore[no-untyped-def]
        ran.append(response.status_code)
        response.headers["X-Mine"] = str(g.mine)
        return response

    service.replies = [Reply(), Reply(422), Reply(0)]
    client = app.test_client()
    answers = [client.get(USER), client.get(USER), client.post("/users"), client.get("/none")]
    assert ran == [200, 422, 502, 404]
    assert {answer.headers["X-Mine"] for answer in answers} == {"True"}


@pytest.mark.parametrize("name", ["http_proxy", "HTTP_PROXY", "all_proxy"])
def test_no_proxy_variable_catches_a_call(
    client: FlaskClient, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert client.get(USER).status_code == 200


# ── connections ───────────────────────────────────────────────────────────────────────────


def test_a_connection_is_reused_for_a_moment_and_not_when_idle_for_long(
    service: Service, client: FlaskClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    advance = pause(monkeypatch)

    def connections() -> int:
        assert client.get(USER).status_code == 200
        return service.connections

    assert [connections(), connections()] == [1, 1]
    advance(forward.IDLE_TIME / 2)
    assert connections() == 1
    advance(forward.IDLE_TIME)
    assert [connections(), connections()] == [2, 2]


def test_a_kept_connection_that_the_service_has_closed_is_not_used(
    service: Service, client: FlaskClient
) -> None:
    service.closes_silently = True
    for _ in range(3):
        service.closed.clear()
        assert client.post("/users").status_code == 200
        assert service.closed.wait(5)
    assert len(service.seen) == 3


# ── no answer ─────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("method", "headers", "times"),
    [("POST", {}, 1), ("POST", {"Idempotency-Key": "k"}, 2), ("GET", {}, 2), ("DELETE", {}, 1)],
)
def test_a_request_is_repeated_after_a_lost_connection_where_that_is_safe(
    service: Service, client: FlaskClient, method: str, headers: dict[str, str], times: int
) -> None:
    service.replies = [Reply(0)]
    answer = client.open(USER, method=method, headers=headers)
    assert answer.status_code == 502
    assert ("is not known" in answer.get_json()["detail"]) is (method != "GET")
    assert len(service.seen) == times


def test_the_second_answer_is_the_answer(service: Service, client: FlaskClient) -> None:
    service.replies = [Reply(0), Reply(202)]
    assert client.post("/users", headers={"Idempotency-Key": "k"}).status_code == 202


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_a_request_that_is_not_answered_in_time_is_not_sent_again(
    service: Service, client: FlaskClient, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    monkeypatch.setattr(forward, "ANSWER_TIME", 0.2)
    service.go.clear()
    answer = client.open(USER, method=method, headers={"Idempotency-Key": "k"})
    assert answer.status_code == 504
    assert ("is not known" in answer.get_json()["detail"]) is (method == "POST")
    assert len(service.seen) == 1


def test_an_unreachable_service_is_a_503_that_says_that_nothing_was_sent() -> None:
    with beside(Service()) as gone:
        client = gateway(Upstream(gone.url, calls=1)).test_client()
    for _ in range(4):  # then the circuit is open
        answer = client.post("/users")
        assert answer.status_code == 503
        assert "Nothing was sent" in answer.get_json()["detail"]
        assert int(answer.headers["Retry-After"]) > 0


@contextmanager
def hanging(service: Service, upstream: Upstream, calls: int) -> Iterator[None]:
    """So many calls wait for an answer."""
    service.go.clear()
    threads = [Thread(target=upstream.call, args=("GET", USER)) for _ in range(calls)]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + 10
    while len(service.seen) < calls:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    yield
    service.go.set()
    for thread in threads:
        thread.join()


def test_calls_beyond_the_permits_are_refused_while_a_service_hangs(
    service: Service, upstream: Upstream, client: FlaskClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    advance = pause(monkeypatch)
    with hanging(service, upstream, calls=4):
        advance(forward.PATIENCE)
        began = time.monotonic()
        answer = client.get(USER)
        assert time.monotonic() - began < 0.2
        assert (answer.status_code, answer.headers["Retry-After"]) == (503, "1")
        assert len(service.seen) == 4
    assert client.get(USER).status_code == 200


def test_a_call_waits_for_a_permit_while_a_service_answers_others(
    service: Service, upstream: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forward, "PATIENCE", 20)
    with hanging(service, upstream, calls=4):
        Timer(0.1, service.go.set).start()
        assert upstream.call("GET", USER).status == 200


def test_while_a_service_hangs_calls_to_it_fail_at_once(
    service: Service, client: FlaskClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forward, "ANSWER_TIME", 0.1)
    service.go.clear()
    assert [client.post("/users").status_code for _ in range(4)] == [504, 504, 504, 503]
    assert "Nothing was sent" in client.post("/users").get_json()["detail"]
    assert len(service.seen) == 3


# ── the description ───────────────────────────────────────────────────────────────────────


def description(title: str) -> bytes:
    info = {"title": title, "description": f"Serves {title}."}
    document = {"info": info, "paths": {}, "components": {"schemas": {}}}
    return json.dumps(document).encode()


def test_descriptions_are_merged_after_a_change_and_kept_meanwhile(
    service: Service, client: FlaskClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    merged: list[int] = []
    merge = openapi.merge

    def count(*args, **more):  # type: ignore[no-untyped-def]
        merged.append(1)
        return merge(*args, **more)

    monkeypatch.setattr(openapi, "merge", count)
    service.replies = [Reply(0)]
    assert client.get("/openapi.json").status_code == 502
    service.replies = [Reply(200, description("A"), {"ETag": '"a"'})]
    assert (
        "- **A**: Serves A." in json.loads(client.get("/openapi.json").data)["info"]["description"]
    )
    assert len(merged) == 1
    service.seen.clear()
    service.replies = [Reply(304, b"", {"ETag": '"a"'})]
    assert client.get("/openapi.json").status_code == 200
    assert [seen.headers["If-None-Match"] for seen in service.seen] == ['"a"', '"a"']
    assert len(merged) == 1
    service.replies = [Reply(0)]
    assert client.get("/openapi.json").status_code == 200
    service.replies = [Reply(200, description("B"), {"ETag": '"b"'})]
    assert client.get("/openapi.json").status_code == 200
    assert len(merged) == 2


# ── the cookie that keeps a token ─────────────────────────────────────────────────────────


def with_cookie(upstream: Upstream) -> FlaskClient:
    """A browser before a gateway whose setting says that it keeps the token for a minute."""
    app = create_app("Gateway", (), missing=dict, is_ready=lambda: True)
    add_forwarding(app, {"user": SERVICES["user"].paths}, {"user": upstream}, cookie_seconds=60)
    return app.test_client()


def test_a_cookie_keeps_the_newest_token_and_a_header_counts_more(
    service: Service, upstream: Upstream
) -> None:
    client = with_cookie(upstream)
    service.replies = [Reply(headers={"Consistency-Token": "first"}), Reply()]
    answer = client.post("/users", json={})
    assert answer.headers["Consistency-Token"] == "first"
    cookie = answer.headers["Set-Cookie"]
    assert {"Max-Age=60", "HttpOnly", "SameSite=Lax", "Path=/"} <= set(cookie.split("; "))
    client.get(USER)
    client.get(USER, headers={"Consistency-Token": "own"})
    sent = [each.headers["Consistency-Token"] for each in service.seen]
    assert sent == [None, "first", "own"]


@pytest.mark.parametrize(("code", "kept"), [("other-log", False), ("conflict", True)])
def test_a_cookie_that_was_refused_is_deleted(
    service: Service, upstream: Upstream, code: str, kept: bool
) -> None:
    client = with_cookie(upstream)
    refusal = Reply(409, b'{"type":"urn:problem:%s"}' % code.encode())
    service.replies = [Reply(headers={"Consistency-Token": "first"}), refusal, Reply()]
    client.post("/users", json={})
    assert client.get(USER).status_code == 409
    client.get(USER)
    assert (service.seen[-1].headers["Consistency-Token"] == "first") == kept


def test_without_the_setting_there_is_no_cookie_and_headers_pass(
    service: Service, client: FlaskClient
) -> None:
    service.replies = [
        Reply(headers={"Consistency-Token": "new", "Answered-From": "live", "Set-Cookie": "a=b"})
    ]
    client.set_cookie("consistency", "kept")
    answer = client.get(USER, headers={"Prefer": "wait=1", "Consistency-Token": "old"})
    assert (answer.headers["Consistency-Token"], answer.headers["Answered-From"]) == ("new", "live")
    assert "Set-Cookie" not in answer.headers
    client.get(USER)
    first, second = service.seen
    assert (first.headers["Prefer"], first.headers["Consistency-Token"]) == ("wait=1", "old")
    assert second.headers["Consistency-Token"] is None
