"""The whole shop in one process, on fakes: services, relays and projectors, one step at a time."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from threading import Event as Stop
from typing import Any

from flask import Flask
from flask.testing import FlaskClient

from eventcore.broker.port import Queue
from eventcore.clock import SYSTEM_CLOCK, Clock
from eventcore.consistency import Epoch, Waits
from eventcore.model.projection import Projection
from eventcore.model.service import Service
from eventcore.observe.health import Health
from eventcore.project.applier import EventApplier
from eventcore.project.parts import open_parts
from eventcore.project.projector import Projector
from eventcore.project.reacting import ReactingApplier
from eventcore.project.reactor_projector import ReactorProjector
from eventcore.project.sweep import Sweep
from eventcore.project.view_projector import PartSweep, ViewProjector, ViewSweep
from eventcore.query import ViewDocuments, Views
from eventcore.reactor import Reactor
from eventcore.relay import Forwarder
from eventcore.settings import Secret
from eventcore.store.feed import StoreFeed
from eventcore.web.app import create_app
from eventcore.web.internal import feed_routes
from eventcore.web.routes import Routes
from eventcore.web.status import status_routes
from order import api as order_api
from order import credit_saga
from order import service as order_service
from order.customers import Customers
from order.projections import known_users, orders
from order.projections.customers import VIEW
from tests.fakes.broker import FakeBroker
from tests.fakes.readmodel import FakeReadModel
from tests.fakes.store import FakeStore
from user import api as user_api
from user import credit_reactor
from user import service as user_service
from user.projections import credit, users

TOKEN = "token of the feed"


def web_app(
    store: FakeStore,
    routes: Routes,
    service: Service,
    epoch: Epoch | None = None,
    identity: Callable[[], str] | None = None,
    readmodel: FakeReadModel | None = None,
) -> Flask:
    """A service on fakes."""
    name = service.name
    app = create_app(
        service.title,
        routes.all,
        about=service.about,
        missing=dict,
        is_ready=lambda: True,
        store=store,
        epoch=epoch or Epoch(store, name),
        identity=identity,
    )
    feeds = [StoreFeed(store, each.aggregate_type, owner=name) for each in service.catalogues]
    app.register_blueprint(feed_routes(feeds, Secret(TOKEN)))
    app.register_blueprint(status_routes(service, store, readmodel or FakeReadModel(), identity))
    return app


def projector(
    projection: Projection,
    readmodel: FakeReadModel,
    store: FakeStore,
    broker: FakeBroker,
    clock: Clock = SYSTEM_CLOCK,
) -> Projector:
    """A projector on fakes, that asks its feed straight from the owner's store."""
    feed = StoreFeed(store, projection.aggregate_type, owner=projection.catalogue.owner)
    applier = EventApplier(projection, readmodel, feed, clock)
    queue = Queue(projection.queue, projection.binding)
    return Projector(
        applier,
        Sweep(applier, "holder", lease_seconds=5),
        lambda: broker.consumer(queue, 300),
        Health(),
        batch=300,
        sweep_interval=1,
    )


def reactor_projector(
    reactor: Reactor,
    readmodel: FakeReadModel,
    store: FakeStore,
    own: FakeStore,
    broker: FakeBroker,
    holder: str = "holder",
) -> ReactorProjector:
    """A reactor on fakes: it reads the log of `store`, its commands are for `own`."""
    feed = StoreFeed(store, reactor.aggregate_type, owner=reactor.catalogue.owner)
    applier = ReactingApplier(reactor, readmodel, feed, own=own)
    queue = Queue(reactor.queue, reactor.binding)
    return ReactorProjector(
        applier,
        Sweep(applier, holder, lease_seconds=5),
        lambda: broker.consumer(queue, 300),
        Health("store"),
        batch=300,
        sweep_interval=1,
        check_store=own.clock,
    )


