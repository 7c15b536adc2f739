"""A rolling upgrade loses nothing in either order, a service says who is behind, and the events are
described.
"""

import json
import logging
from dataclasses import dataclass, replace
from threading import Event as Stop
from typing import ClassVar
from uuid import UUID, uuid4

import pytest
from flask.testing import FlaskClient

from eventcore.broker.port import Queue
from eventcore.model.catalogue import Catalogue
from eventcore.model.decider import Decider
from eventcore.model.event import Data, Event, to_message
from eventcore.model.projection import Document, Projection
from eventcore.model.view import On, View
from eventcore.project.projector import Projector
from eventcore.relay import Forwarder
from eventcore.settings import Secret
from eventcore.store.feed import ANNOUNCEMENT, StoreFeed
from eventcore.store.port import Stream
from eventcore.web import asyncapi
from eventcore.web.app import create_app
from eventcore.web.consumers import RUNNING, Consumers
from eventcore.web.internal import feed_routes
from gateway.api import Description, merged_events
from gateway.forward import Answer, Upstream
from local.services import SERVICES
from order.projections import known_users
from tests.fakes.broker import FakeBroker
from tests.fakes.readmodel import FakeReadModel
from tests.fakes.shop import TOKEN, projector
from tests.fakes.store import FakeStore
from tests.flow.test_metrics import value


@dataclass(frozen=True)
class ParcelSent:
    """A parcel is on its way, as the release before says it."""

    to: str


@dataclass(frozen=True)
class ParcelLost:
    """Nobody knows where the parcel is."""


OLD = Catalogue("parcel", ParcelSent)
OldSent = ParcelSent


def _split(data: Data) -> Data:
    name, city = str(data["to"]).split(", ")
    return {"name": name, "city": city}


def _new_catalogue() -> Catalogue:
    @dataclass(frozen=True)
    class ParcelSent:
        """A parcel is on its way."""

        schema_version: ClassVar[int] = 2
        name: str
        city: str

    return Catalogue("parcel", ParcelSent | ParcelLost, {("PARCEL_SENT", 1): _split})


NEW = _new_catalogue()
NewSent = NEW.types["PARCEL_SENT"]

OLD_PARCELS = Projection(
    name="parcels",
    catalogue=OLD,
    queue="parcels",
    collection="parcels",
    log_message="Parcels updated",
    steps={"PARCEL_SENT": lambda _, event: {"label": event.data["to"]}},
)


def _label(_: Document, event: Event) -> Document:
    return {"label": f"{event.data['name']}, {event.data['city']}"}


NEW_PARCELS = replace(
    OLD_PARCELS,
    catalogue=NEW,
    steps={"PARCEL_SENT": _label, "PARCEL_LOST": lambda *_: {"label": "lost"}},
)


class Post:
    """The parcel service's store and read model, which outlive its releases."""

    def __init__(self) -> None:
        self.store, self.readmodel, self.broker = FakeStore(), FakeReadModel(), FakeBroker()

    def append(self, event: object, stream: str = "", after: int = 0) -> str:
        """Appends as the release of the event's class does, and relays."""
        stream = stream or str(uuid4())
        new = DECIDERS[type(event)].to_new_event(event, uuid4())
        self.store.append(Stream("parcel", UUID(stream)), after, [new], {})
        pump = Forwarder(
            "fake", self.store, self.broker.publisher([Queue("parcels", "parcel.#")], 500)
        )
        while pump.turn():
            continue
        return stream

    def deployed(self, projection: Projection) -> Projector:
        return projector(projection, self.readmodel, self.store, self.broker)

    def labels(self) -> dict[str, object]:
        documents = self.readmodel.collections["parcels"]
        return {stream: each["label"] for stream, each in documents.items()}


def decider(catalogue: Catalogue) -> Decider[None, str, object]:
    return Decider(catalogue, "", lambda *_: [], lambda _, event: repr(event))


DECIDERS = {OldSent: decider(OLD), NewSent: decider(NEW), ParcelLost: decider(NEW)}


@pytest.fixture
def post() -> Post:
    return Post()


def settle(*projectors: Projector) -> None:
    for each in projectors:
        each.consume(Stop(), wait=0)
        each.sweep()
        each.sweep()


