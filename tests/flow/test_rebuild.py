"""A projection is folded again beside the one that serves; an operator sees what is wrong."""

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from random import Random
from typing import Any
from uuid import UUID, uuid4

import pytest
from click.testing import CliRunner, Result

from eventcore.errors import Conflict, NotFound, ReadModelUnavailable, Refused
from eventcore.model.event import NewEvent
from eventcore.model.projection import Document, Projection
from eventcore.operate import rebuild
from eventcore.operate.parity import Comparison, Parity
from eventcore.operate.rebuilding import Rebuild, begin, rebuild_stream, rollback
from eventcore.operate.verifying import Verified, Verifier
from eventcore.project.applier import EventApplier
from eventcore.readmodel.records import Generation, Parked, Skip, Write, generation_of
from eventcore.store.feed import StoreFeed
from eventcore.store.port import Progress, Stream
from tests.fakes.shop import FakeShop
from user.projections import users

USERS = users.PROJECTION
NOW = datetime(2026, 1, 16, 10, tzinfo=UTC)


@pytest.fixture
def shop() -> FakeShop:
    shop = FakeShop()
    for number in range(5):
        user_id = shop.create_user(f"Ada {number}")
        shop.users.put(f"/users/{user_id}", json={"name": f"Eve {number}"})
    shop.settle()
    shop.sweep()
    return shop


def feed(shop: FakeShop) -> StoreFeed:
    return StoreFeed(shop.user_store, "user")


def new_build(shop: FakeShop, projection: Projection = USERS) -> Rebuild:
    return begin(projection, shop.readmodel, feed(shop), "rebuilder", lambda _: None)


def rebuilt(shop: FakeShop, projection: Projection = USERS) -> Rebuild:
    build = new_build(shop, projection)
    build.fold(lambda *_: None)
    build.catch_up()
    return build


def verified(shop: FakeShop, sample: int | None = None, number: int = 1) -> Verified:
    generation = generation_of(USERS, number)
    verifier = Verifier(USERS, shop.readmodel, feed(shop), generation, lambda _: None)
    return verifier.run(sample, Random(1))


def documents(shop: FakeShop, number: int = 1) -> dict[str, dict[str, Any]]:
    found: dict[str, Any] = shop.readmodel.collections[generation_of(USERS, number).collection]
    return found


def spoil(shop: FakeShop) -> str:
    """Alter one document behind everybody's back; its id."""
    stream = sorted(documents(shop))[0]
    documents(shop)[stream]["name"] = "Mallory"
    return stream


def test_a_rebuilt_generation_equals_the_one_that_serves(shop: FakeShop) -> None:
    build = rebuilt(shop)
    parity = build.compare()
    assert parity.agrees
    assert (parity.serving, parity.new, parity.alike) == (5, 5, 5)
    assert parity.serving_digest == parity.new_digest != 0
    assert documents(shop, 2) == documents(shop)


def test_queries_read_the_old_documents_until_the_switch_then_the_new(
    shop: FakeShop,
) -> None:
    stream = spoil(shop)
    build = rebuilt(shop)
    assert shop.users.get(f"/users/{stream}").get_json()["name"] == "Mallory"
    build.switch()
    fresh = FakeShop(shop.user_store, shop.order_store, shop.readmodel, shop.broker)
    assert fresh.users.get(f"/users/{stream}").get_json()["name"].startswith("Eve")


def test_projectors_follow_the_switch_and_the_sweep_applies_late_writes(
    shop: FakeShop,
) -> None:
    build = rebuilt(shop)
    build.switch()
    user_id = shop.create_user("Zoe")  # its projector has not noticed, and writes to the old one
    assert user_id in documents(shop)
    assert user_id not in documents(shop, 2)
    shop.sweep()
    assert documents(shop, 2)[user_id]["name"] == "Zoe"
    later = shop.create_user("Yan")
    assert later in documents(shop, 2)
    assert later not in documents(shop)