@dataclass
class FakeShop:
    """Everything; `settle` lets it come to rest. Nothing happens by itself."""

    user_store: FakeStore = field(default_factory=FakeStore)
    order_store: FakeStore = field(default_factory=FakeStore)
    readmodel: FakeReadModel = field(default_factory=FakeReadModel)
    broker: FakeBroker = field(default_factory=FakeBroker)
    clock: Clock = SYSTEM_CLOCK
    """By which requests wait for what they have seen."""
    unique_emails: bool = False
    identity: Callable[[], str] | None = None
    """The token by which both services believe what a gateway says of a caller."""
    credit_limit: Decimal | None = None

    def __post_init__(self) -> None:
        self.epochs = {
            "user": Epoch(self.user_store, "user"),
            "order": Epoch(self.order_store, "order"),
        }
        self.waits = waits = Waits(0.03, most=2, clock=self.clock)
        views = Views(users.PROJECTION, self.readmodel, self.user_store)
        user_routes = user_api.routes(
            self.user_store,
            views,
            Views(credit.PROJECTION, self.readmodel, self.user_store),
            unique_emails=self.unique_emails,
            credit_limit=self.credit_limit,
        )
        self.users = self._client(user_routes, self.user_store, user_service.SERVICE)
        customers = Customers(
            self.readmodel, wait=0.03, margin=0, waits=waits, limited=self.credit_limit is not None
        )
        orders_views = Views(orders.PROJECTION, self.readmodel, self.order_store, waits)
        known = ViewDocuments(VIEW, self.readmodel, waits)
        order_routes = order_api.routes(self.order_store, orders_views, customers, known)
        self.orders = self._client(order_routes, self.order_store, order_service.SERVICE)
        self.projectors: dict[str, Projector] = {
            projection.name: projector(projection, self.readmodel, store, self.broker)
            for projection, store in (
                (users.PROJECTION, self.user_store),
                (orders.PROJECTION, self.order_store),
                (known_users.PROJECTION, self.user_store),
                (credit.PROJECTION, self.user_store),
            )
        }

        self.projectors[credit_saga.REACTOR.name] = reactor_projector(
            credit_saga.REACTOR, self.readmodel, self.user_store, self.order_store, self.broker
        )
        self.projectors[credit_reactor.REACTOR.name] = reactor_projector(
            credit_reactor.REACTOR, self.readmodel, self.order_store, self.user_store, self.broker
        )
        feeds = {
            store: StoreFeed(log, store)
            for store, log in (("user", self.user_store), ("order", self.order_store))
        }
        parts = open_parts(VIEW, self.readmodel, feeds)
        self.view = ViewProjector(
            parts[0],
            ViewSweep([PartSweep(part, "holder", lease_seconds=5) for part in parts]),
            lambda: self.broker.consumer(Queue(VIEW.queue, VIEW.binding), 300),
            Health(),
            batch=300,
            sweep_interval=1,
        )

    def relay(self) -> None:
        """Both relays publish what is there."""
        projections = [each.applier.projection for each in self.projectors.values()]
        for owner, store in (("user", self.user_store), ("order", self.order_store)):
            own = [each for each in projections if each.owners == (owner,)]
            queues = [Queue(each.queue, each.binding) for each in own]
            forwarder = Forwarder("fake", store, self.broker.publisher(queues, 500))
            while forwarder.turn():
                continue
            forwarder.save()

    def consume(self, names: Sequence[str] = ()) -> None:
        """The projectors take what is in their queues."""
        for name in names or self.projectors:
            self.projectors[name].consume(Stop(), wait=0)

    def sweep(self, names: Sequence[str] = ()) -> None:
        """The projectors sweep, twice, since a sweep covers what the one before had seen."""
        for name in names or self.projectors:
            for _ in range(2):
                self.projectors[name].sweep()

    def settle(self) -> None:
        """Relay and consume everything, also what reactors append meanwhile."""
        before = None
        while before != (before := (self.user_store.head, self.order_store.head)):
            self.relay()
            self.consume()
        while self.view.sweep():
            continue

    def create_user(self, name: str = "Ada", email: str = "ada@example.com") -> str:
        """A user's id, of a user who can be queried and may order."""
        user_id: str = self.post(self.users, "/users", {"name": name, "email": email})["userId"]
        self.settle()
        return user_id

    def place_order(self, user_id: str, price: object = 1) -> str:
        """An order's id, just answered."""
        body = {"userId": user_id, "item": "Laptop", "price": price}
        order_id: str = self.post(self.orders, "/orders", body)["orderId"]
        return order_id

    @staticmethod
    def post(client: FlaskClient, path: str, body: object) -> dict[str, Any]:
        """The answer's JSON; an AssertionError for any other than 2xx."""
        response = client.post(path, json=body)
        assert 200 <= response.status_code < 300, response.text
        answer: dict[str, Any] = response.get_json()
        return answer

    def _client(self, routes: Routes, store: FakeStore, service: Service) -> FlaskClient:
        epoch = self.epochs[service.name]
        app = web_app(store, routes, service, epoch, self.identity, self.readmodel)
        return app.test_client()
