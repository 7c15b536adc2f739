"""A service under gunicorn: its settings, its readiness, its metrics port.

The only file that imports gunicorn.
"""

import importlib
import logging
import os
import select
import shutil
import socket
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from flask import Flask
from gunicorn.app.base import BaseApplication
from gunicorn.glogging import Logger
from gunicorn.http import wsgi
from gunicorn.http.errors import NoMoreData, ParseException
from gunicorn.http.unreader import Unreader
from gunicorn.util import http_date
from gunicorn.workers.gthread import STOP_KEEPALIVE_LINGER, ThreadWorker
from prometheus_client.multiprocess import mark_process_dead

from eventcore import jsontext
from eventcore.errors import Away, Busy
from eventcore.observe import Health, log_fields, serve_probes, start
from eventcore.readmodel import Mongo
from eventcore.settings import ServeSettings
from eventcore.store import Postgres, require_schema
from eventcore.tracing import start_tracing, stop_tracing
from eventcore.web import BODY_LIMIT, NOTHING_ELSE, Ids, note_answer, too_slow, unreadable

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication

log = logging.getLogger(__name__)

PATIENCE = 0.25
"""Seconds that a request may have waited for a thread while MANY others wait; then its caller is
told to come back."""

MANY = 2
"""Requests that wait for each thread. Where fewer wait, the machine is slow, not overrun."""

AT_ONCE = 8192
"""Bytes that are read at once where nobody asks for more."""

READ_TIME = 10.0
"""Seconds within which a request must have come, from its first byte to the end of its body."""

SLOW = 1.0
"""Seconds after which a request that has not come yet is a slow one. Half of the threads, at most,
wait for slow ones: the others are for those who send what they have to say."""

PROBES = ("/healthz", "/readyz")
"""They are answered however long they have waited: a busy service is a ready one."""

GRACE = 20
"""Seconds that requests in progress get when the service is told to stop."""


class Readiness:
    """Whether a service can do its work: its schema is there, and a server to answer from.

    Without PostgreSQL it still answers queries, without MongoDB it still takes commands; so
    it stays ready while it has one of them, and names the other as missing.
    """

    def __init__(self, store: Postgres, readmodel: Mongo) -> None:
        self._store = store
        self._readmodel = readmodel
        self._health = Health("store", "readmodel")
        self._schema_seen = False
        self._lock = threading.Lock()
        self._checked_at = 0.0

    def missing(self) -> Mapping[str, str]:
        """What does not work, with the reason; looks once a second at most."""
        with self._lock:
            if time.monotonic() - self._checked_at > 1:
                self._look()
                self._checked_at = time.monotonic()
        return self._health.missing()

    def is_ready(self) -> bool:
        """Whether requests may come."""
        missing = self.missing()
        return self._schema_seen and len(missing) < 2

    def _look(self) -> None:
        try:
            require_schema(self._store.schema_version())
            self._schema_seen = True
            self._store.require_writable()
            self._health.well("store")
        except Away as away:
            self._health.lacks("store", str(away))
        try:
            self._readmodel.ping()
            self._health.well("readmodel")
        except Away as away:
            self._health.lacks("readmodel", str(away))


DONT_WAIT = socket.MSG_DONTWAIT

_NEXT = select.EPOLLIN | select.EPOLLONESHOT
"""Tell one thread, once, that a connection can be read."""


class TooSlow(NoMoreData, TimeoutError):  # type: ignore[misc]
    """A request has not come within its time; its connection is closed."""


class _Reading(Unreader):  # type: ignore[misc]
    """Reads requests from a connection, each within READ_TIME. Raises TooSlow.

    It takes what is there without asking first whether anything is, and gunicorn finds no socket
    here to set its own, wider time limits on: each call of the system lets go of the interpreter's
    lock, which costs more than the call itself when other threads want it.
    """

    def __init__(self, sock: Any, may_be_slow: threading.Semaphore) -> None:
        super().__init__()
        self._sock = sock
        self._poll = select.poll()
        self._poll.register(sock, select.POLLIN)
        self._may_be_slow = may_be_slow
        self._is_slow = False
        self._began = time.monotonic()

    @contextmanager
    def one_request(self) -> Iterator[None]:
        """The time of a request begins to count."""
        self._began = time.monotonic()
        try:
            yield
        finally:
            if self._is_slow:
                self._may_be_slow.release()
                self._is_slow = False

    def chunk(self, size_hint: int | None = None) -> bytes:
        """The next bytes, as soon as there are some; none: the other side is done."""
        if not self._left(READ_TIME):
            raise TooSlow
        size = min(max(size_hint or 0, AT_ONCE), BODY_LIMIT)
        try:
            return bytes(self._sock.recv(size, DONT_WAIT))
        except BlockingIOError:
            if self._comes_within(SLOW) or self._comes_slowly():
                return bytes(self._sock.recv(size))
        raise TooSlow

    def _comes_slowly(self) -> bool:
        self._is_slow = self._is_slow or self._may_be_slow.acquire(blocking=False)
        return self._is_slow and self._comes_within(READ_TIME)

    def _comes_within(self, seconds: float) -> bool:
        return bool(self._poll.poll(self._left(seconds) * 1000))

    def _left(self, seconds: float) -> float:
        return max(0.0, self._began + seconds - time.monotonic())