def test_what_happens_during_a_rebuild_is_in_both_before_they_are_compared(
    shop: FakeShop,
) -> None:
    build = new_build(shop)
    build.fold(lambda *_: None)
    late = shop.create_user("Late")
    parity = build.compare()
    assert parity.agrees
    assert documents(shop, 2)[late] == documents(shop)[late]


@pytest.mark.parametrize(("name", "kind"), [("Eve", "alike"), ("Mallory", "different")])
def test_documents_that_never_meet_at_one_version_are_compared_by_the_log(
    shop: FakeShop, name: str, kind: str
) -> None:
    stream = sorted(documents(shop))[0]
    build = rebuilt(shop)
    behind = documents(shop)[stream]
    behind["name"] = behind["name"].replace("Eve", name)

    def go_on(_: float) -> None:
        shop.users.put(f"/users/{stream}", json={"name": f"Zoe {uuid4()}"})
        shop.settle()
        documents(shop)[stream] = behind

    build.wait = go_on
    go_on(0)
    build.catch_up()
    parity = build.compare()
    assert getattr(parity, kind) == (5 if kind == "alike" else 1)
    assert parity.agrees == (kind == "alike")


def test_a_comparison_names_what_differs_is_missing_and_is_added(shop: FakeShop) -> None:
    first, second, third, *_ = sorted(documents(shop))
    documents(shop)[first]["name"] = "Mallory"
    del documents(shop)[second]
    build = rebuilt(shop)
    del documents(shop, 2)[third]
    parity = build.compare()
    assert not parity.agrees
    assert (parity.different, parity.added, parity.missing) == (1, 1, 1)
    assert parity.ids == {"different": [first], "added": [second], "missing": [third]}
    assert parity.serving_digest != parity.new_digest


def test_going_back_catches_up_first(shop: FakeShop) -> None:
    rebuilt(shop).switch()
    shop.sweep()
    shop.create_user("Zoe")
    build = rollback(USERS, shop.readmodel, feed(shop), "rebuilder", lambda _: None)
    build.catch_up()
    assert build.compare().agrees
    build.switch()
    assert shop.readmodel.generations("users").serving == 1
    assert shop.readmodel.generations("users").previous == 2
    assert "Zoe" in {each["name"] for each in documents(shop).values()}


def test_there_is_no_going_back_where_nothing_is_kept(shop: FakeShop) -> None:
    with pytest.raises(NotFound):
        rollback(USERS, shop.readmodel, feed(shop), "rebuilder", lambda _: None)


def test_a_second_rebuild_is_refused_and_a_killed_one_leaves_nothing(
    shop: FakeShop,
) -> None:
    left = rebuilt(shop)
    with pytest.raises(Conflict, match="already"):
        begin(USERS, shop.readmodel, feed(shop), "another", lambda _: None)
    shop.readmodel.release_lease(left.generation.name, "rebuilder")  # as when it has run out
    build = begin(USERS, shop.readmodel, feed(shop), "another", lambda _: None)
    assert build.generation.number == 3
    assert not documents(shop, 2)


def test_the_generation_before_the_previous_one_is_dropped(shop: FakeShop) -> None:
    for _ in range(2):
        rebuilt(shop).switch()
    known = shop.readmodel.generations("users")
    assert (known.serving, known.previous) == (3, 2)
    assert not documents(shop, 1)
    assert documents(shop, 2)


def test_a_generation_that_serves_is_not_discarded_whatever_fails(
    shop: FakeShop,
) -> None:
    build = rebuilt(shop)
    build.switch()
    build.discard()
    assert len(documents(shop, 2)) == 5
    assert shop.readmodel.checkpoint("users.2").position > 0


