"""Reading your own writes: what a client has been answered, it sees in every later answer."""

from base64 import urlsafe_b64encode
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import cycle
from threading import Barrier, Event
from typing import Any
from uuid import uuid4

import pytest
from werkzeug.test import TestResponse

from eventcore.clock import Clock
from eventcore.consistency import LAST, Lag, Waits
from eventcore.errors import InvalidToken
from eventcore.ids import new_id
from eventcore.model.token import SIZE, STREAMS, Token
from eventcore.readmodel.records import Parked
from order.projections import orders
from order.projections.customers import VIEW
from tests.fakes.readmodel import FakeReadModel
from tests.fakes.shop import FakeShop, projector

TOKEN = "Consistency-Token"

PERSON = {"name": "Ada", "email": "ada@example.com"}


@dataclass
class Time:
    """A clock that only a waiting request moves; `passes` is what happens meanwhile."""

    now: float = 0.0
    passes: Callable[[], object] = tuple
    slept: list[float] = field(default_factory=list)

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.slept.append(seconds)
        self.passes()

    @property
    def clock(self) -> Clock:
        return Clock(monotonic=lambda: self.now, sleep=self.sleep)


@pytest.fixture
def time() -> Time:
    return Time()


@pytest.fixture
def shop(time: Time) -> FakeShop:
    return FakeShop(clock=time.clock)


@dataclass
class Caller:
    """A client that passes the newest token on."""

    shop: FakeShop
    token: str = ""

    def call(self, method: str, path: str, **given: Any) -> TestResponse:
        client = self.shop.users if path.startswith("/users") else self.shop.orders
        headers = {**({TOKEN: self.token} if self.token else {}), **given.pop("headers", {})}
        answer = client.open(path, method=method, headers=headers, **given)
        self.token = answer.headers.get(TOKEN, self.token)
        return answer

    def create_user(self) -> str:
        answer = self.call("POST", "/users", json=PERSON)
        assert answer.status_code == 202, answer.text
        return str(answer.get_json()["userId"])

    def order(self, user_id: str, **given: Any) -> TestResponse:
        body = {"userId": user_id, "item": "Laptop", "price": 1}
        return self.call("POST", "/orders", json=body, **given)

    def listed(self, user_id: str, **given: Any) -> tuple[list[str], str]:
        answer = self.call("GET", f"/queries/orders?userId={user_id}", **given)
        assert answer.status_code == 200, answer.text
        ids = [each["orderId"] for each in answer.get_json()["orders"]]
        return ids, answer.headers["Answered-From"]


@pytest.fixture
def caller(shop: FakeShop) -> Caller:
    return Caller(shop)


# ── the token ─────────────────────────────────────────────────────────────────────────────


def test_a_token_is_read_back_as_it_was_written() -> None:
    ids = [str(new_id()) for _ in range(3)]
    token = Token({("order", ids[0]): 7, ("user", ids[1]): 1, ("user", ids[2]): 2},
                  {"user": "an epoch", "order": str(uuid4())}, {"user": 12})  # fmt: skip
    assert Token.parse(str(token)) == token
    assert token.of("user") == {ids[1]: 1, ids[2]: 2}
    assert (token.version("order", ids[0]), token.version("order", ids[1])) == (7, 0)


def test_a_token_names_the_newest_streams_and_stays_small() -> None:
    token = Token()
    ids = [str(new_id()) for _ in range(20)]
    for id in ids:
        token = Token({("user", id): 1}, {"user": str(uuid4())}).over(token)
    kept = Token.parse(str(token))
    assert [id for _, id in kept.streams] == ids[::-1][:STREAMS]
    long = Token({("a" * 63, str(new_id())): 10**18 for _ in range(STREAMS)}, {"a" * 63: "e" * 64})
    assert len(str(long)) <= SIZE
    assert 3 < len(Token.parse(str(long)).streams) < STREAMS


def test_the_greater_version_of_a_stream_counts() -> None:
    id = str(new_id())
    for newer, older in ((1, 2), (2, 1)):
        first, second = (
            Token({("user", id): each}, {}, {"user": each * 10}) for each in (newer, older)
        )
        both = first.over(second)
        assert (both.of("user"), both.positions) == ({id: 2}, {"user": 20})


def encoded(text: bytes) -> str:
    return urlsafe_b64encode(text).decode().rstrip("=")


