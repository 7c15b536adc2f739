"""Rate limits: leases, replicas, a store that is away, proxies, and the answers of the gateway."""

import ipaddress
from collections.abc import Callable, Mapping
from typing import Any

import pytest
from flask import Flask
from prometheus_client import REGISTRY

from eventcore.errors import Misconfigured
from eventcore.settings import read_settings
from eventcore.web.correlation import Correlation
from gateway.limit_store import FRESH, WINDOWS, MemoryCounters
from gateway.limits import (
    CLIENTS,
    REFUSED,
    RETRY,
    Limit,
    Limiter,
    Limits,
    client_address,
    limit_requests,
)
from gateway.main import Settings, create_app


class Away(Exception):
    """The store does not answer."""


class Store(MemoryCounters):
    """A shared store in memory, which can be away, and counts its calls."""

    is_away = False
    calls = 0
    meanwhile: Callable[[], object] | None = None
    """Done once, during the next call."""

    @property
    def base_exceptions(self) -> type[Exception]:
        return Away

    def counts(self, *windows: str) -> Mapping[str, int]:
        self._called()
        return super().counts(*windows)

    def add(self, window: str, room: int, amount: int, expires: float) -> bool:
        self._called()
        return super().add(window, room, amount, expires)

    def _called(self) -> None:
        self.calls += 1
        meanwhile, self.meanwhile = self.meanwhile, None
        if meanwhile:
            meanwhile()
        if self.is_away:
            raise Away


class Clock:
    """A clock that only the test moves."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


def limit(text: str = "1000/hour") -> Limit:
    found = Limit.read("read", text)
    assert found
    return found


def admitted(*limiters: Limiter, requests: int, of: Limit | None = None) -> int:
    """How many of a client's requests are allowed, sent to the limiters in turn."""
    of = of or limit()
    return sum(
        limiters[number % len(limiters)].hit(of, "ada").allowed for number in range(requests)
    )


def alone() -> float | None:
    return REGISTRY.get_sample_value("rate_limit_alone")


@pytest.mark.parametrize("amount", [1, 2, 10, 99, 1000, 6000])
def test_one_replica_admits_exactly_the_limit(amount: int) -> None:
    assert admitted(Limiter(Store()), requests=2 * amount, of=limit(f"{amount}/hour")) == amount


@pytest.mark.parametrize("amount", [100, 1000, 6000])
def test_three_replicas_admit_the_limit_within_a_twentieth(amount: int) -> None:
    store = Store()
    replicas = [Limiter(store, 3) for _ in range(3)]
    of = limit(f"{amount}/hour")
    assert 0.95 * amount <= admitted(*replicas, requests=3 * amount, of=of) <= amount


def test_a_replica_that_gets_nothing_holds_a_sixtieth_at_most() -> None:
    store = Store()
    idle, busy = Limiter(store, 3), Limiter(store, 3)
    idle.hit(limit(), "ada")
    assert admitted(busy, requests=2000) >= 1000 * (1 - 1 / 60) - 1


def test_most_requests_cost_no_call_to_the_store() -> None:
    store = Store()
    admitted(Limiter(store, 3), requests=3000, of=limit("6000/hour"))
    assert store.calls <= 3000 / 10


def test_a_lease_costs_one_call_if_counts_were_read_a_moment_ago() -> None:
    clock = Clock()
    store = Store(clock)
    limiter = Limiter(store, clock=clock)
    admitted(limiter, requests=600, of=limit("6000/hour"))
    assert store.calls == 3, "a read and two leases"
    clock.now += FRESH
    admitted(limiter, requests=300, of=limit("6000/hour"))
    assert store.calls == 5, "another read and a lease"


def test_a_lease_on_counts_that_others_have_changed_is_within_the_limit() -> None:
    clock = Clock()
    clock.now = 10_000.0  # the window before has another name
    ours, others = Store(clock), Store(clock)
    others._counts = ours._counts
    one, another = Limiter(ours, clock=clock), Limiter(others, clock=clock)
    first = admitted(one, requests=50)
    assert first + admitted(another, requests=1000) + admitted(one, requests=1000) == 1000


def test_a_client_who_is_refused_costs_no_call_for_a_while() -> None:
    store, clock = Store(), Clock()
    limiter = Limiter(store, clock=clock)
    admitted(limiter, requests=20, of=limit("10/hour"))
    before = store.calls
    assert admitted(limiter, requests=100, of=limit("10/hour")) == 0
    assert store.calls == before
    clock.now += REFUSED
    assert admitted(limiter, requests=100, of=limit("10/hour")) == 0
    assert store.calls == before + 1


