"""Rate limits on a real store: shared by replicas, and counted alone while it is away."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from uuid import uuid4

import pytest
from prometheus_client import REGISTRY
from pymongo import MongoClient

from eventcore.readmodel.client import to_url
from eventcore.settings import Server
from gateway import limit_store
from gateway.limit_store import SharedCounters
from gateway.limits import RETRY, Limit, Limiter
from local.servers import MongoDB, free_port
from tests.chaos.proxy import Loop, Proxy

REPLICAS = 3


@pytest.fixture
def server(mongodb: MongoDB) -> Server:
    return mongodb.login(f"rate_limits_{uuid4().hex[:12]}")


@pytest.fixture
def counters(server: Server) -> Iterator[SharedCounters]:
    with closing(SharedCounters(server)) as found:
        yield found


def limit(text: str) -> Limit:
    found = Limit.read("write", text)
    assert found
    return found


def test_three_replicas_hold_a_limit_within_a_twentieth(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limit_store, "TIME", 20_000)  # a busy machine is no outage
    of = limit("1500/hour")

    def send(_: int) -> int:
        with closing(SharedCounters(server)) as counters:
            limiter = Limiter(counters, REPLICAS)
            return sum(limiter.hit(of, "ada").allowed for _ in range(of.item.amount))

    with ThreadPoolExecutor(REPLICAS) as pool:
        admitted = list(pool.map(send, range(REPLICAS)))
    assert 0.95 * of.item.amount <= sum(admitted) <= of.item.amount
    assert all(admitted), "each replica serves some"


def test_threads_of_one_process_admit_exactly_the_limit(
    counters: SharedCounters, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limit_store, "TIME", 20_000)
    limiter, of = Limiter(counters), limit("300/hour")
    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(lambda _: limiter.hit(of, "ada").allowed, range(900)))
    assert sum(found) == 300


def test_processes_that_begin_a_window_at_once_lose_no_hit(server: Server) -> None:
    counters = [SharedCounters(server) for _ in range(8)]
    with ThreadPoolExecutor(8) as pool:
        found = list(
            pool.map(lambda each: each.acquire_sliding_window_entry("key", 5, 3600), counters)
        )
    assert sum(found) == 5
    for each in counters:
        each.close()


def test_the_previous_window_counts_by_the_share_that_still_lies_in_the_sliding_one(
    server: Server,
) -> None:
    now = 1_000_000_000.0 - 1_000_000_000.0 % 60 + 59
    counters = SharedCounters(server, clock=lambda: now)
    assert counters.acquire_sliding_window_entry("key", 60, 60, 60)
    now += 31  # half of the next window
    assert not counters.acquire_sliding_window_entry("key", 60, 60, 31)
    assert counters.acquire_sliding_window_entry("key", 60, 60, 30)
    counters.close()


def test_counters_expire_in_the_store(counters: SharedCounters, server: Server) -> None:
    counters.acquire_sliding_window_entry("key", 5, 60)
    client: MongoClient[dict[str, object]] = MongoClient(to_url(server, server.password.read()))
    with client:
        windows = client[server.name]["windows"]
        assert any(each.get("expireAfterSeconds") == 0 for each in windows.list_indexes())
        assert all("expireAt" in each for each in windows.find())


def test_a_store_that_is_away_or_silent_fails_no_request_and_is_used_again(
    server: Server,
) -> None:
    loop, port = Loop(), free_port()
    proxy = Proxy(loop, port, server.port)
    now = 0.0
    away = replace(server, port=port, options=f"{server.options}&directConnection=true")
    counters = SharedCounters(away)
    limiter, of = Limiter(counters, REPLICAS, clock=lambda: now), limit("300/hour")
    try:
        assert limiter.hit(of, "before").allowed
        assert REGISTRY.get_sample_value("rate_limit_alone") == 0
        for number, harm in enumerate((proxy.down, proxy.hole)):
            harm()
            admitted = [limiter.hit(of, f"meanwhile {number}").allowed for _ in range(300)]
            assert sum(admitted) == 100, "the share of one replica"
            assert REGISTRY.get_sample_value("rate_limit_alone") == 1
            proxy.heal()
            now += RETRY
            assert limiter.hit(of, f"afterwards {number}").remaining > 200
            assert REGISTRY.get_sample_value("rate_limit_alone") == 0
    finally:
        counters.close()
        loop.stop()


def test_a_store_that_goes_away_fails_none_of_many_clients(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limit_store, "TIME", 2_000)  # a busy machine is no outage
    loop, port = Loop(), free_port()
    proxy = Proxy(loop, port, server.port)
    now = 0.0
    behind = replace(server, port=port, options=f"{server.options}&directConnection=true")
    with ThreadPoolExecutor(16) as pool, closing(SharedCounters(behind)) as counters:
        limiter, of = Limiter(counters, REPLICAS, clock=lambda: now), limit("300/hour")
        assert limiter.hit(of, "the first, who makes the index").allowed
        for turn, (harm, alone) in enumerate(((proxy.heal, 0), (proxy.down, 1)) * 2):
            harm()
            now += RETRY
            clients = [f"{turn} {number}" for number in range(64)]
            assert all(pool.map(lambda client: limiter.hit(of, client).allowed, clients))
            assert REGISTRY.get_sample_value("rate_limit_alone") == alone
    loop.stop()
