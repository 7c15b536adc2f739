"""A reactor on real servers, killed between any two of its steps, does each command once.

The reactor is of a service of its own, `toy`, and reads the events of the user service.
"""

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from eventcore.readmodel.mongo import Mongo
from eventcore.store.port import Stream
from eventcore.store.postgres import Postgres
from local.child import Child
from local.processes import _told
from local.servers import MongoDB, free_port
from local.services import ROOT
from local.shop import READY_TIME, Shop, says_ready
from tests.conftest import Databases
from tests.integration.test_metrics import await_that
from tests.integration.wire import Wire, new_user

SERVICE = '''
from dataclasses import dataclass

from eventcore.model.catalogue import Catalogue
from eventcore.model.decider import Decider
from eventcore.model.service import Projector, Service
from eventcore.reactor import Reactor
from user.events import CATALOGUE as USERS


@dataclass(frozen=True)
class LetterWritten:
    """A user was welcomed."""

    name: str


def write(commands, event):
    commands.handle(DECIDER, event.aggregate_id, event.data["name"])


CATALOGUE = Catalogue("letter", LetterWritten, owner="toy")
DECIDER = Decider(
    CATALOGUE, (), lambda name, told: [] if told else [LetterWritten(name)], lambda *_: True
)
REACTOR = Reactor(name="letters", catalogue=USERS, queue="toy_letters", on={"USER_CREATED": write})
SERVICE = Service(
    name="toy", title="Toy", about="Welcomes users.", port=1, paths=(), catalogue=CATALOGUE,
    projectors=(Projector("toy-letters", REACTOR),),
)
'''


class Toy:
    """The process of the reactor, its store, and its read model."""

    def __init__(self, env: Mapping[str, str], folder: Path, store: Postgres, model: Mongo) -> None:
        self.env, self.store, self.readmodel = env, store, model
        self.failpoints = folder / "failpoints"
        argv = (sys.executable, "-m", "eventcore", "project", "letters")
        self.child = Child("toy", argv, folder / "toy.log", env)
        self.ready_url = f"http://127.0.0.1:{env['METRICS_PORT']}/readyz"

    def start(self) -> None:
        self.child.launch()
        self.child.await_that(says_ready(self.ready_url), READY_TIME)

    def letters(self) -> Counter[str]:
        """How many letters each user got."""
        events = self.store.read_feed(0, self.store.settled(), 10**6)
        return Counter(str(e.aggregate_id) for e in events if e.aggregate_type == "letter")

    def has_read(self, user_id: str) -> bool:
        serving = self.readmodel.generations("letters").serving
        collection = "letters" if serving == 1 else f"letters.{serving}"
        return bool(self.readmodel.versions(collection, [user_id]))

    def tool(self, *arguments: str) -> str:
        """The output of a tool in the environment of the reactor."""
        done = subprocess.run(
            [sys.executable, "-m", "eventcore", *arguments],
            env=self.env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=60,
            check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout
        return done.stdout


@pytest.fixture
def toy(shop: Shop, mongodb: MongoDB, spare_databases: Databases, tmp_path: Path) -> Iterator[Toy]:
    shop.start()
    (tmp_path / "toy").mkdir()
    (tmp_path / "toy" / "__init__.py").touch()
    (tmp_path / "toy" / "service.py").write_text(SERVICE)
    (tmp_path / "failpoints").mkdir()
    database = spare_databases("spare", "service")
    env = {
        **shop.environment("user-projector"),
        **_told("store", database),
        **_told("readmodel", mongodb.login("toy_read_model")),
        "SERVICE": "toy",
        "METRICS_PORT": str(free_port()),
        "SWEEP_INTERVAL": "0.5",
        "LEASE": "2",
        "PYTHONPATH": f"{ROOT / 'services'}:{tmp_path}",
        "FAILPOINTS": str(tmp_path / "failpoints"),
    }
    store, readmodel = Postgres(database, 2), Mongo(mongodb.login("toy_read_model"))
    toy = Toy(env, tmp_path, store, readmodel)
    yield toy
    toy.child.stop()
    store.close()
    readmodel.close()


@pytest.mark.timeout(300)  # the servers' start included
def test_a_reactor_that_is_killed_anywhere_carries_out_each_command_once(
    shop: Shop, toy: Toy
) -> None:
    wire, users = Wire(shop), list[str]()
    for point in ("append:begin", "append:committed", "reactor:reacted", "projector:written"):
        toy.start()
        (toy.failpoints / point).touch()
        users += [new_user(wire) for _ in range(5)]
        await_that(lambda: not toy.child.is_running, 20)
        assert not (toy.failpoints / point).exists()
    toy.start()
    await_that(lambda: all(map(toy.has_read, users)), 20)
    letters = toy.letters()
    assert {each: letters[each] for each in users} == dict.fromkeys(users, 1)
    assert set(letters.values()) == {1}  # whoever was there before too
    assert not toy.readmodel.parked("letters", users)
    document = toy.readmodel.find("letters", users[:1])[users[0]]
    assert set(document) == {"_id", "version", "eventId"}
    [letter] = toy.store.read_stream(Stream("letter", document["_id"]))
    assert letter.metadata["causationId"] == document["eventId"]
    assert letter.metadata["reactor"] == "letters"

    assert '"serves": "letters.2"' in toy.tool("rebuild", "letters", "--json", "--yes")
    late = new_user(wire)
    await_that(lambda: toy.has_read(late), 20)
    assert set(toy.letters().values()) == {1}
    [row] = [json.loads(line) for line in toy.tool("verify", "letters", "--json").splitlines()]
    assert (row["projection"], row["wrong"]) == ("letters", 0)
    assert "letters" in toy.tool("lag")
