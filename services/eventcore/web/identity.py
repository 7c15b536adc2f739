"""Believes what the gateway says of a caller, for the service's identity token alone."""

import hmac
from collections.abc import Callable
from functools import lru_cache
from typing import NoReturn

from flask import abort, request

from eventcore.web.caller import ACTOR_HEADER, ANYONE, SCOPES_HEADER, USER_HEADER, Caller
from eventcore.web.problems import problem

_ACTOR, _USER, _SCOPES = (
    f"HTTP_{header.upper().replace('-', '_')}"
    for header in (ACTOR_HEADER, USER_HEADER, SCOPES_HEADER)
)
"""Keys of the headers in the WSGI environment (PEP 3333)."""


def caller_of(token: Callable[[], str] | None) -> Caller:
    """The caller of Flask's current request to a service, believed for the token alone.

    Each line of the token's file is accepted, so that it can be replaced while requests come.
    Without a token nobody is asked for an identity, and no header of the request has a meaning.
    """
    if token is None:
        return ANYONE
    told = request.environ
    given = told.get("HTTP_AUTHORIZATION", "").encode()
    actor = told.get(_ACTOR, "")
    accepted = [f"Bearer {line}".encode() for line in token().splitlines() if line]
    if not actor or not any(hmac.compare_digest(given, each) for each in accepted):
        refuse(401, "Calls of this service come through the gateway, which verifies the caller.")
    return _caller(actor, told.get(_USER, ""), told.get(_SCOPES, ""))


@lru_cache(maxsize=1024)
def _caller(actor: str, user: str, scopes: str) -> Caller:
    return Caller(actor, user, frozenset(scopes.split()))


def refuse(status: int, detail: str, error: str = "", scope: str = "") -> NoReturn:
    """Answers 401 or 403 as problem details, with the challenge of RFC 6750."""
    title = "Not authenticated" if status == 401 else "Not allowed"
    response = problem(status, title, detail, "unauthenticated" if status == 401 else "forbidden")
    parts = {"realm": "shop", "error": error, "scope": scope}
    challenge = ", ".join(f'{name}="{value}"' for name, value in parts.items() if value)
    response.headers["WWW-Authenticate"] = f"Bearer {challenge}"
    abort(response)
