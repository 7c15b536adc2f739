"""Whether a service is ready, and whether it is stuck."""

import ssl
import threading
import time
from collections.abc import Callable, Mapping
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException, HTTPSConnection

from eventcore.errors import Unavailable
from eventcore.observe.health import STUCK, Health
from eventcore.readmodel.mongo import Mongo
from eventcore.store.postgres import Postgres


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
        """The servers that do not work, with reasons; looks once a second at most."""
        with self._lock:
            if time.monotonic() - self._checked_at > 1:
                self._check()
                self._checked_at = time.monotonic()
        return self._health.missing()

    def is_ready(self) -> bool:
        """Whether requests may come."""
        missing = self.missing()
        return self._schema_seen and len(missing) < 2

    def _check(self) -> None:
        try:
            self._store.require_schema()
            self._schema_seen = True
            self._store.require_writable()
            self._health.mark_up("store")
        except Unavailable as error:
            self._health.mark_down("store", str(error))
        try:
            self._readmodel.ping()
            self._health.mark_up("readmodel")
        except Unavailable as error:
            self._health.mark_down("readmodel", str(error))


class Liveness:
    """Says that a process is stuck when a check has failed each time for STUCK seconds."""

    def __init__(
        self, *checks: Callable[[], bool], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._checks = checks
        self._clock = clock
        self._failing_since: float | None = None

    def stuck(self) -> bool:
        """Runs the checks."""
        if all(check() for check in self._checks):
            self._failing_since = None
            return False
        now = self._clock()
        if self._failing_since is None:
            self._failing_since = now
        return now - self._failing_since > STUCK


def is_answering(host: str, port: int, *, tls: bool = False) -> bool:
    """Whether the process that listens there answers /healthz within a second.

    Its certificate is not verified: the process asks itself, by an address.
    """
    connection = HTTPConnection(host, port, timeout=1)
    if tls:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        connection = HTTPSConnection(host, port, timeout=1, context=context)
    try:
        connection.request("GET", "/healthz")
        return connection.getresponse().status == HTTPStatus.OK
    except (OSError, HTTPException):
        return False
    finally:
        connection.close()
