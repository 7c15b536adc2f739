"""JSON Web Tokens of one issuer, verified by PyJWT with the keys that the issuer publishes."""

import hashlib
import json
import logging
import re
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from threading import Lock
from typing import Any

import jwt
import urllib3

from eventcore.clock import SYSTEM_CLOCK, Clock
from eventcore.errors import Unavailable
from eventcore.web.caller import SCOPES, Caller, user_id_of

ALGORITHMS = frozenset({"RS256", "RS384", "RS512", "PS256", "ES256", "ES384", "ES512", "EdDSA"})
"""Signature algorithms, all of them asymmetric. A key is used with its own algorithm alone."""

LONGEST = 8 * 1024
"""Length of a token, in bytes, at most."""

FETCH_TIME = 30.0
"""Seconds between two fetches of the issuer's keys, whether the last one succeeded or not."""

CACHE_TIME = 60.0
"""Seconds for which a verified token is not verified again, at most: until it expires."""

CACHE_SIZE = 4096
"""Verified tokens that are remembered at most."""

TOLERANCE = 5.0
"""Seconds by which the issuer's clock may differ."""

_UNTRUSTED = {"jwk", "jku", "x5u", "x5c", "crit"}
"""Headers by which a token names its own key, or requires an extension: refused."""

_KEYS_LIMIT = 1024 * 1024
"""Size of a set of keys, in bytes, at most."""

_SUBJECT = re.compile("[!-~]{1,200}")

log = logging.getLogger(__name__)


class NotVerified(Exception):
    """A token that is not accepted; the message says why, in one sentence."""


class KeysUnknown(Unavailable):
    """The keys of the issuer have not been read yet, so no token can be verified."""

    code = "issuer-away"


def fetch(source: str) -> bytes:
    """Reads a set of keys (RFC 7517) from a URL or a file; raises OSError, ValueError."""
    if not source.startswith(("http://", "https://")):
        return Path(source).read_bytes()
    try:
        with urllib3.PoolManager(timeout=5, retries=False) as http:
            answer = http.request("GET", source, preload_content=False, redirect=False)
            if answer.status != 200:
                raise ValueError(f"{source} answered {answer.status}")
            content = answer.read(_KEYS_LIMIT + 1)
    except urllib3.exceptions.HTTPError as error:
        raise OSError(f"{source} did not answer: {error}") from error
    if len(content) > _KEYS_LIMIT:
        raise ValueError(f"{source} is over {_KEYS_LIMIT} bytes")
    return content


class Keys:
    """The keys of an issuer by their ids. What was read last is kept while the issuer is away."""

    def __init__(
        self, source: str, clock: Clock = SYSTEM_CLOCK, fetch: Callable[[str], bytes] = fetch
    ) -> None:
        self._source = source
        self._clock = clock
        self._fetch = fetch
        self._fetched_at = float("-inf")
        self._text = b""
        self.known: Mapping[str | None, jwt.PyJWK] = {}
        """Replaced as a whole when the issuer publishes other keys."""

    def refresh(self) -> None:
        """Reads the keys, unless they were asked for within FETCH_TIME."""
        if self._clock.monotonic() - self._fetched_at < FETCH_TIME:
            return
        self._fetched_at = self._clock.monotonic()
        try:
            text = self._fetch(self._source)
            if text != self._text:
                self.known = _parse(text)
                self._text = text
                log.info("Keys of the issuer", extra={"keys": len(self.known)})
        except (OSError, ValueError, jwt.PyJWTError) as error:
            reason = f"{error}. The keys that were read before stay in use."
            log.warning("Keys of the issuer not read", extra={"reason": reason})


def _parse(text: bytes) -> dict[str | None, jwt.PyJWK]:
    """The usable keys of a set; raises ValueError if there are none."""
    document = json.loads(text)
    if not isinstance(document, dict):
        raise ValueError("the set of keys is no JSON object")
    found: dict[str | None, jwt.PyJWK] = {
        key.key_id: key
        for key in jwt.PyJWKSet.from_dict(document)
        if key.algorithm_name in ALGORITHMS and key.public_key_use in (None, "sig")
    }
    if not found:
        raise ValueError("the set has no key for an algorithm that is accepted")
    return found