@pytest.mark.parametrize(
    "garbage",
    [
        "", "x", "!!!!", "é", "A" * (SIZE + 1), encoded(b"\xff\xfe"), encoded(b"user"),
        encoded(b"user/1/1"), encoded(b"user/01890000-0000-7000-8000-000000000000/0"),
        encoded(b"user/01890000-0000-7000-8000-000000000000/1\n"), encoded(b"user@"),
        encoded(b"User@e"), encoded(b"user@e\nuser@e@e"), encoded(b"user#"), encoded(b"user#0"),
    ],
)  # fmt: skip
def test_garbage_is_a_400_and_nothing_is_written(caller: Caller, garbage: str) -> None:
    with pytest.raises(InvalidToken):
        Token.parse(garbage)
    for method, path in (("POST", "/users"), ("GET", "/queries/orders")):
        body = PERSON if method == "POST" else None
        answer = caller.call(method, path, json=body, headers={TOKEN: garbage.encode("latin-1")})
        assert answer.status_code == 400
        assert answer.get_json()["type"] == "urn:problem:invalid-token"
    assert caller.shop.user_store.log == []


# ── commands ──────────────────────────────────────────────────────────────────────────────


def test_the_answer_to_a_command_adds_its_version_to_what_was_seen(caller: Caller) -> None:
    user_id = caller.create_user()
    caller.call("PUT", f"/users/{user_id}", json={"name": "Eve"})
    caller.shop.settle()
    order_id = caller.order(user_id).get_json()["orderId"]
    token = Token.parse(caller.token)
    assert list(token.streams.items()) == [(("order", order_id), 1), (("user", user_id), 2)]
    assert token.epochs == {"user": "the first", "order": "the first"}
    assert token.positions == {"user": 2, "order": 1}


def test_a_command_without_an_event_names_the_version_that_it_saw(caller: Caller) -> None:
    user_id = caller.create_user()
    caller.token = ""
    answer = caller.call("PUT", f"/users/{user_id}", json={"name": PERSON["name"]})
    assert answer.status_code == 200
    token = Token.parse(caller.token)
    assert (token.streams, token.positions) == ({("user", user_id): 1}, {"user": 1})


def test_a_repeated_command_gets_its_token_again_in_todays_epoch(caller: Caller) -> None:
    key = {"Idempotency-Key": "k"}
    first = caller.call("POST", "/users", json=PERSON, headers=key)
    caller.shop.user_store.epoch = "the second"
    caller.shop.epochs["user"].update()
    caller.token = ""
    second = caller.call("POST", "/users", json=PERSON, headers=key)
    assert (second.data, second.headers["Idempotency-Replayed"]) == (first.data, "true")
    token = Token.parse(caller.token)
    assert (token.epochs, token.positions) == ({"user": "the second"}, {"user": 1})


def test_a_repeated_command_is_answered_whatever_its_token_waits_for(caller: Caller) -> None:
    user_id = caller.create_user()
    caller.shop.settle()
    key = {"Idempotency-Key": "k"}
    first = caller.order(user_id, headers=key)
    caller.token = str(Token({("user", user_id): 9}))
    again = caller.order(user_id, headers=key)
    assert (again.status_code, again.data) == (200, first.data)
    assert len(caller.shop.order_store.log) == 1


def test_an_answer_that_an_older_version_recorded_has_no_token(caller: Caller) -> None:
    key = {"Idempotency-Key": "k"}
    caller.call("POST", "/users", json=PERSON, headers=key)
    recorded = caller.shop.user_store.answers
    digest, answer = recorded["k"]
    recorded["k"] = digest, replace(answer, headers={"ETag": answer.headers["ETag"]})
    caller.token = ""
    assert caller.call("POST", "/users", json=PERSON, headers=key).status_code == 202
    assert caller.token == ""


def test_an_old_etag_is_told_the_current_version_and_the_token_to_read_it(caller: Caller) -> None:
    user_id = caller.create_user()
    caller.shop.settle()
    caller.call("PUT", f"/users/{user_id}", json={"name": "Eve"})
    other = Caller(caller.shop)
    seen = other.call("GET", f"/users/{user_id}")  # from the view, which is behind
    assert seen.get_json()["name"] == "Ada"
    old = {"If-Match": seen.headers["ETag"]}
    refused = other.call("PUT", f"/users/{user_id}", json={"name": "Bob"}, headers=old)
    assert refused.status_code == 412
    again = other.call("GET", f"/users/{user_id}")
    assert (again.get_json()["name"], again.headers["Answered-From"]) == ("Eve", "live")
    assert again.headers["ETag"].startswith(refused.headers["ETag"].rstrip('"'))
    new = {"If-Match": refused.headers["ETag"]}
    done = other.call("PUT", f"/users/{user_id}", json={"name": "Bob"}, headers=new)
    assert done.status_code == 200


