"""P35: what identity takes of a request's time, at the gateway and at the service."""

from collections.abc import Sequence
from time import process_time

from flask import Flask

from eventcore.ids import new_id
from eventcore.web.caller import ACTOR_HEADER, SCOPES_HEADER, USER_HEADER
from eventcore.web.identity import caller_of
from gateway import apikeys
from gateway.identity import FORWARDED, Verifier, identity_headers, require_identity
from gateway.tokens import CACHE_SIZE, Keys, Tokens
from tests.bench.bed import Bed, Size
from tests.bench.rows import Row, Values, require
from tests.fakes.issuer import AUDIENCE, ISSUER, Issuer

REQUESTS = 5_000

BLOCK = 100
"""Requests with identity, and without, that follow one another."""

BUDGET = 60
"""Microseconds of a request at most, for a credential that was seen before."""


class Identity:
    """Measures the CPU time of what both sides call for a request, without a server."""

    def __init__(self, _bed: Bed, _size: Size) -> None:
        self._issuer, self._user = Issuer(), str(new_id())
        self._key, made = apikeys.make(["read"], str(new_id()))
        keys = Keys("keys", fetch=self._issuer.fetch)
        keys.refresh()
        tokens = Tokens(keys, ISSUER, AUDIENCE)
        self._gateway, self._plain, self._service = map(Flask, ("gateway", "plain", "service"))
        for app in (self._gateway, self._plain):
            app.add_url_rule("/users/<id>", endpoint=f"{FORWARDED}user", view_func=str)
        self._told = {
            "Authorization": f"Bearer {_token()}",
            ACTOR_HEADER: f"sub:{self._user}",
            SCOPES_HEADER: "read write",
            USER_HEADER: self._user,
        }
        require_identity(self._gateway, Verifier(tokens, lambda: {made.id: made}))

    def rows(self) -> Sequence[Row]:
        """The rows of this family."""
        known = [self._issuer.token(self._user)] * REQUESTS
        return (
            Row("P35", "identity of a request, token seen before", lambda: self._ask(known),
                (" µs",), notes=lambda: (f"at most {BUDGET} µs is the budget",)),
            Row("P35", "the same, with an API key", lambda: self._ask([self._key] * REQUESTS),
                (" µs",)),
            Row("P35", "the same, token that is new", lambda: self._ask(
                [self._issuer.token(str(new_id())) for _ in range(CACHE_SIZE // 4)]), (" µs",)),
        )  # fmt: skip

    def _ask(self, credentials: Sequence[str]) -> Values:
        """The difference between requests with and without identity, which take turns."""
        took = {True: 0.0, False: 0.0}
        for begin in range(0, len(credentials), BLOCK):
            for is_asked in (False, True):
                began = process_time()
                for credential in credentials[begin : begin + BLOCK]:
                    self._request(credential, is_asked)
                took[is_asked] += process_time() - began
        return ((took[True] - took[False]) / len(credentials) * 1e6,)

    def _request(self, credential: str, is_asked: bool) -> None:
        headers = {"Authorization": f"Bearer {credential}"}
        app = self._gateway if is_asked else self._plain
        with app.test_request_context("/users/1", headers=headers):
            app.preprocess_request()
            if is_asked:
                identity_headers(_token)
        with self._service.test_request_context("/users/1", headers=self._told):
            if is_asked:
                caller = caller_of(_token)
                require(caller.may(self._user), "the service knows the caller")


def _token() -> str:
    return "token of the service"
