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
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TypeAlias

from flask import Flask, Response, g, request
from limits import RateLimitItem, parse
from limits.strategies import SlidingWindowCounterRateLimiter

from eventcore.observe import metrics
from eventcore.web.caller import SAFE
from eventcore.web.problems import problem
from gateway.limit_store import Counters, MemoryCounters

LEAST_SHARE = 20
"""The leases of all replicas together have 1/20 of a limit at most."""

NEAR = 4
"""A replica leases at most 1/4 of its share of what is left."""

CLIENTS = 10_000
"""Clients whose leases a process remembers."""

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


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a request is allowed, how many more are, and in how many seconds there are more."""

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
        self._counters = shared or MemoryCounters()
        self._shared = SlidingWindowCounterRateLimiter(shared) if shared else None
        self._alone = SlidingWindowCounterRateLimiter(MemoryCounters())
        self._replicas = replicas
        self._clock = clock
        self._retry_at = 0.0
        self._leases: OrderedDict[tuple[str, str], _Lease] = OrderedDict()
        self._lock = threading.Lock()
        self._stripes = tuple(threading.Lock() for _ in range(64))
        metrics.LIMITS_ALONE.set(0)

    def hit(self, limit: Limit, client: str, cost: int = 1) -> Verdict:
        """Takes `cost` hits of a client; it never raises for a store that is away."""
        key = limit.name, client
        with self._stripes[hash(key) % len(self._stripes)]:
            lease, now = self._lease(key), self._clock()
            if now >= lease.until:
                lease.left = 0
            if lease.left < cost and now >= lease.refused_until:
                self._renew(lease, limit, client, cost, now)
            reset = max(0.0, lease.reset_at - now)
            if lease.left < cost:
                return Verdict(False, lease.left + lease.beyond, reset)
            lease.left -= cost
            return Verdict(True, lease.left + lease.beyond, reset)

    def _lease(self, key: tuple[str, str]) -> _Lease:
        with self._lock:
            lease = self._leases.pop(key, None) or _Lease()
            self._leases[key] = lease
            if len(self._leases) > CLIENTS:
                self._leases.popitem(last=False)
        return lease

    def _renew(self, lease: _Lease, limit: Limit, client: str, cost: int, now: float) -> None:
        name = hashlib.sha256(f"{limit.name} {client}".encode()).hexdigest()
        if self._shared and now >= self._retry_at:
            self._retry_at = now + RETRY  # during this try the others count alone
            try:
                self._take(self._shared, limit.item, name, lease, cost, now)
            except self._counters.base_exceptions as error:
                metrics.LIMITS_ALONE.set(1)
                reason = str(error)[:300]
                log.warning("Rate limits are counted alone", extra={"reason": reason})
                self._counters.close()  # the next try makes connections of its own
            else:
                metrics.LIMITS_ALONE.set(0)
                self._retry_at = 0.0
                self._note(limit, name, lease.left)
                return
        self._take(self._alone, limit.share(self._replicas), name, lease, cost, now)

    def _note(self, limit: Limit, name: str, leased: int) -> None:
        """Counts shared leases in memory too: they are part of the share of a later outage."""
        share = limit.share(self._replicas)
        if room := min(leased, self._alone.get_window_stats(share, name).remaining):
            self._alone.hit(share, name, cost=room)

    def _take(
        self,
        counter: SlidingWindowCounterRateLimiter,
        item: RateLimitItem,
        name: str,
        lease: _Lease,
        cost: int,
        now: float,
    ) -> None:
        """Leases as many hits as are sensible, `cost` at least; none if there are fewer."""
        stats = counter.get_window_stats(item, name)
        most = min(item.amount // LEAST_SHARE, stats.remaining // NEAR) // self._replicas
        wanted = max(cost - lease.left, most)
        taken = wanted if counter.hit(item, name, cost=wanted) else 0
        if not taken and counter.hit(item, name, cost=cost - lease.left):
            taken = cost - lease.left
        lease.left += taken
        lease.beyond = max(0, stats.remaining - taken)
        lease.reset_at = now + max(0.0, stats.reset_time - time.time())
        lease.until = now + item.get_expiry()
        lease.refused_until = 0.0 if taken else now + REFUSED


def limit_requests(app: Flask, limiter: Limiter, settings: Limits) -> None:
    """Refuses requests over the limits with 429, and says in each answer what is left.

    Called after identity is required: a client is its key or subject, else its address.
    """

    @app.before_request
    def count() -> Response | None:
        if request.path in UNLIMITED:
            return None
        limit = settings.read if request.method in SAFE else settings.write
        if limit is None:
            return None
        rule = request.url_rule.rule if request.url_rule else ""
        verdict = limiter.hit(limit, _client(settings.proxies), settings.costs.get(rule, 1))
        g.limited = limit, verdict
        metrics.LIMITED.labels(limit.name, "allowed" if verdict.allowed else "refused").inc()
        return None if verdict.allowed else _refused(limit, verdict)

    @app.after_request
    def describe(response: Response) -> Response:
        if limited := g.get("limited"):
            limit, verdict = limited
            response.headers["RateLimit-Policy"] = limit.policy
            left = f'"{limit.name}";r={verdict.remaining};t={math.ceil(verdict.reset)}'
            response.headers["RateLimit"] = left
        return response


def _refused(limit: Limit, verdict: Verdict) -> Response:
    wait = max(1, math.ceil(verdict.reset))
    detail = (
        f"More than {limit.item.amount} requests of the class {limit.name} came within"
        f" {limit.item.get_expiry()} s. Nothing was done; try again in {wait} s."
    )
    response = problem(429, "Too many requests", detail, "too-many-requests")
    response.headers["Retry-After"] = str(wait)
    return response


def _client(proxies: tuple[Network, ...]) -> str:
    """The key or subject of the caller; else the address that the outermost known proxy saw."""
    if caller := g.get("caller"):
        return str(caller.actor)
    hops = [request.remote_addr or ""]
    if proxies:
        hops = [*request.headers.get("X-Forwarded-For", "").split(","), *hops]
    return client_address(tuple(each.strip() for each in hops), proxies)


@lru_cache(maxsize=4096)
def client_address(hops: tuple[str, ...], proxies: tuple[Network, ...]) -> str:
    """The last of `hops` that is no proxy; of an IPv6 address its network, a /64.

    `hops` are addresses from the client's claim to the peer; an unreadable one ends the walk.
    """
    found = "unknown"
    for hop in reversed(hops):
        try:
            address = ipaddress.ip_address(hop)
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
