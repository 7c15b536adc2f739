"""The gateway, put together."""

from flask import Flask

from eventcore.settings import SOCKET_THREADS, Port, ServeSettings
from eventcore.web.app import create_app as create_web_app
from gateway.api import Description, add_forwarding
from gateway.forward import Upstream


class Settings(ServeSettings):
    """The settings of the gateway."""

    port: Port = 3000
    user_service_url: str
    order_service_url: str

    @property
    def permits(self) -> int:
        """Each upstream has THREADS permits of its own, for which requests wait here."""
        return SOCKET_THREADS


def create_app(settings: Settings) -> Flask:
    """The application that gunicorn serves. It is ready when it runs: it never probes upstreams."""
    upstreams = {
        "user": Upstream(settings.user_service_url, settings.threads),
        "order": Upstream(settings.order_service_url, settings.threads),
    }
    app = create_web_app(
        "Gateway",
        (),
        missing=dict,
        is_ready=lambda: True,
        document=Description(upstreams),
        cors_origins=settings.cors_origins,
    )
    add_forwarding(app, upstreams)
    return app
