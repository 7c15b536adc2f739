"""The contract of a read model: the same tests in memory and over MongoDB's protocol."""

import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from pymongo import ASCENDING, MongoClient
from pymongo.monitoring import CommandListener, CommandStartedEvent

from eventcore.clock import Clock
from eventcore.errors import CannotApply
from eventcore.model.event import START, Mark
from eventcore.model.projection import Document
from eventcore.readmodel.client import SOCKET_TIMEOUT, to_url
from eventcore.readmodel.mongo import Mongo
from eventcore.readmodel.port import SLOTS, ReadModel
from eventcore.readmodel.records import (
    Checkpoint,
    Depth,
    Generation,
    Generations,
    Parked,
    Skip,
    Verification,
    Write,
)
from eventcore.settings import Secret
from local.servers import MongoDB
from tests.fakes.readmodel import FakeReadModel

NOW = datetime(2026, 1, 16, 10, tzinfo=UTC)


@pytest.fixture(params=["fake", pytest.param("mongo", marks=pytest.mark.servers)])
def readmodel(request: pytest.FixtureRequest) -> Iterator[ReadModel]:
    if request.param == "fake":
        yield FakeReadModel()
        return
    mongo = Mongo(request.getfixturevalue("mongodb").login(f"contract_{uuid4().hex[:12]}"))
    yield mongo
    mongo.close()


def test_documents_are_ranked_by_a_field_and_a_page_begins_after_a_place(
    readmodel: ReadModel,
) -> None:
    for key, total in (("a", "5.00"), ("b", "20.10"), ("c", "5.00"), ("d", "0.99")):
        assert write(readmodel, key, 1, total=Decimal(total))
    assert write(readmodel, "e", 1)  # without the field
    first = readmodel.ranked("things", "total", None, 2)
    assert [each["_id"] for each in first] == ["b", "a"]
    after = first[-1]["total"], str(first[-1]["_id"])
    assert [each["_id"] for each in readmodel.ranked("things", "total", after, 9)] == ["c", "d"]


def write(readmodel: ReadModel, key: str, version: int, **fields: object) -> bool:
    document = {"_id": key, "version": version, **fields}
    return readmodel.write("things", [Write(document, version - 1)])


def test_documents_come_back_exactly(readmodel: ReadModel) -> None:
    write(readmodel, "a", 1, price=Decimal("0.10"), name="Ada é", nothing=None, flag=True)
    found = readmodel.find("things", ["a", "missing"])
    assert list(found) == ["a"]
    assert str(found["a"]["price"]) == "0.10"
    assert found["a"]["name"] == "Ada é"
    assert readmodel.versions("things", ["a", "missing"]) == {"a": 1}


def test_a_decimal_stays_exact_however_deep_it_is(readmodel: ReadModel) -> None:
    lines = [{"price": Decimal("0.10"), "taxes": [Decimal("1.90"), None]}, {"price": 2}]
    write(readmodel, "a", 1, lines=lines, total={"sum": Decimal("2.10")})
    for [found] in (
        readmodel.find("things", ["a"]).values(),
        readmodel.page("things", {}, None, 1),
        readmodel.scan("things", "", 1),
    ):
        assert found["lines"] == lines
        assert repr(found["lines"]) == repr(lines)
        assert repr(found["total"]) == repr({"sum": Decimal("2.10")})


def test_when_a_document_was_written_is_told_and_never_shown(readmodel: ReadModel) -> None:
    before = datetime.now(UTC) - timedelta(milliseconds=1)
    write(readmodel, "a", 1)
    first = readmodel.projected_at("things", ["a", "missing"])
    assert list(first) == ["a"]
    assert before <= first["a"] <= datetime.now(UTC)
    time.sleep(0.002)  # times are kept in milliseconds
    write(readmodel, "a", 1)  # refused: it is there
    assert readmodel.projected_at("things", ["a"]) == first
    write(readmodel, "a", 2)
    assert readmodel.projected_at("things", ["a"])["a"] > first["a"]
    plain = {"_id": "a", "version": 2}
    assert readmodel.find("things", ["a"]) == {"a": plain}
    assert readmodel.page("things", {}, None, 1) == [plain]
    assert readmodel.scan("things", "", 1) == [plain]


