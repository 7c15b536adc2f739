"""The gateway, put together."""

from flask import Flask

from eventcore.settings import Settings
from eventcore.web import create_app as create_web_app
from gateway.api import Upstreams, add_forwarding

TITLE = "Gateway"
NEEDS = ("upstreams",)
PROJECTIONS = ()


def create_app(settings: Settings) -> Flask:
    """The application that gunicorn serves. It is ready when it runs: it never probes upstreams."""
    upstreams = Upstreams(settings.upstreams, connections=settings.threads)
    app = create_web_app(
        TITLE, (), missing=dict, is_ready=lambda: True, document=upstreams.document
    )
    add_forwarding(app, upstreams)
    return app
