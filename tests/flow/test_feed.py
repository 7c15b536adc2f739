"""The owner's feed as a projector reads it, over HTTP: the same as straight from the store."""

from functools import partial
from typing import Any
from uuid import UUID, uuid4

import pytest
from flask.testing import FlaskClient

from eventcore import jsontext
from eventcore.errors import FeedUnavailable
from eventcore.model.event import NewEvent
from eventcore.settings import Secret
from eventcore.store.feed import MANY, read_whole_streams
from eventcore.store.http_feed import HttpFeed
from eventcore.store.port import PAGE, Stream
from tests.fakes.shop import TOKEN, FakeShop


class Feed(HttpFeed):
    """One that asks without a socket."""

    def __init__(self, client: FlaskClient, aggregate_type: str = "") -> None:
        super().__init__("", Secret(TOKEN), aggregate_type=aggregate_type)
        self._client = client
        self.asked = 0

    def _get(self, what: str, **query: str | int) -> Any:
        self.asked += 1
        headers = {"Authorization": f"Bearer {TOKEN}"}
        answer = self._client.get(f"/internal/{what}", query_string=query, headers=headers)
        if answer.status_code != 200:
            raise FeedUnavailable(answer.text)
        return jsontext.parse(answer.data)


@pytest.fixture
def shop() -> FakeShop:
    return FakeShop()


def lengthen(shop: FakeShop, user_id: str, count: int) -> None:
    """Append so many events to a user's stream."""
    stream = Stream("user", UUID(user_id))
    for version in range(1, count + 1):
        renamed = NewEvent(uuid4(), "USER_NAME_CHANGED", 1, {"name": f"Ada {version}"})
        shop.user_store.append(stream, version, [renamed], {})


def test_many_streams_come_whole_whatever_their_length(shop: FakeShop) -> None:
    lengths = [0, PAGE - 1, PAGE, 2 * PAGE + 1, 3]
    users = [shop.create_user() for _ in lengths]
    for user_id, length in zip(users, lengths, strict=True):
        lengthen(shop, user_id, length)
    nobody = str(uuid4())
    feed = Feed(shop.users)
    found = read_whole_streams(feed, [*users, nobody])
    assert [len(found[user_id]) for user_id in users] == [length + 1 for length in lengths]
    assert found[nobody] == []
    assert {each: feed.stream(each, 0) for each in found} == found


def test_short_streams_cost_one_question(shop: FakeShop) -> None:
    feed = Feed(shop.users)
    users = [shop.create_user() for _ in range(MANY)]
    assert list(feed.streams(dict.fromkeys(users, 0))) == users
    assert feed.asked == 1


def test_streams_come_from_the_version_that_is_asked_for(shop: FakeShop) -> None:
    ada, bob = shop.create_user(), shop.create_user()
    lengthen(shop, ada, 3)
    found = Feed(shop.users).streams({ada: 2, bob: 1})
    assert [event.version for event in found[ada]] == [3, 4]
    assert found[bob] == []


def test_more_than_many_are_refused(shop: FakeShop) -> None:
    with pytest.raises(FeedUnavailable, match=str(MANY)):
        Feed(shop.users).streams({str(uuid4()): 0 for _ in range(MANY + 1)})


def test_what_is_read_of_heads_is_what_was_said(shop: FakeShop) -> None:
    user_id = shop.create_user()
    page = Feed(shop.users).heads(0, 1)
    assert page.heads == {user_id: 1}
    assert (page.end.position, page.settled.position, page.head) == (1, 1, 1)
    assert page.at


def claim(shop: FakeShop, user_id: str) -> Stream:
    """Claims an address in the store of users, in a stream of another aggregate type."""
    stream = Stream("email_claim", uuid4())
    claimed = NewEvent(uuid4(), "EMAIL_CLAIMED", 1, {"userId": user_id})
    shop.user_store.append(stream, 0, [claimed], {})
    return stream


def test_each_aggregate_type_of_a_store_has_a_feed_of_its_own(shop: FakeShop) -> None:
    user_id = shop.create_user()
    claimed = str(claim(shop, user_id).aggregate_id)
    users, claims = Feed(shop.users), Feed(shop.users, "email_claim")
    assert users.heads(0, 9).heads == {user_id: 1}
    assert claims.heads(0, 9).heads == {claimed: 1}
    assert [event.aggregate_type for event in claims.between(0, 9)] == ["email_claim"]
    assert [event.version for event in claims.stream(claimed, 0)] == [1]
    assert claims.streams({claimed: 0, user_id: 0})[user_id] == []
    assert (users.aggregate_type(), claims.aggregate_type()) == ("user", "email_claim")
    assert claims.progress() == users.progress()
    assert claims.progress().relayed == 1  # the relay of the store, whatever the type


def test_a_type_that_the_service_does_not_have_is_a_404_with_the_reason(shop: FakeShop) -> None:
    feed, stream = Feed(shop.users, "parcel"), str(uuid4())
    with pytest.raises(FeedUnavailable, match="no streams of type 'parcel', only of user"):
        feed.heads(0, 1)
    for call in (
        partial(feed.between, 0, 1),
        partial(feed.stream, stream, 0),
        partial(feed.streams, {stream: 0}),
        feed.progress,
    ):
        with pytest.raises(FeedUnavailable, match="no streams of type"):
            call()
    headers = {"Authorization": f"Bearer {TOKEN}"}
    answer = shop.users.get("/internal/log", query_string={"type": "parcel"}, headers=headers)
    assert answer.status_code == 404
