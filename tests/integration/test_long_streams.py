"""A stream of 100,000 events: what is read of it, and how much memory a command on it takes."""

import subprocess
import sys
from pathlib import Path
from uuid import UUID, uuid4

import pytest
from sqlalchemy import Engine

from eventcore.query import Views
from eventcore.store.connection import connect
from eventcore.store.port import PAGE
from eventcore.store.postgres import Postgres
from tests.conftest import Databases
from tests.fakes.readmodel import FakeReadModel
from user.projections.users import PROJECTION

EVENTS = 100_000
AT_ONCE = 2_000
"""Events of one transaction that makes the stream."""
MIB = 1024 * 1024

COMMAND = """
import sys
from pathlib import Path
from uuid import UUID
from eventcore.command import Call, handle
from eventcore.settings import Secret, Server
from eventcore.store.port import Answer
from eventcore.store.postgres import Postgres
from user.user import DECIDER, ChangeUser

host, port, name, user, password, stream = sys.argv[1:]
store = Postgres(Server(host, int(port), name, user, Secret(password)), 1)
done = handle(store, DECIDER, UUID(stream), ChangeUser(name="Last"), Call({}),
              lambda state, version: Answer(200, {"name": state.name, "at": version}, {}))
[peak] = [line for line in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in line]
print(done.body["at"], done.body["name"], peak.split()[1])
"""


@pytest.fixture(scope="module")
def stream(spare_databases: Databases) -> UUID:
    """One user, renamed very often."""
    user = uuid4()
    with connect(spare_databases("spare", "owner")).connect() as connection:
        for begin in range(0, EVENTS, AT_ONCE):
            connection.exec_driver_sql(
                "select append_events('user', %s::uuid, %s,"
                " array_agg(gen_random_uuid()), array_agg(case n when 1 then 'USER_CREATED'"
                " else 'USER_NAME_CHANGED' end), array_agg(1), array_agg(case n when 1 then"
                ' \'{"name": "Ada", "email": "ada@example.com"}\' else'
                " format('{\"name\": \"Ada %%s\"}', n) end), '{}')"
                " from generate_series(%s, %s) n",
                (str(user), begin, begin + 1, begin + AT_ONCE),
            )
    return user


def test_an_early_version_reads_no_more_events_than_it_is_made_of(
    store: Postgres, stream: UUID, reads: list[int]
) -> None:
    views = Views(PROJECTION, FakeReadModel(), store)
    document = views.as_it_was(stream, version=3)
    assert (document["version"], document["name"]) == (3, "Ada 3")
    assert sum(reads) == 3


def test_an_early_moment_reads_one_page(
    store: Postgres, stream: UUID, reads: list[int], owner: Engine
) -> None:
    with owner.connect() as connection:
        moment = connection.exec_driver_sql(
            "select recorded_at from events where aggregate_id = %s::uuid and version = 1",
            (str(stream),),
        ).scalar_one()
    views = Views(PROJECTION, FakeReadModel(), store)
    assert views.as_it_was(stream, at=moment)["version"] == AT_ONCE  # of one transaction
    assert sum(reads) <= AT_ONCE + PAGE


def test_a_command_on_it_takes_less_than_256_mib(spare_databases: Databases, stream: UUID) -> None:
    server = spare_databases("spare", "service")
    place = (server.host, str(server.port), server.name, server.user, server.password.read())
    done = subprocess.run(
        [sys.executable, "-c", COMMAND, *place, str(stream)],
        env={"PYTHONPATH": str(Path(__file__).parents[2] / "services")},
        capture_output=True,
        text=True,
        check=True,
    )
    version, name, kibibytes = done.stdout.split()[-3:]
    assert (int(version), name) == (EVENTS + 1, "Last")
    assert int(kibibytes) * 1024 < 256 * MIB