# ── documents ─────────────────────────────────────────────────────────────────────────────


def test_a_document_that_is_older_than_the_token_is_folded_at_once(
    caller: Caller, time: Time
) -> None:
    user_id = caller.create_user()
    caller.shop.settle()
    fresh = caller.call("GET", f"/users/{user_id}")
    assert fresh.headers["Answered-From"] == "view"
    caller.call("PUT", f"/users/{user_id}", json={"name": "Eve"})
    answer = caller.call("GET", f"/users/{user_id}")
    assert (answer.get_json()["name"], answer.headers["Answered-From"]) == ("Eve", "live")
    assert time.slept == []
    caller.shop.settle()
    assert caller.call("GET", f"/users/{user_id}").headers["Answered-From"] == "view"


def test_without_a_token_the_view_answers_and_says_so(caller: Caller) -> None:
    user_id = caller.create_user()
    caller.shop.settle()
    caller.call("PUT", f"/users/{user_id}", json={"name": "Eve"})
    caller.token = ""
    answer = caller.call("GET", f"/users/{user_id}")
    assert (answer.get_json()["name"], answer.headers["Answered-From"]) == ("Ada", "view")
    past = caller.call("GET", f"/users/{user_id}?version=1")
    history = caller.call("GET", f"/users/{user_id}/events")
    assert [each.headers["Answered-From"] for each in (past, history)] == ["live", "live"]


def test_a_version_that_the_log_does_not_have_is_not_called_a_404(caller: Caller) -> None:
    user_id, nobody = caller.create_user(), str(new_id())
    caller.shop.settle()
    for id in (user_id, nobody):
        caller.token = str(Token({("user", id): 9}))
        answer = caller.call("GET", f"/users/{id}")
        assert (answer.status_code, answer.headers["Retry-After"]) == (503, "2")
    caller.token = ""
    assert caller.call("GET", f"/users/{nobody}").status_code == 404


# ── lists, and commands that need another service's view ──────────────────────────────────


def test_a_list_waits_for_what_was_seen(caller: Caller, time: Time) -> None:
    user_id = caller.create_user()
    caller.shop.settle()
    order_id = caller.order(user_id).get_json()["orderId"]
    time.passes = caller.shop.settle
    assert caller.listed(user_id) == ([order_id], "view")
    assert len(time.slept) == 1
    assert caller.listed(user_id) == ([order_id], "view")
    assert len(time.slept) == 1