def test_a_write_takes_effect_only_on_the_version_it_replaces(readmodel: ReadModel) -> None:
    assert write(readmodel, "a", 1) is True
    assert write(readmodel, "a", 1) is False
    assert write(readmodel, "a", 3) is False
    assert write(readmodel, "a", 2) is True
    assert readmodel.versions("things", ["a"]) == {"a": 2}


def test_one_that_was_too_late_does_not_hold_the_others_up(readmodel: ReadModel) -> None:
    write(readmodel, "a", 1)
    write(readmodel, "b", 1)
    batch = [
        Write({"_id": "a", "version": 1}, 0),
        Write({"_id": "b", "version": 2}, 1),
        Write({"_id": "c", "version": 1}, 0),
    ]
    assert readmodel.write("things", batch) is False
    assert readmodel.versions("things", ["a", "b", "c"]) == {"a": 1, "b": 2, "c": 1}


def test_one_that_was_too_late_does_not_hold_hundreds_up(readmodel: ReadModel) -> None:
    write(readmodel, "s1", 1)
    ids = [f"s{number}" for number in range(180)]
    assert (
        readmodel.write("things", [Write({"_id": each, "version": 1}, 0) for each in ids]) is False
    )
    assert readmodel.versions("things", ids) == dict.fromkeys(ids, 1)


def test_what_cannot_be_stored_is_said(readmodel: ReadModel) -> None:
    with pytest.raises(CannotApply):
        write(readmodel, "a", 1, number=2**70)


def test_a_page_is_newest_first_below_a_document_and_filtered(readmodel: ReadModel) -> None:
    readmodel.prepare("things", [("colour", "_id")])
    for key, colour in (("a", "red"), ("b", "blue"), ("c", "red"), ("d", "red")):
        write(readmodel, key, 1, colour=colour)

    def page(where: dict[str, str], before: str | None, limit: int) -> list[object]:
        return [document["_id"] for document in readmodel.page("things", where, before, limit)]

    assert page({}, None, 2) == ["d", "c"]
    assert page({}, "c", 10) == ["b", "a"]
    assert page({"colour": "red"}, None, 10) == ["d", "c", "a"]
    assert page({"colour": "red"}, "d", 1) == ["c"]


def test_a_checkpoint_begins_at_0_and_only_grows(readmodel: ReadModel) -> None:
    assert readmodel.checkpoint("p").position == 0
    lease = readmodel.take_lease("p", "me", 5)
    assert lease
    assert readmodel.move_checkpoint(lease, Mark(7, "e7"), NOW) is True
    assert readmodel.move_checkpoint(lease, Mark(5, "e5"), NOW - timedelta(hours=1)) is True
    assert readmodel.move_checkpoint(lease, Mark(6, "e6"), None) is True
    checkpoint = readmodel.checkpoint("p")
    assert (checkpoint.position, checkpoint.event_id) == (7, "e7")
    assert checkpoint.covered_at == NOW - timedelta(hours=1)  # a clock that was ahead is right now
    again = readmodel.take_lease("p", "me", 5)
    assert again
    assert again.position == 7


def test_a_lease_has_one_holder_until_it_runs_out_or_is_released(readmodel: ReadModel) -> None:
    assert readmodel.take_lease("p", "me", 5)
    assert readmodel.take_lease("p", "me", 5)
    assert readmodel.take_lease("p", "other", 5) is None
    readmodel.release_lease("p", "other")
    assert readmodel.take_lease("p", "other", 5) is None
    readmodel.release_lease("p", "me")
    assert readmodel.take_lease("p", "other", 5)
    assert readmodel.take_lease("q", "me", 0.01)
    deadline = time.monotonic() + 2
    while not readmodel.take_lease("q", "other", 5):
        assert time.monotonic() < deadline