def test_mongodb_may_be_away_for_a_moment_while_the_one_before_is_dropped(
    shop: FakeShop, monkeypatch: pytest.MonkeyPatch
) -> None:
    rebuilt(shop).switch()
    drop, tries = shop.readmodel.drop, list[Generation]()

    def away_at_first(generation: Generation) -> None:
        tries.append(generation)
        if len(tries) == 1:
            raise ReadModelUnavailable("a test said so")
        drop(generation)

    build, said = rebuilt(shop), list[str]()
    build.say = said.append
    monkeypatch.setattr(shop.readmodel, "drop", away_at_first)
    build.switch()
    assert [each.number for each in tries] == [1, 1]
    assert said == ["Waiting: a test said so"]
    assert shop.readmodel.generations("users").serving == 3


def test_a_stream_that_new_code_cannot_fold_is_parked_there_alone(
    shop: FakeShop,
) -> None:
    def refuse(document: Document, event: object) -> Document:
        raise ValueError("no")

    broken = replace(USERS, steps={**USERS.steps, "USER_NAME_CHANGED": refuse})
    build = rebuilt(shop, broken)
    parity = build.compare()
    assert (parity.parked, parity.newly_parked) == (0, 5)
    assert not parity.agrees
    assert not shop.readmodel.parked("users")
    build.discard()
    assert not shop.readmodel.parked("users.2")


def test_a_stream_that_is_parked_in_both_is_left_out_of_the_comparison(shop: FakeShop) -> None:
    stream = sorted(documents(shop))[0]
    unknown = NewEvent(uuid4(), "USER_MARRIED", 1, {})
    shop.user_store.append(Stream("user", UUID(stream)), 2, [unknown], {})
    shop.sweep()
    assert stream in shop.readmodel.parked("users")
    parity = rebuilt(shop).compare()
    assert (parity.parked, parity.newly_parked) == (1, 0)
    assert parity.ids["parked"] == [stream]
    assert parity.agrees


def test_a_skipped_event_is_skipped_by_projector_rebuild_query_and_verify(
    shop: FakeShop,
) -> None:
    stream = sorted(documents(shop))[0]
    event = shop.user_store.read_stream(Stream("user", UUID(stream)))[1]
    shop.readmodel.skip(
        Skip("users", stream, 2, str(event.event_id), "Ada", "it was a mistake", NOW)
    )
    build = rebuilt(shop)
    assert documents(shop, 2)[stream]["name"].startswith("Ada")
    assert documents(shop, 2)[stream]["version"] == 2
    assert build.compare().ids["different"] == [stream]
    build.switch()
    assert verified(shop, number=2).wrong == ()


def test_a_document_whose_first_event_is_skipped_is_not_shown_and_goes_on(shop: FakeShop) -> None:
    user_id = shop.post(shop.users, "/users", {"name": "A", "email": "a@example.com"})["userId"]
    event = shop.user_store.read_stream(Stream("user", UUID(user_id)))[0]
    shop.readmodel.skip(Skip("users", user_id, 1, str(event.event_id), "Ada", "why", NOW))
    shop.sweep()
    removed = {"_id": user_id, "version": 1, "eventId": str(event.event_id), "removed": True}
    assert documents(shop)[user_id] == removed
    answer = shop.users.get(f"/users/{user_id}")
    assert answer.status_code == 404
    assert "skipped" in answer.get_json()["detail"]


def test_one_stream_is_folded_again_in_place(shop: FakeShop) -> None:
    stream = spoil(shop)
    generation = generation_of(USERS)

    def fold() -> bool:
        return rebuild_stream(USERS, shop.readmodel, feed(shop), generation, stream)

    assert fold() is True
    assert documents(shop)[stream]["name"].startswith("Eve")
    assert fold() is False
    documents(shop)[stream]["version"] = 9  # ahead of the log
    assert fold() is True
    assert documents(shop)[stream]["version"] == 2
    with pytest.raises(NotFound):
        rebuild_stream(USERS, shop.readmodel, feed(shop), generation, str(UUID(int=7)))