class Worker(ThreadWorker):  # type: ignore[misc]
    """gunicorn's threads, which take requests from the kernel themselves.

    gunicorn's main thread waits for all connections and hands each request to a thread, which
    hands the connection back: that costs about as much as a request. Here all threads wait for
    all connections, and the kernel wakes one of them for each that can be read. None waits for a
    connection on which nothing has come, and few wait for a request that comes slowly. The main
    thread accepts connections, and closes those that are idle for too long.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._may_be_slow = threading.Semaphore(max(1, self.cfg.threads // 2))
        self._lock = threading.Lock()
        self._idle: dict[int, Any] = {}
        """Connections that are waited for, by descriptor; who takes one out has it."""
        self._waiting: deque[Any] = deque()
        """Those that can be read, and wait for a thread."""
        self._free = 0
        """Threads that wait for a connection."""
        self._looked_at = 0.0
        self._leaving: list[Any] = []
        """Connections that are done with, whose other side has not hung up yet."""
        self._stopping = self._ended = False

    def run(self) -> None:
        """Serve until told to stop, then for as long as requests are in progress."""
        self._epoll, end = select.epoll(), os.eventfd(0)
        self._epoll.register(end, select.EPOLLIN)
        try:
            for _ in range(self.cfg.threads):
                self.tpool.submit(self._serve)
            super().run()
        finally:
            self._ended = True
            os.eventfd_write(end, 1)  # all threads see it

    def wait_for_and_dispatch_events(self, timeout: float) -> None:
        """The main thread's turn; gunicorn's own name. It comes often where something ends."""
        ends = self._leaving or self._stopping or not self.alive
        super().wait_for_and_dispatch_events(min(timeout, 0.1) if ends else timeout)

    def enqueue_req(self, conn: Any) -> None:
        """Wait for what comes on a connection; gunicorn calls it for each that it accepts."""
        conn.idle_since = time.monotonic()
        number = conn.sock.fileno()
        wait_for = self._epoll.modify if conn.initialized else self._epoll.register
        with self._lock:
            kept = STOP_KEEPALIVE_LINGER if self._stopping else self.cfg.keepalive
            conn.timeout = conn.idle_since + kept
            wait_for(number, _NEXT)
            self._idle[number] = conn

    def murder_keepalived(self, force: bool = False) -> None:
        """Close the connections on which nothing has come for too long; gunicorn's own name."""
        now = time.monotonic()
        with self._lock:
            over = [(n, c) for n, c in self._idle.items() if force or c.timeout <= now]
            for number, conn in over:
                del self._idle[number]
                conn.close()
        self.nr_conns -= len(over)
        self._leaving = [conn for conn in self._leaving if not self._has_left(conn, now, force)]

    def _has_left(self, conn: Any, now: float, force: bool) -> bool:
        """Close a connection whose other side has hung up, or had the time to, or sends more."""
        try:
            over = force or conn.timeout <= now
            while not over:
                came = len(conn.sock.recv(4096, DONT_WAIT))
                conn.still_takes -= came
                over = not came or conn.still_takes <= 0
        except BlockingIOError:
            return False
        except OSError:
            over = True
        if over:
            conn.close()
            self.nr_conns -= 1
        return over

    def _cap_keepalive(self, deadline: float) -> None:
        with self._lock:
            self._stopping = True
            for conn in self._idle.values():
                conn.timeout = min(conn.timeout, deadline)

    def _serve(self) -> None:
        """One thread's work."""
        while not self._ended:
            if conn := self._next():
                try:
                    self._serve_one(conn)
                except Exception:
                    log.exception("A connection was closed")
                    self._close(conn)

    def _serve_one(self, conn: Any) -> None:
        many_wait = len(self._waiting) >= MANY * self.cfg.threads
        _this.is_late = many_wait and time.monotonic() - conn.waits_since > PATIENCE
        if not conn.initialized:
            conn.data_ready = True
            conn.init()
            conn.parser.unreader = _Reading(conn.sock, self._may_be_slow)
        if not self._answer(conn):
            self._close(conn)
        elif conn.parser.unreader.buf.getvalue():  # the next request came with this one
            conn.waits_since = time.monotonic()
            with self._lock:
                self._waiting.append(conn)
        else:
            self.enqueue_req(conn)

    def _close(self, conn: Any) -> None:
        self.method_queue.defer(self._gone, conn)

    def _gone(self, conn: Any) -> None:
        """Say goodbye, and wait for the other side to hang up, so that it has read its answer."""
        with suppress(OSError):  # it has hung up already
            conn.sock.shutdown(socket.SHUT_WR)
        conn.timeout = time.monotonic() + STOP_KEEPALIVE_LINGER
        conn.still_takes = BODY_LIMIT
        self._leaving.append(conn)

    def _next(self) -> Any:
        """The connection that has waited longest, as soon as there is one; or None.

        While a thread is free, nothing waits. One that finds no other free takes all that can be
        read, so that each has its place.
        """
        with self._lock:
            if not self._free:
                self._look()
            if self._waiting:
                return self._waiting.popleft()
            self._free += 1
        ready = self._epoll.poll(maxevents=1)
        with self._lock:
            self._free -= 1
            self._looked_at = time.monotonic()
            return self._take(ready[0][0])

    def _look(self) -> None:
        ready = self._epoll.poll(0)
        self._waiting += filter(None, (self._take(number) for number, _ in ready))
        self._looked_at = time.monotonic()

    def _take(self, number: int) -> Any:
        """A connection that can be read; it was not yet when somebody looked, nor while idle."""
        if conn := self._idle.pop(number, None):
            conn.waits_since = max(conn.idle_since, self._looked_at)
        return conn

    def _answer(self, conn: Any) -> Any:
        with conn.parser.unreader.one_request():
            return super().handle(conn)

    def handle_request(self, req: Any, conn: Any) -> bool:
        """Answer one request; whether another one may follow on its connection.

        gunicorn's own, less what nobody asked for here: files to send, an access log, hooks,
        an end after so many requests.
        """
        response, environ = wsgi.create(
            req, conn.sock, conn.client, conn.server, self.cfg, _Response
        )
        environ["wsgi.multithread"] = True
        if self._stopping or not self.alive or len(self._idle) >= self.max_keepalived:
            response.force_close()
        answer = self.wsgi(environ, response.start_response)
        try:
            for part in answer:
                response.write(part)
            response.close()
        except Exception as error:
            if isinstance(error, OSError) or not response.headers_sent:
                raise
            log.exception("An answer was cut off")
            raise StopIteration from error  # gunicorn's word for: hang up
        finally:
            if hasattr(answer, "close"):
                answer.close()
        return not response.should_close()


