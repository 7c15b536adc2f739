"""P35: what identity takes of a request's time, at the gateway and at the service."""

from collections.abc import Sequence
from statistics import median
from time import perf_counter

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
        self._gateway, self._service = Flask("gateway"), Flask("service")
        self._gateway.add_url_rule("/users/<id>", endpoint=f"{FORWARDED}user", view_func=str)
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
        """The median of what the calls take in each of these requests, which are new ones."""
        hooks = self._gateway.before_request_funcs[None]
        took: list[float] = []
        for credential in credentials:
            headers = {"Authorization": f"Bearer {credential}"}
            with self._gateway.test_request_context("/users/1", headers=headers):
                began = perf_counter()
                for hook in hooks:
                    hook()
                identity_headers(_token)
                spent = perf_counter() - began
            with self._service.test_request_context("/users/1", headers=self._told):
                began = perf_counter()
                caller = caller_of(_token)
                took.append(spent + perf_counter() - began)
            require(caller.may(self._user), "the service knows the caller")
        return (median(took) * 1e6,)


def _token() -> str:
    return "token of the service"
