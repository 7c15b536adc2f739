"""The end of the log on a real PostgreSQL: failovers, restores, sequences ahead and behind."""

import os
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from eventcore.errors import SequenceBehind, StoreRestored, StoreUnavailable
from eventcore.model.event import START, Mark, NewEvent
from eventcore.operate.provision import provision_store
from eventcore.settings import Server
from eventcore.store.connection import connect
from eventcore.store.migrate import SCHEMA_VERSION, migrate
from eventcore.store.port import Append, Deadline, Due, Snapshot, Stream
from eventcore.store.postgres import Postgres
from eventcore.store.relay_session import RelaySession
from local.processes import prepare_stores, store_login
from local.secretfiles import secret_file
from local.servers import PostgreSQL, free_port

ROOT = Path(__file__).parents[2]
INIT_SQL = ROOT / "init.sql"
Login = Callable[[str], Server]


@pytest.fixture
def fresh(postgres: PostgreSQL, data_folder: Path) -> Login:
    """Logins of a new event database: `fresh("owner")`, "service", "relay"."""
    name, secrets = f"fresh{uuid4().hex[:8]}", data_folder / "secrets"
    logins = {
        f"{name}_{each}": secret_file(secrets, f"{name}_{each}")
        for each in ("owner", "service", "relay")
    }
    provision_store(postgres.address, name, logins)
    migrate(store_login(postgres.address, name, "owner", secrets), INIT_SQL)
    return lambda purpose: store_login(postgres.address, name, purpose, secrets)


@pytest.fixture
def opened(fresh: Login) -> Iterator[Postgres]:
    store = Postgres(fresh("service"), 2)
    yield store
    store.close()


def append(store: Postgres, count: int) -> None:
    for _ in range(count):
        store.append(Stream("user", uuid4()), 0, [NewEvent(uuid4(), "USER_CREATED", 1, {})], {})


def sql(server: Server, statement: str) -> Any:
    with connect(server).connect() as connection:
        plain = connection.execution_options(no_parameters=True)
        found = plain.exec_driver_sql(statement)
        return found.all() if found.returns_rows else None


def relayed(session: RelaySession) -> int:
    """Move the relay's checkpoint over all that has settled; how many events that were."""
    begin = session.checkpoint()
    page = session.read_page(begin, session.settled_event())
    if page:
        session.move_checkpoint(page[-1].mark)
    return len(page)


def test_a_sequence_that_is_ahead_and_later_lower_hides_no_event(
    fresh: Login, opened: Postgres
) -> None:
    """A promoted standby shows it 32 ahead; the old primary, when it leads again, does not."""
    relay = RelaySession(fresh("relay"), "user")
    append(opened, 3)
    assert relayed(relay) == 3
    sql(fresh("owner"), "select setval('events_position_seq', 3 + 32)")
    assert opened.settled() == opened.progress("user").head == 3
    assert relayed(relay) == 0
    sql(fresh("owner"), "select setval('events_position_seq', 3)")
    append(opened, 40)
    assert relayed(relay) == 40
    relay.close()


def test_a_standby_that_was_promoted_ends_where_its_events_end(tmp_path: Path) -> None:
    """Its sequence is ahead of them, since PostgreSQL logs a sequence's values in advance."""
    tmp_path.chmod(0o711)
    for parent in tmp_path.parents[:3]:
        parent.chmod(parent.stat().st_mode | 0o011)
    primary = PostgreSQL(tmp_path / "primary", free_port())
    standby = PostgreSQL(tmp_path / "standby", free_port())
    secrets = tmp_path / "secrets"
    try:
        primary.start()
        prepare_stores(primary.address, secrets, ("user",))
        before = Postgres(store_login(primary.address, "user", "service", secrets), 1)
        append(before, 3)
        copy_of(primary, tmp_path / "standby" / "data")
        standby.start()
        append(before, 2)
        there = store_login(standby.address, "user", "service", secrets)
        until(lambda: sql(there, "select count(*) from events") == [(5,)])
        before.close()
        primary.kill()
        sql(standby.address, "select pg_promote()")
        [(drawn,)] = sql(there, "select last_value from events_position_seq")
        assert drawn > 5
        after = Postgres(there, 1)
        until(lambda: after.progress("user").settled == 5)
        assert after.progress("user").head == 5
        append(after, 1)
        assert after.settled() == drawn + 1
        after.close()
    finally:
        primary.stop()
        standby.stop()