def test_hits_are_shared_while_another_client_leases_some() -> None:
    store, found = Store(), []
    limiter = Limiter(store, 3)
    admitted(limiter, requests=500)  # more than the share of a replica that counts alone
    store.meanwhile = lambda: found.append(admitted(limiter, requests=400))
    limiter.hit(limit(), "bob")
    assert found == [400]


def test_another_client_has_a_limit_of_its_own() -> None:
    limiter = Limiter(Store())
    admitted(limiter, requests=20, of=limit("10/hour"))
    assert limiter.hit(limit("10/hour"), "bob").allowed


def test_a_request_takes_its_cost_at_once_or_not_at_all() -> None:
    limiter = Limiter(Store())
    costs = [limiter.hit(limit("10/hour"), "ada", cost=4).allowed for _ in range(3)]
    assert costs == [True, True, False]
    assert limiter.hit(limit("10/hour"), "bob").remaining == 9


@pytest.mark.parametrize("cost", [1, 3])
@pytest.mark.parametrize("begin", [1000.0, 1020.0, 1021.0, 1037.5, 1079.9])
def test_a_refused_request_is_allowed_after_the_time_it_was_told(begin: float, cost: int) -> None:
    clock, of = Clock(), limit("5/minute")
    clock.now = begin
    limiter = Limiter(Store(clock), clock=clock)
    for _ in range(30):
        verdict = limiter.hit(of, "ada", cost)
        while verdict.allowed:
            verdict = limiter.hit(of, "ada", cost)
        assert verdict.remaining == 0
        tries = int(verdict.reset) // 2
        for _ in range(tries):  # refused requests do not count
            clock.now += 1
            assert not limiter.hit(of, "ada", cost).allowed
        clock.now += verdict.reset - tries
        assert limiter.hit(of, "ada", cost).allowed


def test_a_refused_request_is_not_told_to_wait_longer_than_it_must() -> None:
    clock, of = Clock(), limit("5/minute")
    clock.now = 1020.0  # a window begins
    limiter = Limiter(Store(clock), clock=clock)
    admitted(limiter, requests=5, of=of)
    assert limiter.hit(of, "ada").reset == pytest.approx(60 + 12, abs=0.01)
    clock.now += 71.5
    assert not limiter.hit(of, "ada").allowed


def test_while_the_store_is_away_each_replica_admits_its_share() -> None:
    store = Store()
    store.is_away = True
    replicas = [Limiter(store, 3) for _ in range(3)]
    assert 0.95 * 1000 <= admitted(*replicas, requests=3000) <= 1000
    assert alone() == 1


def test_a_share_includes_what_was_leased_before_the_store_went_away() -> None:
    store = Store()
    replicas = [Limiter(store, 2) for _ in range(2)]
    before = admitted(*replicas, requests=600)
    store.is_away = True
    assert before + admitted(*replicas, requests=3000) <= 1000 * 1.05


def test_a_store_that_is_back_is_used_again_after_its_time() -> None:
    store, clock = Store(), Clock()
    limiter = Limiter(store, clock=clock)
    store.is_away = True
    admitted(limiter, requests=300)
    tries = store.calls
    assert tries == 1, "it is not tried again at once"
    store.is_away = False
    clock.now += RETRY + 1
    admitted(limiter, requests=200)
    assert store.calls > tries
    assert alone() == 0


def test_the_clients_that_are_remembered_are_bounded() -> None:
    counters = MemoryCounters()
    limiter = Limiter(counters)
    for number in range(WINDOWS + 50):
        limiter.hit(limit(), str(number))
    assert len(limiter._leases) == CLIENTS
    assert len(counters._counts) == WINDOWS


PROXIES = (ipaddress.ip_network("10.0.0.0/8"), ipaddress.ip_network("fd00::/8"))


@pytest.mark.parametrize(
    ("hops", "client"),
    [
        (["203.0.113.9"], "203.0.113.9"),
        (["203.0.113.9", "10.1.1.1"], "203.0.113.9"),
        (["198.51.100.1", "203.0.113.9", "10.1.1.1"], "203.0.113.9"),  # the first is a claim
        (["203.0.113.9", "198.51.100.1"], "198.51.100.1"),  # the peer is no known proxy
        (["203.0.113.9", "10.2.2.2", "10.1.1.1"], "203.0.113.9"),
        (["nonsense", "10.1.1.1"], "10.1.1.1"),
        (["2001:db8:1:2:3::4", "fd00::1"], "2001:db8:1:2::/64"),
        (["::ffff:203.0.113.9"], "203.0.113.9"),
        (["10.1.1.1"], "10.1.1.1"),
        ([""], "unknown"),
    ],
)
def test_an_address_is_believed_from_known_proxies_alone(hops: list[str], client: str) -> None:
    *claimed, peer = hops
    assert client_address(", ".join(claimed), peer, PROXIES) == client


