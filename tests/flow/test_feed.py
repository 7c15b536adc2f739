"""The owner's feed as a projector reads it, over HTTP: the same as straight from the store."""

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

    def __init__(self, client: FlaskClient) -> None:
        super().__init__("", Secret(TOKEN))
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