def test_a_list_that_has_caught_up_reads_no_checkpoint(
    caller: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    user_id = caller.create_user()
    caller.shop.settle()
    order_id = caller.order(user_id).get_json()["orderId"]
    caller.shop.settle()
    caller.shop.sweep()  # the read model notes the epoch of its log
    assert caller.listed(user_id) == ([order_id], "view")
    monkeypatch.delattr(FakeReadModel, "checkpoint")
    assert caller.listed(user_id) == ([order_id], "view")
    assert caller.call("GET", f"/queries/orders/{order_id}").headers["Answered-From"] == "view"


@pytest.mark.parametrize(
    ("prefer", "waited"),
    [
        ("", 0.03), ("wait=0", 0), ("wait=100", 0.03), ("respond-async, wait=0", 0),
        ('WAIT = "0"', 0), ("wait=soon", 0.03), ("wait=-1", 0.03), ("await=0", 0.03),
    ],
)  # fmt: skip
def test_a_list_waits_as_preferred_or_allowed_then_says_it_is_stale(
    caller: Caller, time: Time, prefer: str, waited: float
) -> None:
    user_id = caller.create_user()
    caller.shop.settle()
    caller.order(user_id)
    found = caller.listed(user_id, headers={"Prefer": prefer} if prefer else {})
    assert found == ([], "stale; reason=behind")
    assert sum(time.slept) == pytest.approx(waited)


def test_an_order_waits_for_the_version_of_its_user_and_else_has_not_run(
    caller: Caller, time: Time
) -> None:
    user_id = caller.create_user()
    refused = caller.order(user_id)
    assert (refused.status_code, refused.headers["Retry-After"]) == (503, "2")
    assert "Nothing was written" in refused.get_json()["detail"]
    assert sum(time.slept) == pytest.approx(0.03)
    assert caller.shop.order_store.log == []
    time.passes = caller.shop.settle
    assert caller.order(user_id).status_code == 200
    caller.call("PUT", f"/users/{user_id}", json={"name": "Eve"})
    time.passes = tuple
    assert caller.order(user_id).status_code == 503
    caller.shop.settle()
    assert caller.order(user_id).status_code == 200


def test_an_order_for_a_user_who_was_seen_is_never_user_unknown(caller: Caller) -> None:
    user_id = caller.create_user()
    caller.shop.readmodel.checkpoints.clear()
    caller.shop.sweep(["known-users"])
    del caller.shop.readmodel.collections["known_users"][user_id]  # as if it was never applied
    assert caller.order(user_id).status_code == 503
    caller.token = ""
    assert caller.order(user_id).get_json()["title"] == "User unknown"


def park(shop: FakeShop, generation: str, stream: str) -> None:
    when = shop.user_store.now
    shop.readmodel.park([Parked(generation, stream, 1, 1, "unknown", when)])


def test_a_parked_stream_is_answered_at_once_with_the_reason(caller: Caller, time: Time) -> None:
    user_id = caller.create_user()
    park(caller.shop, "known-users", user_id)
    refused = caller.order(user_id)
    assert refused.status_code == 503
    assert "could not be applied" in refused.get_json()["detail"]
    other = Caller(caller.shop)
    known = other.create_user()
    caller.shop.settle()
    order_id = other.order(known).get_json()["orderId"]
    park(caller.shop, "orders", order_id)
    assert other.listed(known) == ([], "stale; reason=parked")
    assert time.slept == []


# ── views ─────────────────────────────────────────────────────────────────────────────────


def fold_view(caller: Caller) -> None:
    """The view takes all that is in the logs."""
    while caller.shop.view.sweep():
        continue


def customers(caller: Caller, user_id: str) -> tuple[list[Any], str, int]:
    """One of the list, the source, and the status of the query for that one."""
    listed = caller.call("GET", "/queries/customers")
    assert listed.status_code == 200, listed.text
    found = [each for each in listed.get_json()["customers"] if each["userId"] == user_id]
    alone = caller.call("GET", f"/queries/customers/{user_id}")
    if alone.status_code == 200:
        assert [alone.get_json()] == found
        assert alone.headers["Answered-From"] == listed.headers["Answered-From"]
    shown = [(each["name"], each["orders"]) for each in found]
    return shown, listed.headers["Answered-From"], alone.status_code


def test_a_view_is_waited_for_until_it_has_what_was_seen_in_each_log(
    caller: Caller, time: Time
) -> None:
    user_id = caller.create_user()
    assert customers(caller, user_id) == ([], "stale; reason=behind", 503)
    assert sum(time.slept) == pytest.approx(2 * 0.03)
    time.passes = caller.shop.settle
    assert customers(caller, user_id) == ([("Ada", 0)], "view", 200)
    order_id = caller.order(user_id).get_json()["orderId"]
    time.passes = tuple
    assert customers(caller, user_id) == ([("Ada", 0)], "stale; reason=behind", 200)
    time.passes = lambda: fold_view(caller)
    assert customers(caller, user_id) == ([("Ada", 1)], "view", 200)
    caller.call("PUT", f"/users/{user_id}", json={"name": "Eve"})
    caller.call("POST", f"/orders/{order_id}/cancel")
    assert customers(caller, user_id) == ([("Eve", 1)], "view", 200)


def test_an_event_that_a_view_ignores_is_not_waited_for_for_ever(caller: Caller) -> None:
    user_id = caller.create_user()
    answer = caller.call("PUT", f"/users/{user_id}", json={"email": "eve@example.com"})
    assert answer.status_code == 200
    assert caller.shop.user_store.log[-1].event_type not in VIEW.on["user"]
    fold_view(caller)
    assert customers(caller, user_id) == ([("Ada", 0)], "view", 200)


def test_a_view_that_has_caught_up_costs_a_token_no_request(
    caller: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    user_id = caller.create_user()
    fold_view(caller)
    assert customers(caller, user_id)[1:] == ("view", 200)
    monkeypatch.delattr(FakeReadModel, "checkpoint")
    assert customers(caller, user_id)[1:] == ("view", 200)


def test_a_view_with_a_parked_document_does_not_say_that_it_has_all(
    caller: Caller, time: Time
) -> None:
    user_id = caller.create_user()
    fold_view(caller)
    park(caller.shop, "customers/user", user_id)
    assert customers(caller, user_id) == ([("Ada", 0)], "stale; reason=parked", 200)
    assert time.slept == []


def test_a_view_of_the_log_before_says_so(caller: Caller, time: Time) -> None:
    user_id = caller.create_user()
    caller.call("PUT", f"/users/{user_id}", json={"name": "Eve"})
    fold_view(caller)
    put_back(caller.shop, "user", events=1)
    assert caller.call("GET", f"/users/{user_id}").status_code == 409
    caller.token = ""
    newer = caller.create_user()
    assert customers(caller, newer) == ([], "stale; reason=other-log", 409)
    time.slept.clear()
    fold_view(caller)
    assert customers(caller, newer) == ([], "stale; reason=halted", 503)
    assert time.slept == []


# ── a log that was put back ───────────────────────────────────────────────────────────────


def put_back(shop: FakeShop, name: str, *, events: int) -> None:
    """The first events of a log, in a new epoch, which its service has noticed."""
    store = shop.user_store if name == "user" else shop.order_store
    del store.log[events:]
    store.epoch = str(uuid4())
    shop.epochs[name].update()


def test_a_token_of_another_epoch_is_a_409_and_nothing_is_written(caller: Caller) -> None:
    user_id = caller.create_user()
    put_back(caller.shop, "user", events=1)
    calls = [("GET", f"/users/{user_id}", None), ("PUT", f"/users/{user_id}", {"name": "Eve"}),
             ("POST", "/users", PERSON)]  # fmt: skip
    for method, path, body in calls:
        answer = caller.call(method, path, json=body)
        assert answer.status_code == 409
        assert answer.get_json()["type"] == "urn:problem:other-log"
    assert len(caller.shop.user_store.log) == 1
    caller.token = ""
    assert caller.call("GET", f"/users/{user_id}").status_code == 200


def test_a_service_takes_the_token_of_an_epoch_it_has_not_noticed(
    caller: Caller,
) -> None:
    user_id = caller.create_user()
    caller.shop.user_store.epoch = "the second"
    caller.token = str(Token({("user", user_id): 1}, {"user": "the second"}))
    assert caller.call("GET", f"/users/{user_id}").status_code == 200


def test_a_view_of_the_log_before_is_not_taken_for_the_new_one(caller: Caller, time: Time) -> None:
    user_id = caller.create_user()
    for name in ("Eve", "Bob"):
        caller.call("PUT", f"/users/{user_id}", json={"name": name})
    caller.shop.settle()
    caller.shop.sweep()
    put_back(caller.shop, "user", events=1)
    caller.token = ""
    caller.call("PUT", f"/users/{user_id}", json={"name": "New"})
    answer = caller.call("GET", f"/users/{user_id}")  # the view is at version 3 of the old log
    assert (answer.get_json()["name"], answer.headers["Answered-From"]) == ("New", "live")
    conflict = caller.order(new_user_of(caller))
    assert conflict.status_code == 409  # waited: this view may be the one that is behind
    assert sum(time.slept) == pytest.approx(0.03)
    time.slept.clear()
    caller.shop.sweep(["known-users"])  # it notices, and stands still until it is rebuilt
    refused = caller.order(new_user_of(caller))
    assert refused.status_code == 503
    assert "another log" in refused.get_json()["detail"]
    assert time.slept == []


def new_user_of(caller: Caller) -> str:
    """One whom no view has."""
    return caller.create_user()


def test_while_the_log_is_away_a_token_is_not_refused(caller: Caller) -> None:
    user_id = caller.create_user()
    caller.shop.settle()
    caller.token = str(Token({("user", user_id): 1}, {"user": "another"}))
    caller.shop.user_store.away = True
    assert caller.call("GET", f"/users/{user_id}").status_code == 200


# ── how long, and how many ────────────────────────────────────────────────────────────────


def test_a_flood_of_waiting_calls_leaves_half_of_the_threads_free() -> None:
    threads, waiting, over = 8, Barrier(5), Event()
    most = threads // 2

    def sleep(_: float) -> None:
        waiting.wait(10)
        over.wait(10)

    waits = Waits(1e9, most, Clock(sleep=sleep))
    answers = iter([Lag.BEHIND] * most)

    def wait() -> Lag:
        return waits.until_seen(lambda: next(answers, Lag.NONE))

    with ThreadPoolExecutor(threads) as pool:
        held = [pool.submit(wait) for _ in range(most)]
        waiting.wait(10)  # all of them have a place
        flood = [pool.submit(lambda: waits.until_seen(lambda: Lag.BEHIND)) for _ in range(1000)]
        assert {each.result(10) for each in flood} == {Lag.BUSY}
        over.set()
        assert {each.result(10) for each in held} == {Lag.NONE}
    with waits.place() as taken:
        assert taken


def test_a_busy_service_answers_as_after_a_wait(caller: Caller, shop: FakeShop) -> None:
    user_id = caller.create_user()
    shop.settle()
    caller.order(user_id)
    with shop.waits.place(), shop.waits.place():
        assert caller.listed(user_id) == ([], "stale; reason=busy")
        other = Caller(shop)
        refused = other.order(other.create_user())
        assert (refused.status_code, refused.headers["Retry-After"]) == (503, "1")
        assert refused.get_json()["type"] == "urn:problem:busy"


def test_a_wait_backs_off_and_ends_at_its_limit() -> None:
    time = Time()
    assert Waits(2.0, 1, time.clock).until_seen(lambda: Lag.BEHIND) is Lag.BEHIND
    assert sum(time.slept) == pytest.approx(2.0)
    assert time.slept[:4] == [0.01, 0.02, 0.04, 0.08]
    assert max(time.slept) <= LAST
    assert len(time.slept) < 30


# ── a thousand times ──────────────────────────────────────────────────────────────────────


def test_a_thousand_clients_see_what_they_did_whatever_the_projectors_do(
    time: Time,
) -> None:
    """While they run, stand still, are bypassed by the relay, sweep; and when a log is put back."""
    counts: Counter[str] = Counter()
    for _ in range(40):  # short logs: one in memory is read from its beginning
        shop = FakeShop(clock=time.clock)
        moods: Iterator[Callable[[], object]] = cycle(
            [shop.settle, tuple, shop.relay, shop.sweep, shop.sweep]
        )
        for number in range(25):
            time.passes = next(moods)
            caller = Caller(shop)
            user_id = caller.create_user()
            assert caller.call("GET", f"/users/{user_id}").status_code == 200
            order_id = place(caller, user_id, time, counts)
            if number == 24:
                lose_newest_order(caller)
                order_id = place(caller, user_id, time, counts)
                counts["put back"] += 1
            time.passes, began = next(moods), time.now
            found, source = caller.listed(user_id)
            assert time.now - began <= 0.03 + 1e-9
            assert (found, source) in [([order_id], "view"), ([], "stale; reason=behind")]
            counts[source] += 1
    assert counts["placed"] == 1000 + counts["put back"] == 1040
    assert counts["view"] + counts["stale; reason=behind"] == 1000
    assert min(counts["view"], counts["stale; reason=behind"], counts["refused"]) >= 100


def place(caller: Caller, user_id: str, time: Time, counts: Counter[str]) -> str:
    """An order's id; a client that is told to try again finds a projector that runs by then."""
    answer = caller.order(user_id)
    if answer.status_code == 503:
        assert answer.get_json()["type"] == "urn:problem:not-yet"
        counts["refused"] += 1
        time.passes = caller.shop.settle
        answer = caller.order(user_id)
    assert answer.status_code == 200, answer.text
    counts["placed"] += 1
    return str(answer.get_json()["orderId"])


def lose_newest_order(caller: Caller) -> None:
    """The log of orders is put back to before it, and its read model is made anew."""
    shop = caller.shop
    put_back(shop, "order", events=len(shop.order_store.log) - 1)
    assert caller.call("GET", "/queries/orders").status_code == 409
    caller.token = ""
    shop.order_store.checkpoints.clear()
    shop.broker.purge(orders.PROJECTION.queue)
    shop.readmodel.collections.pop(orders.PROJECTION.collection, None)
    shop.readmodel.checkpoints.pop(orders.PROJECTION.name, None)
    shop.projectors["orders"] = projector(
        orders.PROJECTION, shop.readmodel, shop.order_store, shop.broker
    )