def test_a_stream_that_cannot_be_folded_is_refused_and_its_document_stays(shop: FakeShop) -> None:
    stream = sorted(documents(shop))[0]
    before = documents(shop)[stream]
    stranger = replace(USERS, steps={})
    with pytest.raises(Refused, match="cannot be folded"):
        rebuild_stream(stranger, shop.readmodel, feed(shop), generation_of(USERS), stream)
    assert documents(shop)[stream] == before


@pytest.mark.parametrize("sample", [None, 50])
def test_verification_of_what_is_right_finds_nothing(shop: FakeShop, sample: int | None) -> None:
    found = verified(shop, sample)
    assert found.wrong == ()
    assert found.checked == 5
    [(_, _, log)] = found.parts
    assert log.settled == 10


@pytest.mark.parametrize("sample", [None, 50])
def test_verification_finds_what_is_altered_behind_ahead_and_missing(
    shop: FakeShop, sample: int | None
) -> None:
    altered, behind, ahead, missing, _ = sorted(documents(shop))
    documents(shop)[altered]["email"] = "mallory@example.com"
    documents(shop)[behind]["version"] = 1
    documents(shop)[ahead]["version"] = 3
    del documents(shop)[missing]
    found = {each.stream: each.what for each in verified(shop, sample).wrong}
    assert found[altered] == "the document differs from the log in email"
    assert found[behind] == "the document is at version 1 of 2"
    assert "ahead of the log's 2" in found[ahead]
    assert found[missing] == "the document is at version 0 of 2"
    assert len(found) == 4


def test_verifying_everything_finds_a_document_without_a_stream(
    shop: FakeShop,
) -> None:
    stranger = str(UUID(int=7))
    shop.readmodel.write("users", [Write({"_id": stranger, "version": 1}, 0)])
    [found] = verified(shop).wrong
    assert (found.stream, "no stream" in found.what) == (stranger, True)


def test_a_checkpoint_that_moves_on_during_a_verification_is_not_wrong(shop: FakeShop) -> None:
    class Overloaded(StoreFeed):
        """A log that goes on, with its projection, as soon as it is asked how far it goes."""

        def progress(self) -> Progress:
            told = super().progress()
            shop.create_user()
            shop.sweep(["users"])
            return told

    busy = Overloaded(shop.user_store, "user")
    generation = generation_of(USERS)
    verifier = Verifier(USERS, shop.readmodel, busy, generation, lambda _: None)
    assert verifier.run(None, Random(1)).wrong == ()


def test_verification_waits_for_late_events_and_for_nothing_else(
    shop: FakeShop,
) -> None:
    """However much is lost, it is told soon."""
    generation = generation_of(USERS)
    del documents(shop)[sorted(documents(shop))[0]]
    waits: list[float] = []
    verifier = Verifier(USERS, shop.readmodel, feed(shop), generation, waits.append)
    assert len(verifier.run(None, Random(1)).wrong) == 1
    assert len(waits) == 1

    user = {"name": "Eve", "email": "eve@example.com"}
    late = shop.post(shop.users, "/users", user)["userId"]  # no projector has come to it yet
    assert late in {each.stream for each in verifier.run(None, Random(1)).wrong}
    assert len(waits) == 1 + 9

    def arrive(_: float) -> None:
        waits.append(0)
        if len(waits) == 13:
            shop.sweep(["users"])

    verifier = Verifier(USERS, shop.readmodel, feed(shop), generation, arrive)
    assert late not in {each.stream for each in verifier.run(None, Random(1)).wrong}
    assert len(waits) == 13


def test_verification_finds_a_gap_in_the_log_itself(shop: FakeShop) -> None:
    stream = sorted(documents(shop))[0]
    shop.user_store.log = [
        replace(event, version=3) if str(event.aggregate_id) == stream and event.version == 2
        else event
        for event in shop.user_store.log
    ]  # fmt: skip
    assert (stream, "the log has a gap in its versions") in {
        (each.stream, each.what) for each in verified(shop).wrong
    }