def test_the_log_of_the_release_before_is_replayed_by_the_new_code(post: Post) -> None:
    streams = [post.append(OldSent("Ada, Paris")) for _ in range(3)]
    post.append(ParcelLost(), streams[0], after=1)
    settle(post.deployed(NEW_PARCELS))
    assert post.readmodel.parked("parcels") == {}
    assert post.labels() == {
        streams[0]: "lost", streams[1]: "Ada, Paris", streams[2]: "Ada, Paris",
    }  # fmt: skip
    events = post.store.read_stream(Stream("parcel", UUID(streams[1])), 0)
    assert decider(NEW).fold("", events) == repr(NewSent("Ada", "Paris"))


def test_an_older_release_parks_the_unknown_and_the_upgrade_releases_it(
    post: Post,
) -> None:
    before = post.append(OldSent("Ada, Paris"))
    old = post.deployed(OLD_PARCELS)
    settle(old)
    newer = post.append(NewSent("Bob", "Rome"))
    post.append(ParcelLost(), before, after=1)
    known = post.append(OldSent("Eve, Oslo"))
    settle(old)
    assert set(post.readmodel.parked("parcels")) == {newer, before}
    assert {**post.labels()} == {before: "Ada, Paris", known: "Eve, Oslo"}
    old.disconnect()
    old.sweeping.release()
    settle(post.deployed(NEW_PARCELS))
    assert post.readmodel.parked("parcels") == {}
    assert post.labels() == {before: "lost", newer: "Bob, Rome", known: "Eve, Oslo"}


class _Clock:
    """A clock that a test sets."""

    seconds = 0.0

    def monotonic(self) -> float:
        return self.seconds


BEHIND = "projection_event_types_behind"


def feed_of(consumers: Consumers) -> FlaskClient:
    app = create_app("parcel", (), missing=dict, is_ready=lambda: True)
    feed = StoreFeed(FakeStore(), "parcel")
    app.register_blueprint(feed_routes([feed], Secret(TOKEN), consumers.note))
    return app.test_client()


def test_a_service_warns_while_a_running_consumer_knows_a_lower_version(
    caplog: pytest.LogCaptureFixture,
) -> None:
    clock = _Clock()
    consumers = Consumers([NEW], clock)  # type: ignore[arg-type]
    client = feed_of(consumers)

    def call(projection: Projection) -> None:
        headers = {"Authorization": f"Bearer {TOKEN}", ANNOUNCEMENT: projection.announcement}
        assert client.get("/internal/log", headers=headers).status_code == 200

    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            call(OLD_PARCELS)
    [line] = [each for each in caplog.records if each.message == "Consumer behind"]
    said = vars(line)["reason"]
    assert said.startswith("parcels does not know PARCEL_SENT v2, PARCEL_LOST v1.")
    assert "nothing is lost" in said
    assert "Upgrade consumers before producers" in said
    assert value(BEHIND, projection="parcels") == 2
    call(NEW_PARCELS)  # while the other replica still runs
    consumers.update()
    assert value(BEHIND, projection="parcels") == 2
    clock.seconds += RUNNING / 2
    call(NEW_PARCELS)
    clock.seconds += RUNNING / 2 + 1
    consumers.update()
    assert value(BEHIND, projection="parcels") == 0


def test_an_announcement_without_the_token_is_not_taken() -> None:
    noted: list[str] = []
    app = create_app("parcel", (), missing=dict, is_ready=lambda: True)
    app.register_blueprint(
        feed_routes(
            [StoreFeed(FakeStore(), "parcel")], Secret(TOKEN), lambda said, _: noted.append(said)
        )
    )
    answer = app.test_client().get("/internal/log", headers={ANNOUNCEMENT: "parcels; X=1"})
    assert (answer.status_code, noted) == (401, [])


@pytest.mark.parametrize("announced", ["", ";", "a; B", "a; B=x", "x" * 4000, "a; PARCEL_SENT=-1"])
def test_an_empty_announcement_is_a_consumer_that_knows_nothing(announced: str) -> None:
    consumers = Consumers([NEW])
    consumers.note(announced, "parcel")
    consumers.update()
    assert value(BEHIND, projection=announced.partition(";")[0][:100]) == 2


def test_the_consumers_of_this_release_are_not_behind(caplog: pytest.LogCaptureFixture) -> None:
    for service in SERVICES.values():
        for projection in service.projections:
            if isinstance(projection, Projection):
                announced = {projection.aggregate_type: projection.announcement}
            else:
                announced = dict(projection.announcements)
            assert set(announced) == set(projection.stores)
            for store, announcement in announced.items():
                owner = SERVICES[projection.owner_of(store)]
                Consumers(owner.catalogues).note(announcement, store)
    assert "Consumer behind" not in caplog.text
    assert known_users.PROJECTION.announcement == (
        "known-users; USER_CREATED=1; USER_CREDIT_LIMIT_CHANGED=1; USER_EMAIL_CHANGED=*;"
        " USER_NAME_CHANGED=*"
    )


