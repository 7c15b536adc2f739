"""The gateway, put together."""

from flask import Flask

from eventcore.settings import Port, ServeSettings
from eventcore.web import create_app as create_web_app
from gateway.api import Upstreams, add_forwarding

TITLE = "Gateway"
PROJECTIONS = ()


class Settings(ServeSettings):
    """The settings of the gateway."""

    port: Port = 3000
    user_service_url: str
    order_service_url: str


def create_app(settings: Settings) -> Flask:
    """The application that gunicorn serves. It is ready when it runs: it never probes upstreams."""
    urls = {"user": settings.user_service_url, "order": settings.order_service_url}
    upstreams = Upstreams(urls, connections=settings.threads)
    app = create_web_app(
        TITLE, (), missing=dict, is_ready=lambda: True, document=upstreams.document
    )
    add_forwarding(app, upstreams)
    return app
