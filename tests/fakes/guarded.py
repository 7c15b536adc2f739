"""The whole fake shop behind a gateway that verifies callers."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from email.message import Message
from typing import Any

from flask import Flask
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from eventcore.ids import new_id
from eventcore.web.app import create_app
from gateway import apikeys
from gateway.api import Description, add_forwarding, merged_events, merged_secured_calls
from gateway.forward import Answer, Upstream
from gateway.identity import Verifier, require_identity
from gateway.page.pages import PAGE
from gateway.tokens import Keys, Tokens
from local.services import SERVICES
from tests.fakes.issuer import AUDIENCE, ISSUER, Issuer
from tests.fakes.shop import FakeShop

IDENTITY_TOKEN = "token of the gateway"


class Within(Upstream):
    """A service in the same process."""

    def __init__(self, client: FlaskClient) -> None:
        super().__init__("http://service", calls=4)
        self._client = client

    def call(
        self, method: str, target: str, body: bytes = b"", headers: Mapping[str, str] | None = None
    ) -> Answer:
        given = self._client.open(target, method=method, data=body, headers=dict(headers or {}))
        received = Message()
        for name, value in given.headers.items():
            received[name] = value
        return Answer(given.status_code, received, given.data)  # type: ignore[arg-type]


@dataclass
class Guarded:
    """The whole shop behind a gateway that verifies callers."""

    issuer: Issuer = field(default_factory=Issuer)
    shop: FakeShop = field(default_factory=lambda: FakeShop(identity=lambda: IDENTITY_TOKEN))
    api_keys: dict[str, apikeys.ApiKey] = field(default_factory=dict)
    identity: Callable[[], str] = lambda: IDENTITY_TOKEN

    def __post_init__(self) -> None:
        keys = Keys("keys", fetch=self.issuer.fetch)
        keys.refresh()
        self.upstreams = {"user": Within(self.shop.users), "order": Within(self.shop.orders)}
        self.tokens = dict.fromkeys(self.upstreams, self.identity)
        self.app: Flask = create_app(
            "Gateway", (), missing=dict, is_ready=lambda: True,
            document=Description(self.upstreams, merge=merged_secured_calls),
            events=Description(self.upstreams, "/asyncapi.json", merged_events),
        )  # fmt: skip
        add_forwarding(
            self.app,
            {name: each.paths for name, each in SERVICES.items()},
            self.upstreams,
            identity_tokens=self.tokens,
        )
        self.verifier = Verifier(Tokens(keys, ISSUER, AUDIENCE), lambda: self.api_keys)
        require_identity(self.app, self.verifier, guarded=[PAGE])
        self.client = self.app.test_client()

    def call(
        self, method: str, path: str, token: str = "", body: object = None, **headers: str
    ) -> TestResponse:
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        if token:
            given["Authorization"] = f"Bearer {token}"
        return self.client.open(path, method=method, json=body, headers=given)

    def person(self, **claims: Any) -> tuple[str, str]:
        """The id of a user who was created by its own token, and that token."""
        user = str(new_id())
        token = self.issuer.token(user, **claims)
        body = {"name": "Ada", "email": f"{user}@example.com"}
        created = self.call("POST", "/users", token, body)
        assert (created.status_code, created.get_json()) == (202, {"userId": user})
        self.shop.settle()
        return user, token

    def order(self, user: str, token: str) -> str:
        body = {"userId": user, "item": "Laptop", "price": 1}
        placed = self.call("POST", "/orders", token, body)
        assert placed.status_code == 200, placed.text
        self.shop.settle()
        order: str = placed.get_json()["orderId"]
        return order