def test_a_parked_stream_is_not_wrong(shop: FakeShop) -> None:
    stream = sorted(documents(shop))[0]
    documents(shop)[stream] = (
        USERS.fold(shop.user_store.read_stream(Stream("user", UUID(stream)))[:1]) or {}
    )
    shop.readmodel.park([Parked("users", stream, 2, 2, "why", NOW)])
    assert verified(shop).wrong == ()


# ── a log that was restored ───────────────────────────────────────────────────────────────


def restored(shop: FakeShop, keep: int) -> None:
    """An older state of the log, that goes on differently."""
    shop.user_store.log = shop.user_store.log[:keep]
    shop.user_store.checkpoints["relay"] = shop.user_store.log[-1].mark
    shop.user_store.epoch = "the second"


def test_a_rebuild_makes_a_halted_projection_go_on(shop: FakeShop) -> None:
    restored(shop, keep=8)
    shop.sweep(["users"])
    build = rebuilt(shop)
    assert build.compare().missing == 1  # the user that the log has no more
    build.switch()
    shop.sweep(["users"])
    new = shop.create_user("New")
    assert documents(shop, 2)[new]["name"] == "New"
    assert verified(shop, number=2).wrong == ()
    checkpoint = shop.readmodel.checkpoint("users.2")
    assert (checkpoint.store_epoch, checkpoint.halted) == ("the second", "")


@pytest.fixture
def tool(shop: FakeShop, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """The command `rebuild users`, with more options, on the shop's fakes."""

    def opened(*_: object) -> list[EventApplier]:
        return [EventApplier(USERS, shop.readmodel, feed(shop))]

    monkeypatch.setattr("eventcore.operate.rebuild.open_appliers", opened)
    monkeypatch.setattr("eventcore.operate.rebuild.time.sleep", lambda _: None)
    return lambda *options: CliRunner().invoke(rebuild.rebuild, ["users", "--json", *options])


def test_a_halted_projection_is_rebuilt_by_the_command_that_its_halt_names(
    shop: FakeShop, tool: Callable[..., Result]
) -> None:
    restored(shop, keep=8)
    shop.sweep(["users"])
    halted = shop.readmodel.checkpoint("users").halted
    assert "rebuild users" in halted
    said = tool("--yes")
    assert said.exit_code == 0, said.output
    assert "not compared: users is halted" in said.output
    assert '{"serves": "users.2"}' in said.output
    shop.sweep(["users"])
    assert verified(shop, number=2).wrong == ()


def test_yes_means_yes_where_documents_differ(shop: FakeShop, tool: Callable[..., Result]) -> None:
    spoil(shop)
    refused = tool()
    assert isinstance(refused.exception, Refused)
    assert shop.readmodel.generations("users").serving == 1
    said = tool("--yes")
    assert said.exit_code == 0, said.output
    assert '"different": 1' in said.output
    assert shop.readmodel.generations("users").serving == 3


def test_a_comparison_holds_few_ids_even_where_all_differ(
    shop: FakeShop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("eventcore.operate.parity.SCANNED", 2)
    for document in documents(shop).values():
        document["name"] = "Mallory"
    build = rebuilt(shop)
    held: list[int] = []
    look_again = Comparison._compare_again

    def noted(comparison: Comparison, unsure: list[str], parity: Parity) -> None:
        held.append(len(unsure))
        look_again(comparison, unsure, parity)

    monkeypatch.setattr(Comparison, "_compare_again", noted)
    parity = build.compare()
    assert parity.different == 5
    assert max(held) == 2


def test_a_comparison_waits_for_seconds_however_many_documents_are_missing(
    shop: FakeShop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("eventcore.operate.parity.SCANNED", 1)
    documents(shop).clear()
    build, waits = rebuilt(shop), list[float]()
    build.wait = waits.append
    assert build.compare().added == 5
    assert sum(waits) == pytest.approx(4)
