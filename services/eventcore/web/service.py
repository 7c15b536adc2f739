"""Puts a service together: its store and read model, its routes, its feed and its metrics."""

from collections.abc import Callable
from threading import Event as Stop

from flask import Flask

from eventcore.consistency import Epoch
from eventcore.files import reader
from eventcore.model.service import Service
from eventcore.operate.watch import watch, watch_service
from eventcore.readmodel.mongo import Mongo
from eventcore.readmodel.port import ReadModel
from eventcore.settings import ServiceSettings
from eventcore.store.feed import StoreFeed
from eventcore.store.port import Store
from eventcore.store.postgres import Postgres
from eventcore.web import asyncapi
from eventcore.web.app import create_app
from eventcore.web.consumers import Consumers
from eventcore.web.internal import feed_routes
from eventcore.web.readiness import Readiness
from eventcore.web.routes import Routes
from eventcore.web.status import status_routes


def create_service(
    service: Service, settings: ServiceSettings, routes: Callable[[Store, ReadModel], Routes]
) -> Flask:
    """Builds the application that gunicorn serves; connects to nothing yet."""
    store = Postgres(settings.store, settings.threads)
    readmodel = Mongo(settings.readmodel, settings.threads)
    readiness = Readiness(store, readmodel)
    feeds = {
        each.aggregate_type: StoreFeed(store, each.aggregate_type, owner=service.name)
        for each in service.catalogues
    }
    epoch, consumers = Epoch(store, service.name), Consumers(service.catalogues)
    updates = watch_service(service, store, readmodel, feeds, epoch.note)
    watch([readiness.missing, consumers.update, *updates], Stop())
    identity = reader(settings.identity.token) if settings.auth and settings.identity else None
    events = asyncapi.build(service.title, "1.0", service.catalogues)
    app = create_app(
        service.title,
        routes(store, readmodel).all,
        missing=readiness.missing,
        is_ready=readiness.is_ready,
        store=store,
        epoch=epoch,
        about=service.about,
        cors_origins=settings.cors_origins,
        events=lambda: events,
        identity=identity,
    )
    app.register_blueprint(feed_routes([*feeds.values()], settings.feed.token, consumers.note))
    app.register_blueprint(status_routes(service, store, readmodel, identity))
    return app