class Tokens:
    """Verifies tokens: signature, issuer, audience, times and subject.

    `user_claim` names the claim with the id of the caller's user.
    """

    def __init__(
        self, keys: Keys, issuer: str, audience: str, user_claim: str = "sub",
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:  # fmt: skip
        self._keys = keys
        self._issuer = issuer
        self._audience = audience
        self._user_claim = user_claim
        self._clock = clock
        self._lock = Lock()
        self._cache: OrderedDict[bytes, tuple[Caller, float]] = OrderedDict()
        self._cached_by = keys.known

    def verify(self, token: str) -> Caller:
        """The caller that a token names; raises NotVerified, KeysUnknown."""
        if len(token) > LONGEST:
            raise NotVerified(f"The token is over {LONGEST // 1024} KiB.")
        digest = hashlib.sha256(token.encode()).digest()
        keys = self._keys.known
        now = self._clock.monotonic()
        with self._lock:
            if self._cached_by is not keys:  # a key may have been withdrawn
                self._cache.clear()
                self._cached_by = keys
            caller, until = self._cache.get(digest, (None, 0.0))
        if caller and now < until:
            return caller
        if not keys:
            raise KeysUnknown("The keys of the token's issuer have not been read yet.")
        claims = self._claims(token, keys)
        caller = self._caller(claims)
        today = self._clock.now().timestamp()
        left = min(int(claims["exp"]), today + CACHE_TIME) - today
        self._remember(digest, caller, now + left, keys)
        return caller

    def _remember(self, digest: bytes, caller: Caller, until: float, keys: object) -> None:
        with self._lock:
            if self._cached_by is keys:
                self._cache[digest] = caller, until
                self._cache.move_to_end(digest)
                while len(self._cache) > CACHE_SIZE:
                    self._cache.popitem(last=False)

    def _claims(self, token: str, keys: Mapping[str | None, jwt.PyJWK]) -> dict[str, Any]:
        try:
            header = jwt.get_unverified_header(token)
            if named := sorted(_UNTRUSTED & header.keys()):
                raise NotVerified(f"A token with the header {', '.join(named)} is not accepted.")
            key = keys.get(header.get("kid"))
            if key is None:
                raise NotVerified("The token's key is none of its issuer's.")
            return jwt.decode(
                token,
                key,
                algorithms=[key.algorithm_name],
                audience=self._audience,
                issuer=self._issuer,
                leeway=TOLERANCE,
                options={"require": ["exp", "iss", "aud", "sub"]},
            )
        except (jwt.PyJWTError, ValueError, ArithmeticError, RecursionError) as error:
            raise NotVerified(_reason(error)) from error

    def _caller(self, claims: Mapping[str, Any]) -> Caller:
        subject = claims["sub"]
        if not _SUBJECT.fullmatch(subject):
            raise NotVerified("The token's subject must be 1 to 200 visible ASCII characters.")
        given = claims.get("scope", claims.get("scp", ""))
        words = given.split() if isinstance(given, str) else given
        scopes = frozenset(each for each in SCOPES if isinstance(words, list) and each in words)
        return Caller(f"sub:{subject}", user_id_of(claims.get(self._user_claim)), scopes)


_REASONS: tuple[tuple[type[Exception], str], ...] = (
    (jwt.ExpiredSignatureError, "The token has expired. Get a new one from its issuer."),
    (jwt.ImmatureSignatureError, "The token is not valid yet."),
    (jwt.InvalidAudienceError, "The token is for another audience."),
    (jwt.InvalidIssuerError, "The token is of another issuer."),
    (jwt.MissingRequiredClaimError, "The token lacks one of the claims exp, iss, aud and sub."),
    (jwt.InvalidAlgorithmError, "The token's algorithm is not that of its key."),
    (jwt.InvalidSignatureError, "The token's signature is not valid."),
)


def _reason(error: Exception) -> str:
    found = (text for kind, text in _REASONS if isinstance(error, kind))
    return next(found, "The token is not a valid JSON Web Token.")
