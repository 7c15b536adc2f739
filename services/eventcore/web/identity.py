"""Believes what the gateway says of a caller, for the service's identity token alone."""

import hmac
from collections.abc import Callable
from functools import cache
from typing import NoReturn

from flask import abort, request

from eventcore.web.caller import ACTOR_HEADER, ANYONE, SCOPES_HEADER, USER_HEADER, Caller
from eventcore.web.problems import problem


def caller_of(token: Callable[[], str] | None) -> Caller:
    """The caller of Flask's current request to a service, believed for the token alone.

    Without a token nobody is asked for an identity, and no header of the request has a meaning.
    """
    if token is None:
        return ANYONE
    told = request.environ
    given = told.get("HTTP_AUTHORIZATION", "").encode()
    actor = told.get(_variable(ACTOR_HEADER), "")
    if not actor or not hmac.compare_digest(given, f"Bearer {token()}".encode()):
        refuse(401, "Calls of this service come through the gateway, which verifies the caller.")
    scopes = frozenset(told.get(_variable(SCOPES_HEADER), "").split())
    return Caller(actor, told.get(_variable(USER_HEADER), ""), scopes)


@cache
def _variable(header: str) -> str:
    """The key of a header in the WSGI environment (PEP 3333), read as it is."""
    return f"HTTP_{header.upper().replace('-', '_')}"


def refuse(status: int, detail: str, error: str = "", scope: str = "") -> NoReturn:
    """Answers 401 or 403 as problem details, with the challenge of RFC 6750."""
    title = "Not authenticated" if status == 401 else "Not allowed"
    response = problem(status, title, detail, "unauthenticated" if status == 401 else "forbidden")
    parts = {"realm": "shop", "error": error, "scope": scope}
    challenge = ", ".join(f'{name}="{value}"' for name, value in parts.items() if value)
    response.headers["WWW-Authenticate"] = f"Bearer {challenge}"
    abort(response)
