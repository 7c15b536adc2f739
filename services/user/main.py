"""The user service, put together."""

from threading import Event as Stop

from flask import Flask

from eventcore.operate.watch import watch, watch_service
from eventcore.query import Views
from eventcore.readmodel.mongo import Mongo
from eventcore.settings import Port, ServiceSettings
from eventcore.store.feed import StoreFeed
from eventcore.store.postgres import Postgres
from eventcore.web.app import create_app as create_web_app
from eventcore.web.internal import feed_routes
from eventcore.web.readiness import Readiness
from user.api import routes
from user.projections import users

TITLE = "User Service"
ABOUT = "Creates users and changes them; shows each as it is, as it was, and how it came about."
PROJECTIONS = (users.PROJECTION,)


class Settings(ServiceSettings):
    """The settings of the user service."""

    port: Port = 3001


def create_app(settings: Settings) -> Flask:
    """The application that gunicorn serves; connects to nothing yet."""
    store = Postgres(settings.store, settings.threads)
    readmodel = Mongo(settings.readmodel, settings.threads)
    readiness = Readiness(store, readmodel)
    feed = StoreFeed(store, "user")
    updates = watch_service("user", store, readmodel, feed, PROJECTIONS)
    watch([readiness.missing, *updates], Stop())
    app = create_web_app(
        TITLE,
        routes(store, Views(users.PROJECTION, readmodel, store)).all,
        missing=readiness.missing,
        is_ready=readiness.is_ready,
        store=store,
        about=ABOUT,
        cors_origins=settings.cors_origins,
    )
    app.register_blueprint(feed_routes(feed, settings.feed.token))
    return app