def test_a_view_is_behind_for_the_types_alone_that_it_reads(
    caplog: pytest.LogCaptureFixture,
) -> None:
    on = {"parcel": {"PARCEL_SENT": On(lambda _: (), lambda document, _: document)}}
    view = View("parcel-senders", (OLD,), "queue", "senders", "Senders updated", on)
    announced = view.announcements["parcel"]
    assert announced == "parcel-senders/parcel; *=*; PARCEL_SENT=1"
    consumers = Consumers([NEW])
    with caplog.at_level(logging.WARNING):
        feed_of(consumers).get(
            "/internal/log", headers={"Authorization": f"Bearer {TOKEN}", ANNOUNCEMENT: announced}
        )
    [line] = [each for each in caplog.records if each.message == "Consumer behind"]
    said = vars(line)["reason"]
    assert said.startswith("parcel-senders/parcel does not know PARCEL_SENT v2.")  # not LOST
    assert value(BEHIND, projection="parcel-senders/parcel") == 1


def described(name: str) -> bytes:
    return asyncapi.build(SERVICES[name].title, "1.0", SERVICES[name].catalogues)


def test_every_event_is_described_with_its_key_and_its_message() -> None:
    document = json.loads(described("order"))
    assert document["asyncapi"] == "3.0.0"
    types = {name for each in SERVICES["order"].catalogues for name in each.types}
    assert set(document["channels"]) == types > {"ORDER_PLACED", "SAGA_STARTED"}
    channel = document["channels"]["ORDER_PLACED"]
    assert channel["address"] == "order.placed"
    assert channel["bindings"]["amqp"]["exchange"]["name"] == "events"
    operation = document["operations"]["ORDER_PLACED"]
    assert operation["action"] == "send"
    for reference in (operation["channel"], *operation["messages"], *channel["messages"].values()):
        _, *path = reference["$ref"].split("/")
        found = document
        for each in path:
            found = found[each]
        assert found
    payload = document["components"]["messages"]["ORDER_PLACED"]["payload"]
    store = FakeStore()
    stream = Stream("order", uuid4())
    store.append(stream, 0, [DECIDERS[ParcelLost].to_new_event(ParcelLost(), uuid4())], {})
    assert set(payload["required"]) == set(to_message(store.read_stream(stream, 0)[0]))
    assert payload["properties"]["data"]["properties"]["price"] == {"type": "number"}


def test_the_gateway_describes_the_events_of_all_services() -> None:
    class _Upstream(Upstream):
        def __init__(self, name: str) -> None:
            super().__init__("http://127.0.0.1:1", calls=1)
            self.name = name

        def call(self, method: str, target: str, *_: object, **__: object) -> Answer:
            assert (method, target) == ("GET", "/asyncapi.json")
            return Answer(200, {}, described(self.name))  # type: ignore[arg-type]

    document = Description(
        {name: _Upstream(name) for name in SERVICES}, "/asyncapi.json", merged_events
    )
    client = create_app(
        "Gateway", (), missing=dict, is_ready=lambda: True, document=lambda: b"{}", events=document
    ).test_client()
    answer = client.get("/asyncapi.json")
    merged = answer.get_json()
    types = {
        kind
        for service in SERVICES.values()
        for catalogue in service.catalogues
        for kind in catalogue.types
    }
    assert set(merged["channels"]) == set(merged["operations"]) == types
    assert set(merged["components"]["messages"]) == types
    again = client.get("/asyncapi.json", headers={"If-None-Match": answer.headers["ETag"]})
    assert again.status_code == 304
    assert 'href="asyncapi.json"' in client.get("/docs").text


def test_what_has_no_events_has_no_description_of_them() -> None:
    client = create_app("Gateway", (), missing=dict, is_ready=lambda: True).test_client()
    assert client.get("/asyncapi.json").status_code == 404
    assert "asyncapi" not in client.get("/docs").text


def test_an_announcement_is_compared_with_the_events_of_the_type_that_is_read() -> None:
    catalogues = SERVICES["user"].catalogues
    consumers = Consumers(catalogues)
    consumers.note("claims; EMAIL_CLAIMED=1", "email_claim")  # and no user's event
    consumers.note("claims; EMAIL_CLAIMED=1", "parcel")
    consumers.update()
    assert value(BEHIND, projection="claims") == 1  # EMAIL_RELEASED