def test_a_lease_ends_on_time_for_a_holder_with_a_wrong_clock(
    mongodb: MongoDB,
) -> None:
    login = mongodb.login(f"contract_{uuid4().hex[:12]}")
    ahead = Mongo(login, clock=Clock(now=lambda: datetime.now(UTC) + timedelta(hours=1)))
    mongo = Mongo(login)
    assert ahead.take_lease("p", "dead", 0.2)
    assert ahead.take_lease("p", "other", 5) is None
    deadline = time.monotonic() + 10
    while not (lease := mongo.take_lease("p", "other", 5)):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert lease.epoch == 2
    ahead.close()
    mongo.close()


def test_who_lost_the_lease_cannot_move_the_checkpoint(readmodel: ReadModel) -> None:
    old = readmodel.take_lease("p", "old", 5)
    readmodel.release_lease("p", "old")
    new = readmodel.take_lease("p", "new", 5)
    assert old
    assert new
    assert new.epoch > old.epoch
    assert readmodel.move_checkpoint(old, Mark(9, "e9"), NOW) is False
    assert readmodel.checkpoint("p").position == 0


def test_a_parked_stream_keeps_the_highest_version_and_the_first_moment(
    readmodel: ReadModel,
) -> None:
    parked = Parked("p", "s", 3, 5, "why", NOW)
    assert readmodel.park([parked]) == ["s"]
    later = replace(parked, highest=9, error="why not", when=NOW + timedelta(hours=1))
    assert readmodel.park([later]) == []
    assert readmodel.park([replace(parked, highest=4)]) == []
    [found] = readmodel.parked("p").values()
    assert (found.version, found.highest, found.when) == (3, 9, NOW)
    assert list(readmodel.parked("p", ["s", "t"])) == ["s"]
    assert readmodel.parked("p", ["t"]) == {}
    assert readmodel.parked("q") == {}


def test_a_parked_list_is_read_in_parts_and_counted(readmodel: ReadModel) -> None:
    streams = {f"s{number}" for number in range(40)}
    readmodel.prepare("things", ())
    readmodel.park([Parked("p", each, 3, 9, "why", NOW) for each in streams])
    assert readmodel.park([Parked("p", each, 3, 9, "", NOW) for each in ("s1", "new")]) == ["new"]
    readmodel.park([Parked("q", "s1", 3, 9, "why", NOW)])
    width = SLOTS // 8
    parts = [readmodel.parked_in("p", range(at, at + width)) for at in range(0, SLOTS, width)]
    assert all(len(part) < 40 for part in parts)
    assert {stream for part in parts for stream in part} == {*streams, "new"}
    assert sum(map(len, parts)) == readmodel.count_parked("p") == 41
    assert [each["s1"] for each in parts if "s1" in each] == [readmodel.parked("p", ["s1"])["s1"]]


def test_a_parked_stream_is_released_once_its_document_has_all_events(
    readmodel: ReadModel,
) -> None:
    readmodel.park([Parked("p", each, 3, 9, "why", NOW) for each in "st"])
    assert readmodel.release("p", {"s": 8}) == 0
    assert readmodel.release("p", {"s": 9, "t": 8, "u": 9}) == 1
    assert readmodel.release("p", {"s": 9}) == 0
    assert list(readmodel.parked("p")) == ["t"]
    assert readmodel.release("p", {"t": 10}) == 1
    assert readmodel.parked("p") == {}


def test_a_generation_has_its_own_number_and_serves_after_the_switch(
    readmodel: ReadModel,
) -> None:
    assert readmodel.generations("p") == Generations(serving=1, previous=0, newest=1)
    assert [readmodel.begin_generation("p"), readmodel.begin_generation("p")] == [2, 3]
    assert readmodel.switch("p", serving=1, to=3)
    assert not readmodel.switch("p", serving=1, to=2)
    assert readmodel.generations("p") == Generations(serving=3, previous=1, newest=3)
    assert readmodel.generations("another") == Generations()


