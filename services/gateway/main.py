"""The gateway, put together."""

from flask import Flask

from eventcore.settings import Port, ServeSettings
from eventcore.web import create_app as create_web_app
from gateway.api import Description, add_forwarding
from gateway.forward import Upstream

TITLE = "Gateway"
PROJECTIONS = ()


class Settings(ServeSettings):
    """The settings of the gateway."""

    port: Port = 3000
    user_service_url: str
    order_service_url: str


def create_app(settings: Settings) -> Flask:
    """The application that gunicorn serves. It is ready when it runs: it never probes upstreams."""
    calls = max(1, settings.threads // 2)
    upstreams = {
        "user": Upstream(settings.user_service_url, calls),
        "order": Upstream(settings.order_service_url, calls),
    }
    app = create_web_app(
        TITLE,
        (),
        missing=dict,
        is_ready=lambda: True,
        document=Description(upstreams),
        cors_origins=settings.cors_origins,
    )
    add_forwarding(app, upstreams)
    return app
