"""PgBouncer in transaction mode, which passes no session and no setting on, before the store."""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import pytest

from eventcore.model.event import NewEvent
from eventcore.settings import Server
from eventcore.store.port import Answer, Idempotency, Stream
from eventcore.store.postgres import Postgres
from eventcore.store.relay_session import RelaySession
from local.child import Child, is_free
from local.packages import pgbouncer_program
from local.servers import HOST, free_port
from tests.conftest import Databases

SERVER_CONNECTIONS = 2


@pytest.fixture
def pooled(spare_databases: Databases, tmp_path: Path) -> Iterator[Server]:
    """The service's login of `spare`, by way of a PgBouncer with few connections."""
    server = spare_databases("spare", "service")
    port = free_port()
    (tmp_path / "users").write_text(f'"{server.user}" "{server.password.read()}"\n')
    (tmp_path / "pgbouncer.ini").write_text(
        f"""
        [databases]
        * = host={server.host} port={server.port}
        [pgbouncer]
        listen_addr = {HOST}
        listen_port = {port}
        unix_socket_dir =
        auth_type = scram-sha-256
        auth_file = {tmp_path}/users
        pool_mode = transaction
        default_pool_size = {SERVER_CONNECTIONS}
        """.replace("        ", "")
    )
    nobody = 65534
    as_user = []
    if os.geteuid() == 0:  # it refuses to run as root
        as_user = ["setpriv", f"--reuid={nobody}", f"--regid={nobody}", "--clear-groups"]
        as_user += ["--inh-caps=+dac_override", "--ambient-caps=+dac_override"]
        as_user += ["--securebits=+no_setuid_fixup", "--"]
    program = [str(pgbouncer_program()), str(tmp_path / "pgbouncer.ini")]
    log = tmp_path / "log"
    bouncer = Child("PgBouncer", program, log, dict(os.environ), as_user=as_user)
    bouncer.launch()
    try:
        bouncer.await_that(lambda: not is_free(port), 20)
        yield replace(server, port=port)
    finally:
        bouncer.stop()


def test_a_store_works_over_a_pooler_in_transaction_mode(pooled: Server) -> None:
    store = Postgres(pooled, 8)

    def work(number: int) -> None:
        stream, key = Stream("thing", uuid4()), Idempotency(f"key {uuid4()}", "hash")
        events = [NewEvent(uuid4(), "THING_MADE", 1, {"number": number})]
        answer = Answer(202, {"number": number}, {})
        assert store.append(stream, 0, events, {}, key, answer).version == 1
        assert store.append(stream, 0, events, {}, key, answer).replayed == answer
        assert len(store.read_stream(stream)) == 1
        assert store.recorded_answer(key) == answer

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(work, range(80)))
    assert store.settled() > 0
    assert store.progress("nobody").head > 0
    store.require_writable()
    sessions = {store._rows("select pg_backend_pid()")[0][0] for _ in range(5)}
    assert len(sessions) <= SERVER_CONNECTIONS
    store.close()


def test_statements_over_a_pooler_have_the_limits_of_the_login(pooled: Server) -> None:
    store = Postgres(pooled, 1)
    for run in (store._rows, store._write):
        assert run("show statement_timeout") == [("5s",)]
        assert run("show lock_timeout") == [("3s",)]
    store.close()


def test_an_append_over_a_pooler_wakes_a_relay_that_is_connected_past_it(
    pooled: Server, spare_databases: Databases
) -> None:
    relay = RelaySession(spare_databases("spare", "relay"), f"relay {uuid4()}")
    store = Postgres(pooled, 1)
    store.append(Stream("thing", uuid4()), 0, [NewEvent(uuid4(), "THING_MADE", 1, {})], {})
    relay.wait(10)
    assert relay.settled_event().position > 0
    store.close()
    relay.close()
