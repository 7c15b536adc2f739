"""The checker itself: what is lost, doubled, out of order or diverged must be seen, each alone."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from uuid import UUID, uuid4

import pytest

from eventcore.model.event import Event
from eventcore.model.projection import Document
from eventcore.settings import SOCKET_THREADS
from tests.chaos.checker import (
    Finding,
    Recovery,
    Resources,
    at_baseline,
    bounded,
    contiguous,
    folded,
    goes_on,
    in_order,
    once,
    recovered,
)
from tests.chaos.journal import Entry, Try
from user.projections.users import PROJECTION

USER = uuid4()


def event(version: int, command: str, name: str = "Ada", position: int = 0) -> Event:
    kind = "USER_CREATED" if version == 1 else "USER_NAME_CHANGED"
    data = {"name": name, "email": "ada@example.com"} if version == 1 else {"name": name}
    place = position or version, uuid4(), "user", USER, version, kind, 1
    return Event(*place, data, {"causationId": command}, datetime.now(UTC))


def entry(command: str, *statuses: int, name: str = "Ada", events: int = 1) -> Entry:
    tries = [Try(float(at), 0.01, status, status == 503) for at, status in enumerate(statuses)]
    return Entry(command, "rename", str(USER), {"name": name}, events, tries)


LOG = [event(1, "a"), event(2, "b", "Eve")]
JOURNAL = [entry("a", 202), entry("b", 200, name="Eve")]
DOCUMENT: Document = {
    "_id": str(USER), "version": 2, "name": "Eve", "email": "ada@example.com",
    "eventId": str(LOG[1].event_id),
}  # fmt: skip


def kinds(*findings: Finding) -> set[str]:
    """The kinds of violations, such as "A lost"."""
    return {text.split(":")[0] for finding in findings for text in finding.wrong}


def test_what_was_acknowledged_and_is_there_once_is_right() -> None:
    a, b = once(JOURNAL, LOG)
    assert (a.wrong, b.wrong) == ([], [])
    assert a.counts["acknowledged"] == 2


def test_an_acknowledged_command_that_is_not_in_the_log_is_lost() -> None:
    assert kinds(*once(JOURNAL, LOG[:1])) == {"A lost"}


def test_a_command_that_is_in_the_log_twice_is_duplicated() -> None:
    assert kinds(*once(JOURNAL, [*LOG, event(3, "b", "Eve")])) == {"A duplicated"}


def test_two_streams_made_by_one_command_are_duplicated() -> None:
    other = replace(event(1, "a"), aggregate_id=uuid4())
    assert kinds(*once([entry("a", 0, events=2)], [LOG[0], other])) == {"B duplicated"}


def test_a_command_with_only_some_of_its_events_is_torn() -> None:
    assert kinds(*once([entry("a", 0, events=2)], LOG[:1])) == {"B torn"}


def test_a_refused_command_and_one_that_nobody_asked_are_unexpected() -> None:
    assert kinds(*once([entry("a", 409)], LOG)) == {"B unexpected"}
    assert len(once([entry("a", 409)], LOG)[1].wrong) == 2


def test_an_unknown_answer_is_counted_whether_the_log_has_it_or_not() -> None:
    _, b = once([entry("a", 504), entry("b", 0), entry("c", 503)], LOG[:1])
    assert b.wrong == []
    assert (b.counts["unknown"], b.counts["recovered"]) == (3, 1)


def test_a_refusal_after_an_unknown_answer_is_not_certain() -> None:
    assert entry("a", 504, 409).outcome == "unknown"
    assert entry("a", 504, 200).outcome == "ok"
    assert entry("a", 409).outcome == "refused"


def test_other_words_in_the_log_than_were_asked_are_altered() -> None:
    assert kinds(*once([entry("a", 200, name="Bob")], LOG[:1])) == {"A altered"}


def test_a_key_that_is_answered_differently_the_second_time_is_duplicated() -> None:
    twice = replace(JOURNAL[0], replays=["{'userId': 1} is not {'userId': 2}"])
    assert kinds(*once([twice, JOURNAL[1]], LOG)) == {"A duplicated"}


HEAD = {f"user {USER}": 2}


@pytest.mark.parametrize(
    ("log", "heads"),
    [
        ([LOG[0], event(3, "c")], HEAD),
        ([*LOG, event(2, "c", position=3)], HEAD),
        ([event(2, "b", position=1), event(1, "a", position=2)], HEAD),
        (LOG, {f"user {USER}": 3}),
        ([], HEAD),
    ],
    ids=["gap", "double", "order of positions", "another head", "no events"],
)
def test_versions_with_a_gap_a_double_or_another_head_are_broken(
    log: Sequence[Event], heads: dict[str, int]
) -> None:
    assert contiguous(LOG, HEAD).wrong == []
    assert kinds(contiguous(log, heads)) == {"C broken"}


def test_a_first_delivery_after_a_later_one_is_out_of_order() -> None:
    assert in_order({"user 1": [1, 2, 4]}).wrong == []
    assert kinds(in_order({"user 1": [1, 3, 2]})) == {"D out of order"}


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        (lambda d: {**d, "name": "Bob"}, "diverged"),
        (lambda d: {**d, "version": 1}, "diverged"),
        (lambda d: {k: v for k, v in d.items() if k != "email"}, "diverged"),
        (lambda d: {**d, "more": 1}, "diverged"),
    ],
)
def test_a_document_that_differs_in_any_field_has_diverged(
    change: Callable[[Document], Document], kind: str
) -> None:
    right = folded(PROJECTION, LOG, {str(USER): DOCUMENT}, {})
    assert (right.wrong, right.counts["documents"]) == ([], 1)
    wrong = folded(PROJECTION, LOG, {str(USER): change(DOCUMENT)}, {})
    assert kinds(wrong) == {f"E {kind}"}


def test_a_document_too_few_or_too_many_and_a_parked_stream_are_seen() -> None:
    other = str(uuid4())
    both = {str(USER): DOCUMENT, other: DOCUMENT}
    assert kinds(folded(PROJECTION, LOG, {}, {})) == {"E missing"}
    assert kinds(folded(PROJECTION, LOG, both, {})) == {"E extra"}
    assert kinds(folded(PROJECTION, LOG, {str(USER): DOCUMENT}, {}, [str(USER)])) == {"E parked"}


def test_a_group_that_is_not_concerned_must_have_good_answers_meanwhile() -> None:
    good = [entry(str(n), *[200] * 10) for n in range(3)]
    bad = [entry(str(n), *[503] * 10) for n in range(3)]
    assert goes_on(good, 0, 10, ["user commands"]).wrong == []
    assert goes_on(bad, 0, 10, ["order commands"]).wrong == []
    assert kinds(goes_on(bad, 0, 10, ["user commands"])) == {"F stopped"}
    assert kinds(goes_on([*good, bad[0]], 0, 10, ["user commands"])) == {"F stopped"}


@pytest.mark.parametrize(
    ("tried", "kind"),
    [
        (Try(0, 0.1, 404, False), "false 404"),
        (Try(0, 0.1, 422, False), "false 404"),
        (Try(0, 0.1, 503, False), "wrong"),
        (Try(0, 0.1, 500, False), "wrong"),
        (Try(0, 0.1, 0, False), "wrong"),
        (Try(0, 2.1, 503, True), "late"),
    ],
)
def test_a_wrong_or_late_answer_is_seen(tried: Try, kind: str) -> None:
    def asked(*tries: Try) -> list[Entry]:
        return [Entry("a", "read user", str(USER), {}, 0, list(tries))]

    right = asked(Try(0, 0.1, 200, False), Try(0, 0.1, 503, True), Try(0, 0.1, 504, False))
    assert bounded(right, 2, no_answer=False, failures=True).wrong == []
    assert kinds(bounded(asked(tried), 2, no_answer=False, failures=True)) == {f"G {kind}"}


def test_where_no_request_may_fail_any_failure_is_seen() -> None:
    busy = [Entry("a", "read user", str(USER), {}, 0, [Try(0, 0.1, 503, True)])]
    assert kinds(bounded(busy, 2, no_answer=False, failures=False)) == {"G wrong"}


def test_a_recovery_that_is_late_or_does_not_come_is_seen() -> None:
    assert recovered([Recovery(0.1, 1.0)], 2, 5).wrong == []
    for time in (Recovery(2.1, 3.0), Recovery(0.1, 5.1), Recovery(0.1, None), Recovery(None, None)):
        assert kinds(recovered([time], 2, 5)) == {"H late"}


def test_whatever_is_held_in_the_end_and_was_not_before_has_leaked() -> None:
    threads = {"relay": 5, "gateway": 9}
    before = Resources({"relay": 90}, {"relay": 20}, threads, {"u": 3}, 2, 0, 0)
    assert at_baseline(before, before).wrong == []
    for after in (
        replace(before, memory={"relay": 190}),
        replace(before, descriptors={"relay": 90}),
        replace(before, threads={"relay": 40}),
        replace(before, threads={"gateway": SOCKET_THREADS + 20}),
        replace(before, sessions={"u": 40}),
        replace(before, locks=3),
        replace(before, stuck=1),
        replace(before, queued=1),
    ):
        assert kinds(at_baseline(before, after)) == {"I leaked"}
    full_pool = replace(before, threads={"gateway": SOCKET_THREADS + 10})
    assert at_baseline(before, full_pool).wrong == []


def test_an_id_is_compared_as_it_was_answered() -> None:
    elsewhere = replace(LOG[0], aggregate_id=UUID(int=1))
    assert kinds(*once([entry("a", 200)], [elsewhere])) == {"A altered"}
