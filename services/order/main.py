"""The order service, put together."""

from flask import Flask

from eventcore.consistency import Waits
from eventcore.query import ViewDocuments, Views
from eventcore.readmodel.port import ReadModel
from eventcore.settings import Amount, Port, Seconds, ServiceSettings
from eventcore.store.port import Store
from eventcore.web.routes import Routes
from eventcore.web.service import create_service
from order import api
from order.customers import Customers
from order.projections import orders
from order.projections.customers import VIEW
from order.service import SERVICE


class Settings(ServiceSettings):
    """The settings of the order service."""

    port: Port = SERVICE.port
    known_user_wait: Seconds = 1.0
    consistency_wait: Seconds = 2.0
    cache_margin: Seconds = 10.0
    credit_limit: Amount | None = None
    """The limit of users for whom none was set, as the user service has it; None: unlimited."""


def create_app(settings: Settings) -> Flask:
    """The application that gunicorn serves; connects to nothing yet."""

    def routes(store: Store, readmodel: ReadModel) -> Routes:
        waits = Waits(settings.consistency_wait, max(1, settings.threads // 2))
        customers = Customers(
            readmodel,
            wait=settings.known_user_wait,
            margin=settings.cache_margin,
            waits=waits,
            limited=settings.credit_limit is not None,
        )
        views = Views(orders.PROJECTION, readmodel, store, waits)
        return api.routes(store, views, customers, ViewDocuments(VIEW, readmodel, waits))

    return create_service(SERVICE, settings, routes)