def copy_of(primary: PostgreSQL, data: Path) -> None:
    """A base backup that follows the primary."""
    data.parent.mkdir(mode=0o700, exist_ok=True)
    place = replace_name(primary.address, "")
    arguments = ["-D", str(data), "-R", "-X", "stream", "-c", "fast"]
    env = {**os.environ, "PGPASSWORD": place.password.read()}
    host = ["-h", place.host, "-p", str(place.port), "-U", place.user]
    program = str(primary.programs / "pg_basebackup")
    done = subprocess.run([program, *host, *arguments], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    settings = data / "postgresql.auto.conf"
    said = settings.read_text().replace("passfile=", "ignored_passfile=")
    settings.write_text(re.sub(r"ignored_passfile=\S+ ?", "", said))
    owner = (primary.programs, data.parent.parent / "primary" / "data")[1].stat()
    for path in (data.parent, data, *data.rglob("*")):
        os.chown(path, owner.st_uid, owner.st_gid)


def replace_name(server: Server, name: str) -> Server:
    return Server(server.host, server.port, name, server.user, server.password)


def until(holds: Callable[[], bool], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while True:
        try:
            if holds():
                return
        except (StoreUnavailable, StoreRestored):
            pass
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_sequence_behind_the_log_is_refused_with_the_repairing_statement(
    fresh: Login, opened: Postgres
) -> None:
    append(opened, 3)
    sql(fresh("owner"), "select setval('events_position_seq', 1)")
    relay = RelaySession(fresh("relay"), "user")
    for act in (
        opened.require_schema,
        opened.settled,
        lambda: opened.progress("user"),
        relay.settled_event,
        relay.require_schema,
        lambda: migrate(fresh("owner"), INIT_SQL, wait=0),
    ):
        with pytest.raises(SequenceBehind) as refused:
            act()
    statement = str(refused.value).rsplit("run as the owner: ", 1)[1]
    sql(fresh("owner"), statement)
    opened.require_schema()
    append(opened, 1)
    assert opened.settled() == 4
    relay.close()


def test_what_has_settled_goes_back_with_the_log(fresh: Login, opened: Postgres) -> None:
    append(opened, 5)
    relay = RelaySession(fresh("relay"), "user")
    assert relayed(relay) == 5
    restore_to(fresh("owner"), 2)
    assert opened.progress("user").settled == opened.progress("user").head == 2
    assert "begin_epoch" in opened.progress("user").relay_halted
    append(opened, 10)
    for act in (
        lambda: relayed(relay),
        lambda: relay.move_checkpoint(Mark(4, str(uuid4()))),
        lambda: relay.move_checkpoint(opened.progress("user").mark),
    ):
        with pytest.raises(StoreRestored):
            act()
    sql(fresh("owner"), "select begin_epoch('a trial')")
    assert relay.checkpoint() == START
    assert relayed(relay) == 12
    assert opened.progress("user").relay_halted == ""
    relay.close()


def restore_to(owner: Server, keep: int) -> None:
    """Deletes all but the first `keep` events and leaves the relay's checkpoint as it was."""
    sql(
        owner,
        "begin; alter table events disable trigger user;"
        f"delete from events where position > {keep};"
        "delete from streams s where not exists (select from events e where"
        " (e.aggregate_type, e.aggregate_id) = (s.aggregate_type, s.aggregate_id));"
        f"select setval('events_position_seq', {keep});"
        "alter table events enable trigger user; commit",
    )


def test_a_checkpoint_of_an_older_schema_is_moved_onto_the_event_below_it(
    fresh: Login, opened: Postgres
) -> None:
    append(opened, 2)
    owner = fresh("owner")
    sql(
        owner,
        "begin; alter table checkpoints drop column event_id;"
        "insert into checkpoints (name, position) values ('user', 7), ('nothing', 0);"
        "drop function settle; drop function move_checkpoint(text, bigint, uuid);"
        "drop function log_has; drop function page_end; drop function begin_epoch;"
        "drop function require_sequence;"
        "delete from schema_versions where version >= 4; commit",
    )
    assert migrate(owner, INIT_SQL) == SCHEMA_VERSION
    relay = RelaySession(fresh("relay"), "user")
    assert relay.checkpoint() == opened.progress("user").mark
    append(opened, 1)
    assert relayed(relay) == 1
    relay.close()


# ── docs/backup.md ────────────────────────────────────────────────────────────────────────


def commands() -> list[str]:
    return re.findall(r"```sh\n(.*?)```", (ROOT / "docs" / "backup.md").read_text(), re.DOTALL)


@pytest.mark.parametrize("says_so", [False, True])
def test_the_commands_of_the_backup_page_bring_a_log_back_as_it_was(
    postgres: PostgreSQL,
    fresh: Login,
    opened: Postgres,
    data_folder: Path,
    tmp_path: Path,
    says_so: bool,
) -> None:
    """Into a database that is provisioned and migrated; rights, positions and checkpoint hold."""
    dump, restore, begin_epoch = commands()
    append(opened, 3)
    relay = RelaySession(fresh("relay"), "user")
    assert relayed(relay) == 3
    relay.close()
    before = opened.progress("user")
    kept = opened.read_feed(0, 3)
    run(postgres, fresh("owner"), dump, tmp_path)
    append(opened, 2)
    opened.close()
    for command in (restore, begin_epoch) if says_so else (restore,):
        run(postgres, fresh("owner"), command, tmp_path)
    after = opened.progress("user")
    assert opened.read_feed(0, 100) == kept
    assert (after.head, after.settled, after.relayed) == (3, 3, 3)
    assert (after.epoch == before.epoch) is not says_so
    assert after.relay_halted == ""
    append(opened, 1)
    relay = RelaySession(fresh("relay"), "user")
    assert relayed(relay) == 1
    relay.close()


# ── the chart's backups ───────────────────────────────────────────────────────────────────


@pytest.fixture
def script(
    postgres: PostgreSQL, fresh: Login, tmp_path: Path
) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs a script of the chart's backups as the owner of the database."""
    owner = fresh("owner")
    (tmp_path / "password").write_text(owner.password.read())

    def run(name: str, *arguments: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["bash", str(ROOT / f"charts/shop/files/backup/{name}.sh"), *map(str, arguments)],
            env={
                "PATH": f"{postgres.programs}:{os.environ['PATH']}",
                "TMPDIR": str(tmp_path),
                "POSTGRES_HOST": owner.host,
                "POSTGRES_PORT": str(owner.port),
                "POSTGRES_DATABASE": owner.name,
                "POSTGRES_USER": owner.user,
                "POSTGRES_PASSWORD_FILE": str(tmp_path / "password"),
            },
            capture_output=True,
            text=True,
            check=False,
        )

    return run


def test_the_charts_scripts_dump_a_log_and_bring_it_back_in_a_new_epoch(
    script: Callable[..., subprocess.CompletedProcess[str]],
    fresh: Login,
    opened: Postgres,
    tmp_path: Path,
) -> None:
    append(opened, 2)
    stream, event = Stream("user", uuid4()), NewEvent(uuid4(), "USER_CREATED", 1, {})
    opened.append_many([Append(stream, 0, [event], Deadline(0.0))], {})
    snapshot = Snapshot(1, str(event.event_id), "digest", "checksum", "null")
    opened.write_snapshot(stream, snapshot)
    before, kept = opened.progress("user"), opened.read_feed(0, 100)
    done = script("dump", tmp_path, "user", 2)
    assert done.returncode == 0, done.stderr
    append(opened, 2)
    opened.append_many([Append(stream, 1, [], Deadline(None))], {})
    opened.write_snapshot(stream, Snapshot(9, str(uuid4()), "digest", "checksum", "null"))
    refused = script("restore", tmp_path, "user", "latest", INIT_SQL)
    assert refused.returncode == 1
    assert f"Nothing is restored while {fresh('service').user} use" in refused.stderr
    assert len(opened.read_feed(0, 100)) == 5
    opened.close()
    done = script("restore", tmp_path, "user", "latest", INIT_SQL)
    assert done.returncode == 0, done.stderr
    assert "holds 3 events of user-" in done.stdout
    assert opened.read_feed(0, 100) == kept
    assert opened.progress("user").epoch != before.epoch
    assert opened.take_due("user", 10, 60.0) == [Due(stream, 1)]
    assert opened.read_snapshot(stream) == snapshot
    append(opened, 1)


def test_a_new_epoch_forgets_deadlines_and_snapshots_of_events_that_are_gone(
    fresh: Login, opened: Postgres
) -> None:
    stream, event = Stream("user", uuid4()), NewEvent(uuid4(), "USER_CREATED", 1, {})
    opened.append_many([Append(stream, 0, [event], Deadline(0.0))], {})
    sound = Snapshot(1, str(event.event_id), "digest", "checksum", "null")
    gone, other = Stream("user", uuid4()), Stream("user", uuid4())
    opened.append(other, 0, [NewEvent(uuid4(), "USER_CREATED", 1, {})], {})
    for each in (stream, gone, other):
        opened.write_snapshot(each, sound)
    values = (
        f"('user', '{gone.aggregate_id}', 1, now()), ('user', '{other.aggregate_id}', 2, now())"
    )
    sql(fresh("owner"), f"insert into deadlines values {values}; select begin_epoch('a test')")
    assert opened.take_due("user", 10, 60.0) == [Due(stream, 1)]
    assert [each for each, _ in opened.read_snapshots("user")] == [stream]


def test_a_deleted_store_is_restored_into_the_one_that_setup_re_creates(
    script: Callable[..., subprocess.CompletedProcess[str]],
    fresh: Login,
    opened: Postgres,
    tmp_path: Path,
) -> None:
    append(opened, 3)
    kept = opened.read_feed(0, 100)
    assert script("dump", tmp_path, "user", 2).returncode == 0
    opened.close()
    owner = fresh("owner")
    sql(owner, "begin; drop schema public cascade; create schema public; commit")
    migrate(owner, INIT_SQL)
    done = script("restore", tmp_path, "user", "latest", INIT_SQL)
    assert done.returncode == 0, done.stderr
    assert opened.read_feed(0, 100) == kept
    append(opened, 1)


def test_old_dumps_go_and_half_a_dump_never_has_a_name(
    script: Callable[..., subprocess.CompletedProcess[str]], fresh: Login, tmp_path: Path
) -> None:
    for day in ("1", "2", "3"):
        (tmp_path / f"user-2026010{day}T000000Z.dump").touch()
    (tmp_path / "order-20260101T000000Z.dump").touch()
    assert script("dump", tmp_path, "user", 2).returncode == 0
    left = sorted(each.name for each in tmp_path.glob("*.dump"))
    assert [name[:14] for name in left[:2]] == ["order-20260101", "user-20260103T"]
    assert len(left) == 3
    sql(fresh("owner"), "drop table events cascade")
    assert script("dump", tmp_path, "user", 2).returncode != 0
    assert sorted(each.name for each in tmp_path.glob("*.dump")) == left


def test_a_dump_that_is_not_there_is_refused_with_those_that_are(
    script: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    (tmp_path / "user-20260101T000000Z.dump").touch()
    refused = script("restore", tmp_path, "user", "user-20260102T000000Z.dump", INIT_SQL)
    assert refused.returncode == 1
    assert "There is no dump user-20260102T000000Z.dump. There are:" in refused.stderr
    assert "user-20260101T000000Z.dump" in refused.stderr


def run(postgres: PostgreSQL, owner: Server, command: str, folder: Path) -> None:
    env = {
        **os.environ,
        "PATH": f"{postgres.programs}:{os.environ['PATH']}",
        "PGHOST": owner.host,
        "PGPORT": str(owner.port),
        "PGUSER": owner.user,
        "PGPASSWORD": owner.password.read(),
    }
    command = command.replace("user_event_db", owner.name)
    done = subprocess.run(
        ["bash", "-ec", command], cwd=folder, env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
