"""The gateway, put together."""

from flask import Flask
from pydantic import BaseModel, Field, Json

from eventcore.settings import SOCKET_THREADS, Port, ServeSettings
from eventcore.web.app import create_app as create_web_app
from gateway.api import Description, add_forwarding, merged_events
from gateway.forward import Upstream


class Place(BaseModel):
    """The URL of a service, and the paths that are forwarded to it."""

    url: str
    paths: tuple[str, ...]


class Settings(ServeSettings):
    """The settings of the gateway."""

    port: Port = 3000
    upstreams: Json[dict[str, Place]]
    """The services by name."""
    consistency_cookie: int = Field(0, ge=0, lt=10**6)
    """Seconds for which a browser keeps the Consistency-Token; 0: there is no cookie."""

    @property
    def permits(self) -> int:
        """Each upstream has THREADS permits of its own, for which requests wait here."""
        return SOCKET_THREADS


def create_app(settings: Settings) -> Flask:
    """The application that gunicorn serves. It is ready when it runs: it never probes upstreams."""
    places = settings.upstreams
    upstreams = {name: Upstream(each.url, settings.threads) for name, each in places.items()}
    app = create_web_app(
        "Gateway",
        (),
        missing=dict,
        is_ready=lambda: True,
        document=Description(upstreams),
        events=Description(upstreams, "/asyncapi.json", merged_events),
        cors_origins=settings.cors_origins,
    )
    paths = {name: each.paths for name, each in places.items()}
    add_forwarding(app, paths, upstreams, settings.consistency_cookie)
    return app