def test_a_dropped_generation_leaves_nothing_and_the_others_stay(readmodel: ReadModel) -> None:
    first, second = Generation("p", 1, "things"), Generation("p", 2, "things.2")
    readmodel.begin_generation("p")
    for each in (first, second):
        readmodel.write(each.collection, [Write({"_id": "a", "version": 1}, 0)])
        readmodel.park([Parked(each.name, "s", 3, 5, "why", NOW)])
        lease = readmodel.take_lease(each.name, "holder", 5)
        assert lease
        readmodel.move_checkpoint(lease, Mark(7, "e7"), None)
    readmodel.switch("p", 1, 2)
    readmodel.drop(first)
    assert readmodel.generations("p") == Generations(serving=2, previous=0, newest=2)
    assert not readmodel.find("things", ["a"])
    assert not readmodel.parked("p")
    assert readmodel.checkpoint("p") == Checkpoint(0, None)
    assert readmodel.find("things.2", ["a"])
    assert readmodel.parked("p.2")
    assert readmodel.checkpoint("p.2").position == 7


def test_a_checkpoint_without_an_event_is_moved_onto_one_in_any_case(readmodel: ReadModel) -> None:
    lease = readmodel.take_lease("p", "me", 5)
    assert lease
    assert readmodel.move_checkpoint(lease, Mark(7, ""), None) is True
    assert readmodel.move_checkpoint(lease, Mark(6, "e6"), None) is True
    assert readmodel.checkpoint("p").marks == (Mark(6, "e6"), START)


def test_every_replica_notes_the_furthest_event_that_it_has_folded(readmodel: ReadModel) -> None:
    assert readmodel.take_lease("p", "holder", 5, Mark(4, "e4"))
    assert readmodel.take_lease("p", "another", 5, Mark(6, "e6")) is None
    assert readmodel.take_lease("p", "another", 5) is None
    lease = readmodel.take_lease("p", "holder", 5, Mark(5, "e5"))
    assert lease
    assert lease.marks == readmodel.checkpoint("p").marks == (START, Mark(6, "e6"))


def test_a_checkpoint_keeps_the_epoch_of_its_log_and_the_reason_of_a_halt(
    readmodel: ReadModel,
) -> None:
    lease = readmodel.take_lease("p", "holder", 5)
    assert lease
    assert (lease.store_epoch, lease.halted) == ("", "")
    readmodel.move_checkpoint(replace(lease, store_epoch="first life"), Mark(3, "e3"), None)
    readmodel.halt("p", "it was restored")
    again = readmodel.take_lease("p", "holder", 5)
    assert again
    assert (again.position, again.store_epoch, again.halted) == (3, "first life", "it was restored")
    assert readmodel.checkpoint("p").halted == "it was restored"
    readmodel.halt("p", "")
    assert readmodel.checkpoint("p").halted == ""


def test_a_scan_reads_each_document_once_and_a_page_omits_removed_ones(
    readmodel: ReadModel,
) -> None:
    documents: list[Document] = [{"_id": each, "version": 1} for each in "abc"]
    documents[1]["removed"] = True
    readmodel.write("things", [Write(each, 0) for each in documents])
    first = readmodel.scan("things", "", 2)
    assert [each["_id"] for each in first] == ["a", "b"]
    assert [each["_id"] for each in readmodel.scan("things", "b", 2)] == ["c"]
    assert [each["_id"] for each in readmodel.page("things", {}, None, 5)] == ["c", "a"]


def test_a_skip_is_kept_with_who_said_so_first(readmodel: ReadModel) -> None:
    first = Skip("p", "s", 2, "event", "Ada", "it was a test", NOW)
    readmodel.skip(first)
    readmodel.skip(replace(first, who="Bob"))
    assert readmodel.skips("p") == [first]
    assert readmodel.skips("another") == []


