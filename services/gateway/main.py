"""The gateway, put together."""

import logging
from functools import partial
from pathlib import Path
from typing import Annotated, Self

from flask import Flask
from pydantic import BaseModel, BeforeValidator, Field, InstanceOf, Json, model_validator
from pydantic_core import PydanticCustomError

from eventcore.files import Reread, reader
from eventcore.observe.background import repeat
from eventcore.settings import (
    SOCKET_THREADS,
    AnyMongoDB,
    Count,
    IdentityTokens,
    Port,
    ServeSettings,
    Words,
)
from eventcore.web.app import create_app as create_web_app
from gateway import apikeys
from gateway.api import (
    Description,
    add_forwarding,
    merged_calls,
    merged_events,
    merged_secured_calls,
    to_rule,
)
from gateway.forward import Upstream
from gateway.identity import Verifier, require_identity
from gateway.limit_store import SharedCounters
from gateway.limits import Limit, Limiter, Limits, Network, limit_requests
from gateway.page.pages import PAGE, add_page
from gateway.tokens import Keys, Tokens

log = logging.getLogger(__name__)


class Place(BaseModel):
    """The URL of a service, and the paths that are forwarded to it."""

    url: str
    paths: tuple[str, ...]


_Read, _Write = (BeforeValidator(partial(Limit.read, name)) for name in ("read", "write"))


class Settings(ServeSettings):
    """The settings of the gateway."""

    port: Port = 3000
    upstreams: Json[dict[str, Place]]
    """The services by name."""
    page: bool = True
    """Whether browsers get the page for people, at /page."""
    consistency_cookie: int = Field(0, ge=0, lt=10**6)
    """Seconds for which a browser keeps the Consistency-Token; 0: there is no cookie."""
    auth_issuer: str = ""
    auth_audience: str = ""
    auth_jwks: str = ""
    """The issuer and audience of tokens, and the URL or file of the issuer's keys."""
    auth_user_claim: str = "sub"
    """The claim with the id of the caller's user."""
    auth_api_keys_file: Path | None = None
    identity: IdentityTokens = Field(default_factory=dict, validation_alias="identity")
    rate_limit_read: Annotated[InstanceOf[Limit] | None, _Read] = None
    rate_limit_write: Annotated[InstanceOf[Limit] | None, _Write] = None
    """Requests of a client within a time, such as 600/minute; "" is no limit."""
    rate_limit_costs: Json[dict[str, Count]] = Field("{}", validate_default=True)
    """By path, as many requests as one counts for; 1 where none is given."""
    rate_limit_replicas: Count = 1
    """Replicas of the gateway; each counts its share while the shared store is away."""
    trusted_proxies: Annotated[tuple[Network, ...], Words] = ()
    """Addresses or networks whose X-Forwarded-For is believed."""
    counters: AnyMongoDB = Field(None, validation_alias="mongodb")
    """The store of the rate limits; without one each replica counts alone."""

    @property
    def permits(self) -> int:
        """Each upstream has THREADS permits of its own, for which requests wait here."""
        return SOCKET_THREADS

    @property
    def header_size(self) -> int:
        """A header has room for a token, and for one that is too long, which is a 401."""
        return 16380 if self.auth else super().header_size

    @model_validator(mode="after")
    def _require_credentials(self) -> Self:
        if not self.auth:
            return self
        lacking = [
            f"IDENTITY_{name.upper()}_TOKEN or IDENTITY_{name.upper()}_TOKEN_FILE is not set"
            for name in self.upstreams
            if name not in self.identity
        ]
        of_tokens = (self.auth_issuer, self.auth_audience, self.auth_jwks)
        if any(of_tokens) != all(of_tokens):
            lacking.append("AUTH_ISSUER, AUTH_AUDIENCE and AUTH_JWKS need each other")
        if not any(of_tokens) and not self.auth_api_keys_file:
            lacking.append(
                "AUTH=on needs AUTH_ISSUER, AUTH_AUDIENCE and AUTH_JWKS, or AUTH_API_KEYS_FILE"
            )
        if lacking:
            raise PydanticCustomError("auth", "{lacking}", {"lacking": "; ".join(lacking)})
        return self


def create_app(settings: Settings) -> Flask:
    """The application that gunicorn serves. It never probes upstreams: it is ready when it runs,
    and where it verifies tokens, as soon as it has the issuer's keys.
    """
    places = settings.upstreams
    upstreams = {name: Upstream(each.url, settings.threads) for name, each in places.items()}
    keys = Keys(settings.auth_jwks) if settings.auth and settings.auth_jwks else None
    verify = _verifier(settings, keys) if settings.auth else None

    def missing() -> dict[str, str]:
        return {} if keys is None or keys.known else {"issuer": "its keys have not been read"}

    app = create_web_app(
        "Gateway",
        (),
        missing=missing,
        is_ready=lambda: not missing(),
        document=Description(upstreams, merge=merged_secured_calls if verify else merged_calls),
        events=Description(upstreams, "/asyncapi.json", merged_events),
        cors_origins=settings.cors_origins,
        front="page" if settings.page else "docs",
    )
    paths = {name: each.paths for name, each in places.items()}
    tokens = {name: reader(each.token) for name, each in settings.identity.items() if verify}
    add_forwarding(app, paths, upstreams, settings.consistency_cookie, tokens or None)
    if verify:
        require_identity(app, verify, guarded=[PAGE] if settings.page else [])
    else:
        log.warning("AUTH=off: whoever reaches the gateway reads and changes everything")
    if settings.page:
        add_page(app, upstreams, tokens, verify)
    _limit(app, settings)
    return app


def _limit(app: Flask, settings: Settings) -> None:
    """Adds the rate limits, if there are any; identity comes first, since it names the client."""
    read, write = settings.rate_limit_read, settings.rate_limit_write
    if read or write:
        costs = {to_rule(path): cost for path, cost in settings.rate_limit_costs.items()}
        limits = Limits(read, write, costs, settings.trusted_proxies)
        counters = SharedCounters(settings.counters) if settings.counters else None
        limit_requests(app, Limiter(counters, settings.rate_limit_replicas), limits)


def _verifier(settings: Settings, keys: Keys | None) -> Verifier:
    """Verifies tokens with keys that are read in the background, and API keys of the file."""
    tokens = None
    if keys:
        repeat(keys.refresh, "issuer-keys", every=0.5)
        tokens = Tokens(
            keys, settings.auth_issuer, settings.auth_audience, settings.auth_user_claim
        )
    file = settings.auth_api_keys_file
    return Verifier(tokens, Reread(file, apikeys.parse) if file else dict)