class _Response(wsgi.Response):  # type: ignore[misc]
    """gunicorn's, which sends the head of an answer with its body instead of before it.

    Whoever waits for the answer is woken once and reads once.
    """

    headers_sent: bool

    def send_headers(self) -> None:
        """Called before a part of the body; not needed where one part is the body."""
        if self.chunked:
            super().send_headers()

    def close(self) -> None:
        """Called when the body is over."""
        if not self.headers_sent:
            self._emit_body(b"")
        super().close()

    def default_headers(self) -> list[str]:
        """The lines that gunicorn itself adds."""
        major, minor = self.req.version
        return [
            f"HTTP/{major}.{minor} {self.status}\r\n",
            f"Server: {self.version}\r\n",
            f"Date: {_date(int(time.time()))}\r\n",
            f"Connection: {'close' if self.should_close() else 'keep-alive'}\r\n",
            *(["Transfer-Encoding: chunked\r\n"] if self.chunked else []),
        ]

    def _emit_body(self, data: bytes) -> None:
        if self.headers_sent:
            super()._emit_body(data)
            return
        self.headers_sent = True
        own = [f"{name}: {value}\r\n" for name, value in self.headers]
        head = "".join([*self.default_headers(), *own, "\r\n"]).encode("latin-1")
        self.sock.sendall(head + data)