@pytest.fixture
def call() -> Callable[..., Any]:
    app = Flask("gateway")
    app.add_url_rule("/orders", view_func=lambda: "", methods=["GET", "POST"])
    app.add_url_rule("/orders/batch", endpoint="batch", view_func=lambda: "", methods=["POST"])
    app.add_url_rule("/healthz", endpoint="healthz", view_func=lambda: "")
    limits = Limits(
        Limit.read("read", "5/hour"), Limit.read("write", "20/hour"),
        {"/orders/batch": 10}, PROXIES,
    )  # fmt: skip
    limit_requests(app, Limiter(None), limits)
    app.wsgi_app = Correlation(app.wsgi_app)  # type: ignore[method-assign]
    return app.test_client().open


def test_each_answer_says_what_is_left(call: Callable[..., Any]) -> None:
    answer = call("/orders")
    assert answer.headers["RateLimit-Policy"] == '"read";q=5;w=3600'
    assert answer.headers["RateLimit"].startswith('"read";r=4;t=')


def test_a_request_over_the_limit_is_refused_with_a_reason_and_a_time(
    call: Callable[..., Any],
) -> None:
    answers = [call("/orders") for _ in range(6)]
    assert [each.status_code for each in answers] == [200] * 5 + [429]
    refused = answers[-1]
    assert refused.json["type"] == "urn:problem:too-many-requests"
    assert "Nothing was done" in refused.json["detail"]
    assert int(refused.headers["Retry-After"]) >= 1
    assert refused.headers["RateLimit"].startswith('"read";r=0;t=')


def test_reads_and_writes_have_limits_of_their_own(call: Callable[..., Any]) -> None:
    for _ in range(6):
        call("/orders")
    assert call("/orders", method="POST").status_code == 200


def test_a_route_takes_its_cost(call: Callable[..., Any]) -> None:
    statuses = [call("/orders/batch", method="POST").status_code for _ in range(3)]
    assert statuses == [200, 200, 429]


def test_probes_are_never_limited(call: Callable[..., Any]) -> None:
    for _ in range(50):
        answer = call("/healthz")
        assert answer.status_code == 200
        assert "RateLimit" not in answer.headers


def test_a_forged_address_gains_nothing(call: Callable[..., Any]) -> None:
    statuses = [
        call("/orders", headers={"X-Forwarded-For": f"203.0.113.{number}"}).status_code
        for number in range(6)
    ]
    assert statuses[-1] == 429  # the peer is no known proxy


UPSTREAMS = '{"user": {"url": "http://127.0.0.1:1", "paths": ["/users", "/users/{id}"]}}'


def settings(monkeypatch: pytest.MonkeyPatch, **variables: str) -> Settings:
    given = {"SERVICE": "gateway", "UPSTREAMS": UPSTREAMS, **variables}
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    return read_settings(Settings, "serve")


def test_the_gateway_limits_each_class_that_has_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    found = settings(monkeypatch, RATE_LIMIT_WRITE="4/minute", RATE_LIMIT_COSTS='{"/users": 2}')
    app = create_app(found).test_client()
    writes = [app.post("/users", json={}) for _ in range(3)]
    assert [each.status_code == 429 for each in writes] == [False, False, True]
    read = app.get("/users/1")
    assert read.status_code != 429
    assert "RateLimit" not in read.headers


def test_without_limits_nothing_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (
        "RateLimit" not in create_app(settings(monkeypatch)).test_client().get("/users/1").headers
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("RATE_LIMIT_READ", "many"),
        ("RATE_LIMIT_READ", "0/minute"),
        ("RATE_LIMIT_COSTS", '{"/users": 0}'),
        ("RATE_LIMIT_REPLICAS", "0"),
        ("TRUSTED_PROXIES", "10.0.0.0/8, somewhere"),
    ],
)
def test_a_limit_that_cannot_be_read_is_named_at_the_start(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    with pytest.raises(Misconfigured, match=name):
        settings(monkeypatch, **{name: value})
