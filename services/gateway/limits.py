"""Rate limits: how many requests of a class a client may send within a window, over all replicas.

The window slides (the `limits` library's counter). A process leases some hits of a client at a
time, so most requests cost no call: fewer as the limit comes nearer, so that the last ones are
counted one by one. While the store is away or slow, each replica counts its share in memory.
"""

import hashlib
import ipaddress
import logging
import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import NamedTuple, TypeAlias

from flask import Flask, Request, Response, g, request
from limits import RateLimitItem, parse

from eventcore.observe import metrics
from eventcore.web.caller import SAFE
from eventcore.web.problems import problem
from gateway.limit_store import Counters, MemoryCounters

LEAST_SHARE = 20
"""The leases of all replicas together have 1/20 of a limit at most."""

NEAR = 4
"""A replica leases at most 1/4 of its share of what is left."""

CLIENTS = 10_000
"""Clients whose leases a process remembers; the one that came first goes first."""

RETRY = 5.0
"""Seconds after which a store that was away is tried again."""

REFUSED = 0.25
"""Seconds for which a client that was refused is refused without another call to the store."""

UNLIMITED = ("/healthz", "/readyz", "/metrics")

Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Limit:
    """A limit of a class of requests, for each client."""

    name: str
    item: RateLimitItem

    @classmethod
    def read(cls, name: str, text: str) -> "Limit | None":
        """The limit that a text such as "600/minute" says; "" is none. Raises ValueError."""
        item = parse(text) if text else None
        if item and not item.amount:
            raise ValueError("a limit of 0 refuses everybody; without a limit, leave it empty")
        return cls(name, item) if item else None

    @property
    def policy(self) -> str:
        """The field RateLimit-Policy (the IETF's draft of RateLimit header fields)."""
        return f'"{self.name}";q={self.item.amount};w={self.item.get_expiry()}'

    def share(self, replicas: int) -> RateLimitItem:
        """The share of one of several replicas that count alone."""
        amount = max(1, self.item.amount // replicas)
        return type(self.item)(amount, self.item.multiples, self.item.namespace)


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits of reads and writes, the cost of routes (1 by default), and the known proxies."""

    read: Limit | None
    write: Limit | None
    costs: Mapping[str, int] = field(default_factory=dict)
    proxies: tuple[Network, ...] = ()


class Verdict(NamedTuple):
    """Whether a request is allowed, how many more are, and in how many seconds one more is.

    Of one that is refused: in how many seconds it is allowed, if no other is sent meanwhile.
    """

    allowed: bool
    remaining: int
    reset: float


@dataclass(slots=True)
class _Lease:
    """Hits of a client that are counted already, and how many more the store had then."""

    left: int = 0
    beyond: int = 0
    until: float = 0.0
    reset_at: float = 0.0
    refused_until: float = 0.0
    lock: threading.Lock = field(default_factory=threading.Lock)


class Limiter:
    """Counts the hits of clients, by leases from `shared`; may be called by many threads.

    Each of `replicas` counts alone while `shared` is away, and always where there is none.
    """

    def __init__(
        self,
        shared: Counters | None,
        replicas: int = 1,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._shared = shared
        self._alone = MemoryCounters()
        self._replicas = replicas
        self._clock = clock
        self._retry_at = 0.0  # 0: the store has answered
        self._leases: dict[tuple[str, str], _Lease] = {}
        self._lock = threading.Lock()
        metrics.LIMITS_ALONE.set(0)

    def hit(self, limit: Limit, client: str, cost: int = 1) -> Verdict:
        """Takes `cost` hits of a client; it never raises for a store that is away."""
        lease = self._lease((limit.name, client))
        with lease.lock:
            now = self._clock()
            if now >= lease.until:
                lease.left = 0
            if lease.left < cost and now >= lease.refused_until:
                self._renew(lease, limit, client, cost, now)
            is_allowed = lease.left >= cost
            if is_allowed:
                lease.left -= cost
            remaining = lease.left + lease.beyond if is_allowed else 0
            return Verdict(is_allowed, remaining, max(0.0, lease.reset_at - now))

    def _lease(self, key: tuple[str, str]) -> _Lease:
        if lease := self._leases.get(key):
            return lease
        with self._lock:
            lease = self._leases.setdefault(key, _Lease())
            if len(self._leases) > CLIENTS:
                del self._leases[next(iter(self._leases))]
        return lease

    def _renew(self, lease: _Lease, limit: Limit, client: str, cost: int, now: float) -> None:
        name = hashlib.sha256(f"{limit.name} {client}".encode()).hexdigest()
        if self._shared and now >= self._retry_at:
            if self._retry_at:
                self._retry_at = now + RETRY  # one tries; meanwhile the others count alone
            try:
                taken = self._take(self._shared, limit.item, name, lease, cost, now)
            except self._shared.base_exceptions as error:
                self._retry_at = now + RETRY
                metrics.LIMITS_ALONE.set(1)
                reason = str(error)[:300]
                log.warning("Rate limits are counted alone", extra={"reason": reason})
                self._shared.close()  # the next try makes connections of its own
            else:
                metrics.LIMITS_ALONE.set(0)
                self._retry_at = 0.0
                self._note(limit, name, taken)
                return
        self._take(self._alone, limit.share(self._replicas), name, lease, cost, now)

    def _note(self, limit: Limit, name: str, leased: int) -> None:
        """Counts shared leases in memory too: they are part of the share of a later outage."""
        share = limit.share(self._replicas)
        window = self._alone.window(share.key_for(name), share.get_expiry())
        if room := min(leased, window.remaining(share.amount)):
            self._alone.strategy.hit(share, name, cost=room)

    def _take(
        self, counters: Counters, item: RateLimitItem, name: str, lease: _Lease, cost: int,
        now: float,
    ) -> int:  # fmt: skip
        """Leases as many hits as are sensible, enough for `cost`; 0 if there are fewer."""
        key, expiry, least, taken = item.key_for(name), item.get_expiry(), cost - lease.left, 0
        for window in counters.windows(key, expiry):
            remaining = window.remaining(item.amount)
            most = min(item.amount // LEAST_SHARE, remaining // NEAR) // self._replicas
            sizes = (max(least, most), least) if least <= remaining else ()
            taken = next((n for n in sizes if counters.strategy.hit(item, name, cost=n)), 0)
            if taken:
                window = window._replace(current=window.current + taken)
                break
        lease.left += taken
        lease.beyond = window.remaining(item.amount)
        lease.reset_at = now + window.wait(item.amount, lease.beyond + 1 if taken else least)
        lease.until = now + item.get_expiry()
        lease.refused_until = 0.0 if taken else now + REFUSED
        return taken


def limit_requests(app: Flask, limiter: Limiter, settings: Limits) -> None:
    """Refuses requests over the limits with 429, and says in each answer what is left.

    Called after identity is required: a client is its key or subject, else its address.
    """
    read = _Class(settings.read) if settings.read else None
    write = _Class(settings.write) if settings.write else None
    client = _client_of(settings.proxies)

    @app.before_request
    def count() -> Response | None:
        asked: Request = request._get_current_object()  # type: ignore[attr-defined]
        limited = read if asked.method in SAFE else write
        if limited is None or asked.path in UNLIMITED:
            return None
        cost = settings.costs.get(asked.url_rule.rule, 1) if asked.url_rule else 1
        verdict = limiter.hit(limited.limit, client(asked), cost)
        g.limited = limited, verdict
        (limited.allowed if verdict.allowed else limited.refused).inc()
        return None if verdict.allowed else _refused(limited.limit, verdict)

    @app.after_request
    def describe(response: Response) -> Response:
        if given := g.get("limited"):
            limited, verdict = given
            left = f'"{limited.limit.name}";r={verdict.remaining};t={math.ceil(verdict.reset)}'
            response.headers.add("RateLimit-Policy", limited.policy)
            response.headers.add("RateLimit", left)
        return response


class _Class:
    """A class of requests: its limit, and the header and the counters that it always has."""

    def __init__(self, limit: Limit) -> None:
        self.limit = limit
        self.policy = limit.policy
        self.allowed = metrics.LIMITED.labels(limit.name, "allowed")
        self.refused = metrics.LIMITED.labels(limit.name, "refused")


def _refused(limit: Limit, verdict: Verdict) -> Response:
    wait = max(1, math.ceil(verdict.reset))
    detail = (
        f"More than {limit.item.amount} requests of the class {limit.name} came within"
        f" {limit.item.get_expiry()} s. Nothing was done; try again in {wait} s."
    )
    response = problem(429, "Too many requests", detail, "too-many-requests")
    response.headers["Retry-After"] = str(wait)
    return response


def _client_of(proxies: tuple[Network, ...]) -> Callable[[Request], str]:
    """The key or subject of a caller; else the address that the outermost known proxy saw."""
    address = lru_cache(maxsize=1024)(partial(client_address, proxies=proxies))

    def client(asked: Request) -> str:
        if caller := g.get("caller"):
            return str(caller.actor)
        claimed = asked.headers.get("X-Forwarded-For", "") if proxies else ""
        return address(claimed, asked.remote_addr or "")

    return client


def client_address(claimed: str, peer: str, proxies: Sequence[Network]) -> str:
    """The last address that is no proxy's, of X-Forwarded-For and the peer; of IPv6 its /64.

    An address that cannot be read ends the walk from the peer to the client.
    """
    found = "unknown"
    for hop in reversed([*claimed.split(","), peer]):
        try:
            address = ipaddress.ip_address(hop.strip())
        except ValueError:
            break
        if isinstance(address, ipaddress.IPv6Address):
            address = address.ipv4_mapped or address
        found = str(address)
        if not any(address in network for network in proxies):
            break
    if ":" in found:
        return str(ipaddress.ip_network(f"{found}/64", strict=False))
    return found