@lru_cache(maxsize=1)
def _date(second: int) -> str:
    """As a header has it; made once a second."""
    return str(http_date(second))


_this = threading.local()
"""Of the request that a thread works on: whether it `is_late`."""


class Overload:
    """A WSGI application before another: what has waited for too long is told to come back.

    So that under more load than can be carried, those who are answered are answered soon, and
    nothing is done for callers who have given up.
    """

    def __init__(self, behind: "WSGIApplication") -> None:
        self._behind = behind

    def __call__(self, environ: dict[str, Any], start_response: "StartResponse") -> Iterable[bytes]:
        if not getattr(_this, "is_late", False) or environ["PATH_INFO"] in PROBES:
            return self._behind(environ, start_response)
        began = time.perf_counter()
        ids = Ids.of(environ)
        body = jsontext.render(
            {
                "type": "urn:problem:busy",
                "title": "Not available now",
                "status": 503,
                "detail": "More is asked for than can be answered. Nothing was written; try again.",
                "requestId": ids.request_id,
            }
        )
        headers = [
            ("Content-Type", "application/problem+json"),
            ("Content-Length", str(len(body))),
            ("Retry-After", str(Busy.retry_after)),
            ("X-Request-ID", ids.request_id),
            ("X-Correlation-ID", ids.correlation_id),
            ("X-Content-Type-Options", "nosniff"),
            ("Content-Security-Policy", NOTHING_ELSE),
        ]
        start_response("503 Service Unavailable", headers)
        with log_fields(**ids.fields()):
            note_answer(environ["REQUEST_METHOD"], "(overload)", 503, began)
        return (body,)


class Server(BaseApplication):  # type: ignore[misc]
    """gunicorn with our settings: threads, kept connections, a metrics port of its own."""

    def __init__(self, settings: ServeSettings) -> None:
        self._settings = settings
        self._module: Any = importlib.import_module(f"{settings.service}.main")
        super().__init__()

    def load_config(self) -> None:
        """Called by gunicorn; see its settings reference."""
        own = {
            "bind": [f"0.0.0.0:{self._settings.port}"],
            "workers": self._settings.workers,
            "threads": self._settings.threads,
            "worker_class": Worker,
            "keepalive": 75,  # longer than any client keeps a connection, the gateway's too
            "timeout": 30,
            "graceful_timeout": GRACE,
            "worker_tmp_dir": "/dev/shm",  # nosec B108
            "control_socket_disable": True,
            "limit_request_line": 4094,
            "limit_request_fields": 50,
            "limit_request_field_size": 8190,
            "logger_class": _Logger,
            "when_ready": self._when_ready,
            "child_exit": _forget_worker,
            "worker_exit": lambda _server, _worker: stop_tracing(),
            "on_exit": _forget_metrics,
        }
        for name, value in own.items():
            self.cfg.set(name, value)

    def load(self) -> Flask:
        """The application, made in each worker."""
        start_tracing(self._settings)
        app: Flask = self._module.create_app(self._settings)
        app.register_error_handler(ParseException, unreadable)
        app.register_error_handler(TooSlow, too_slow)
        app.wsgi_app = Overload(app.wsgi_app)  # type: ignore[method-assign]
        return app

    def _when_ready(self, _server: object) -> None:
        serve_probes(self._settings.metrics_port, dict)
        log.info(f"{self._module.TITLE} on {self._settings.port}")


def _forget_metrics(_server: object) -> None:
    shutil.rmtree(os.environ["PROMETHEUS_MULTIPROC_DIR"], ignore_errors=True)


def _forget_worker(_server: object, worker: Any) -> None:
    mark_process_dead(worker.pid)  # type: ignore[no-untyped-call]


class _Logger(Logger):  # type: ignore[misc]
    """gunicorn's own lines go where ours go."""

    def setup(self, cfg: Any) -> None:
        self.error_log.propagate = True
        self.error_log.setLevel(logging.WARNING)
        self.error_log.addFilter(_without_what_was_sent)
        self.access_log.disabled = True


def _without_what_was_sent(record: logging.LogRecord) -> bool:
    """Let a line pass without the request that it quotes, in which anything may stand."""
    said = str(record.msg)
    if said.startswith("Invalid request from"):
        record.msg = ": ".join(said.split(": ")[:2])
    elif said.startswith("Error handling request"):
        record.msg, record.args = "Error handling request", ()
    return True


def serve(settings: ServeSettings) -> None:
    """Serve until a signal says stop."""
    start(settings)
    Server(settings).run()