def test_what_the_last_verification_found_is_kept(readmodel: ReadModel) -> None:
    assert readmodel.verification("p") is None
    readmodel.note_verification(Verification("p", NOW, 5, 1))
    found = Verification("p", NOW, 9, 0)
    readmodel.note_verification(found)
    assert readmodel.verification("p") == found


def test_the_depths_of_queues_are_kept_as_they_were_noted_last(readmodel: ReadModel) -> None:
    assert readmodel.depth("p") is None
    readmodel.note_depth(Depth("p", NOW, 5, 1))
    readmodel.note_depth(found := Depth("p", NOW, 0, 2))
    assert readmodel.depth("p") == found
    assert readmodel.depth("another") is None


@pytest.mark.parametrize("_time", range(5))
def test_threads_that_begin_together_share_one_client(mongodb: MongoDB, _time: int) -> None:
    mongo = Mongo(mongodb.login("contract_beginning"))
    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(lambda _: mongo.find("things", ["a"]), range(64)))
    mongo.close()
    assert found == [{}] * 64


def test_a_new_password_in_its_file_is_noticed_soon(mongodb: MongoDB, tmp_path: Path) -> None:
    login = mongodb.login("noticed")
    (file := tmp_path / "password").write_text(login.password.read())
    passed = 0.0
    clock = Clock(monotonic=lambda: time.monotonic() + passed)
    mongo = Mongo(replace(login, password=Secret(file=file)), clock=clock)
    mongo.ping()
    first = mongo._connected()
    file.write_text("new")
    assert mongo._connected() is first  # the file is not read at each call
    passed = 1.1
    second = mongo._connected()
    assert second is not first
    passed = 3.0
    assert mongo._connected() is second
    mongo.close()


class Commands(CommandListener):
    """The request of a client."""

    def __init__(self) -> None:
        self.sent: list[Mapping[str, Any]] = []

    def started(self, event: CommandStartedEvent) -> None:
        self.sent.append(event.command)

    def succeeded(self, event: object) -> None: ...
    def failed(self, event: object) -> None: ...


@pytest.fixture
def listened(mongodb: MongoDB, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Mongo, Commands]]:
    commands = Commands()
    client = partial(MongoClient, event_listeners=[commands])
    monkeypatch.setattr("eventcore.readmodel.connection.MongoClient", client)
    mongo = Mongo(mongodb.login(f"listened_{uuid4().hex[:12]}"))
    yield mongo, commands
    mongo.close()


def test_what_a_checkpoint_rests_on_is_read_from_a_majority(
    listened: tuple[Mongo, Commands],
) -> None:
    mongo, commands = listened
    mongo.versions("things", ["a", "b"])
    mongo.parked("p", ["a"])
    concerns = [sent.get("readConcern") for sent in commands.sent if "find" in sent]
    assert concerns == [{"level": "majority"}] * 2


def test_a_write_without_majority_is_answered_before_the_socket_timeout(
    listened: tuple[Mongo, Commands],
) -> None:
    mongo, commands = listened
    write(mongo, "a", 1)
    [sent] = [sent for sent in commands.sent if "insert" in sent]
    assert sent["writeConcern"]["w"] == "majority"
    assert sent["writeConcern"]["wtimeout"] < SOCKET_TIMEOUT


def test_a_document_that_another_unique_index_refuses_cannot_be_stored(mongodb: MongoDB) -> None:
    server = mongodb.login(f"unique_{uuid4().hex[:12]}")
    mongo = Mongo(server)
    url = to_url(server, server.password.read())
    with MongoClient[Document](url) as client:
        client[server.name]["things"].create_index([("email", ASCENDING)], unique=True)
    assert write(mongo, "a", 1, email="x") is True
    assert write(mongo, "a", 1, email="y") is False
    with pytest.raises(CannotApply, match="email"):
        write(mongo, "b", 1, email="x")
    mongo.close()
