"""Verifies the caller of each request, unless its endpoint is open, and names it to services."""

import json
import logging
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from flask import Flask, Request, g, request

from eventcore.web.caller import (
    ACTOR_HEADER,
    READ,
    SAFE,
    SCOPES_HEADER,
    USER_HEADER,
    WRITE,
    Caller,
)
from eventcore.web.identity import refuse
from gateway import apikeys
from gateway.tokens import NotVerified, Tokens

log = logging.getLogger(__name__)

FORWARDED = "forward to "
"""Beginning of the names of the endpoints that forward."""

OPEN = frozenset({
    "healthz", "readyz", "metrics",
    "docs.home", "docs.docs", "docs.docs_with_slash", "docs.static",
    "docs.openapi_json", "docs.asyncapi_json",
})  # fmt: skip
"""Endpoints for anybody. Each other one asks for an identity, also one that is added later."""

_BEARER = re.compile("Bearer +([^ ]+) *", re.IGNORECASE)

SCHEMES = {
    "token": {
        "type": "http",
        "scheme": "bearer",
        "bearerFormat": "JWT",
        "description": "A token of the issuer, with the scopes `read`, `write` or `admin`.",
    },
    "apiKey": {
        "type": "http",
        "scheme": "bearer",
        "bearerFormat": "shop_<id>_<secret>",
        "description": "The API key of a machine, in the same header.",
    },
}
"""Security schemes of the OpenAPI document."""


@dataclass(frozen=True, slots=True)
class Verifier:
    """Verifies tokens and API keys; without one of both, none of that kind is accepted."""

    tokens: Tokens | None
    api_keys: Callable[[], Mapping[str, apikeys.ApiKey]]

    def __call__(self, credential: str) -> Caller:
        """The caller whose credential this is; raises NotVerified, KeysUnknown."""
        if credential.startswith(apikeys.PREFIX):
            return apikeys.verify(credential, self.api_keys())
        if self.tokens is None:
            raise NotVerified("Tokens are not accepted here; API keys are.")
        return self.tokens.verify(credential)


def require_identity(
    app: Flask, verify: Callable[[str], Caller], guarded: Collection[str] = ()
) -> None:
    """Refuses each request without a credential, or without the scope it needs, unless it is open.

    Blueprints that are `guarded` ask by themselves. Views find the caller in `flask.g.caller`.
    """

    @app.before_request
    def identify() -> None:
        asked: Request = request._get_current_object()  # type: ignore[attr-defined]
        if asked.blueprint in guarded or _is_open(asked):
            return
        given = _BEARER.fullmatch(asked.environ.get("HTTP_AUTHORIZATION", ""))
        if not given:
            refuse(401, "Send a token or an API key in the header Authorization: Bearer ...")
        try:
            g.caller = caller = verify(given[1])
        except NotVerified as error:
            log.info("Credential refused", extra={"reason": str(error)})
            refuse(401, str(error), error="invalid_token")
        if scope := lacking_scope(caller, asked.method):
            detail = f"This call needs the scope {scope}, which the credential does not have."
            refuse(403, detail, error="insufficient_scope", scope=scope)


def _is_open(asked: Request) -> bool:
    """Whether a request needs no identity here: its endpoint is open, or there is none (404).

    OPTIONS needs none where the service answers it, or Flask, without the endpoint's view.
    """
    endpoint = asked.endpoint
    if endpoint is None or endpoint in OPEN:
        return True
    return asked.method == "OPTIONS" and (
        endpoint.startswith(FORWARDED)
        or getattr(asked.url_rule, "provide_automatic_options", False)
    )


def lacking_scope(caller: Caller, method: str) -> str:
    """The scope that a call needs and its caller does not have; "": it may be made."""
    scope = READ if method in SAFE else WRITE
    return "" if scope in caller.scopes else scope


def identity_headers(token: Callable[[], str]) -> dict[str, str]:
    """The headers that name the verified caller to the service that has this token.

    The first line of the token's file is sent; a service accepts all of them.
    """
    caller: Caller | None = g.get("caller")
    if caller is None:  # OPTIONS
        return {}
    first, _, _ = token().partition("\n")
    return {
        "Authorization": f"Bearer {first}",
        ACTOR_HEADER: caller.actor,
        SCOPES_HEADER: " ".join(sorted(caller.scopes)),
        USER_HEADER: caller.user,
    }


def secured(document: bytes) -> bytes:
    """An OpenAPI document with the security schemes, and the scope that each call needs."""
    described: dict[str, Any] = json.loads(document)
    described["components"]["securitySchemes"] = SCHEMES
    for item in described["paths"].values():
        for method, operation in item.items():
            scope = READ if method.upper() in SAFE else WRITE
            operation["security"] = [{name: [scope]} for name in SCHEMES]
    return json.dumps(described, indent=1).encode()
