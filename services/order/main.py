"""The order service, put together."""

from threading import Event as Stop

from flask import Flask

from eventcore.operate.watch import watch, watch_service
from eventcore.query import Views
from eventcore.readmodel.mongo import Mongo
from eventcore.settings import Port, Seconds, ServiceSettings
from eventcore.store.feed import StoreFeed
from eventcore.store.postgres import Postgres
from eventcore.web.app import create_app as create_web_app
from eventcore.web.internal import feed_routes
from eventcore.web.readiness import Readiness
from order.api import routes
from order.customers import Customers
from order.projections import known_users, orders

TITLE = "Order Service"
ABOUT = "Places orders of known users and cancels them; shows and lists them as they are or were."
PROJECTIONS = (orders.PROJECTION, known_users.PROJECTION)


class Settings(ServiceSettings):
    """The settings of the order service."""

    port: Port = 3002
    known_user_wait: Seconds = 1.0
    cache_margin: Seconds = 10.0


def create_app(settings: Settings) -> Flask:
    """The application that gunicorn serves; connects to nothing yet."""
    store = Postgres(settings.store, settings.threads)
    readmodel = Mongo(settings.readmodel, settings.threads)
    readiness = Readiness(store, readmodel)
    feed = StoreFeed(store, "order")
    updates = watch_service("order", store, readmodel, feed, PROJECTIONS)
    watch([readiness.missing, *updates], Stop())
    customers = Customers(
        readmodel,
        wait=settings.known_user_wait,
        margin=settings.cache_margin,
        waiters=max(1, settings.threads // 2),
    )
    app = create_web_app(
        TITLE,
        routes(store, Views(orders.PROJECTION, readmodel, store), customers).all,
        missing=readiness.missing,
        is_ready=readiness.is_ready,
        store=store,
        about=ABOUT,
        cors_origins=settings.cors_origins,
    )
    app.register_blueprint(feed_routes(feed, settings.feed.token))
    return app
