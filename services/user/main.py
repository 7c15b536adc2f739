"""The user service, put together."""

from flask import Flask

from eventcore.query import Views
from eventcore.readmodel.port import ReadModel
from eventcore.settings import Amount, Port, ServiceSettings
from eventcore.store.port import Store
from eventcore.web.routes import Routes
from eventcore.web.service import create_service
from user import api
from user.projections import credit, users
from user.service import SERVICE


class Settings(ServiceSettings):
    """The settings of the user service."""

    port: Port = SERVICE.port
    unique_emails: bool = False
    """Whether an e-mail address belongs to one user at most."""
    credit_limit: Amount | None = None
    """The limit of users for whom none was set; None: unlimited."""


def create_app(settings: Settings) -> Flask:
    """The application that gunicorn serves; connects to nothing yet."""

    def routes(store: Store, readmodel: ReadModel) -> Routes:
        views = Views(users.PROJECTION, readmodel, store)
        return api.routes(
            store,
            views,
            Views(credit.PROJECTION, readmodel, store),
            unique_emails=settings.unique_emails,
            credit_limit=settings.credit_limit,
        )

    return create_service(SERVICE, settings, routes)
