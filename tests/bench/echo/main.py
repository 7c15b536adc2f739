"""What Flask alone does under our gunicorn: validates a body and answers it, or finds a document.

The ceiling that the services are measured beside: same server, same models, nothing else.
"""

from flask import Flask, Response, request

from eventcore import jsontext
from eventcore.command import new_id
from eventcore.readmodel import Mongo, _shown
from eventcore.settings import ReadModel, ServeSettings
from order.api import NewOrder

TITLE = "Echo"
PROJECTIONS = ()


class Settings(ServeSettings):
    """The settings of the echo service."""

    readmodel: ReadModel


def create_app(settings: Settings) -> Flask:
    """Two routes, and the readiness that the benchmark waits for."""
    app = Flask(TITLE)
    readmodel = Mongo(settings.readmodel, settings.threads)

    @app.post("/orders")
    def echo() -> Response:
        NewOrder.model_validate(jsontext.parse(request.get_data(), unique_keys=True))
        body = jsontext.render({"orderId": str(new_id())})
        return Response(body, mimetype="application/json")

    @app.get("/queries/orders/<string:order_id>")
    def find(order_id: str) -> Response:
        document = readmodel._of("orders").find_one({"_id": order_id})
        return Response(jsontext.render(_shown(document)), mimetype="application/json")

    @app.get("/readyz")
    def readyz() -> str:
        return "ready"

    return app
