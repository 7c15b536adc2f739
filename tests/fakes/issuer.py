"""An issuer of tokens: its keys, and the tokens that it signs."""

import json
import time
from typing import Any
from uuid import uuid4

import jwt
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePrivateKey
from cryptography.hazmat.primitives.asymmetric.ec import generate_private_key as make_key
from jwt.algorithms import ECAlgorithm

ISSUER, AUDIENCE = "https://issuer.example.com/", "shop"


class Issuer:
    """Signs with its newest key, and publishes all that it has."""

    def __init__(self) -> None:
        self.keys: dict[str, EllipticCurvePrivateKey] = {}
        self.asked = 0
        self.is_away = False
        self.rotate()

    def rotate(self) -> None:
        """Signs with another key from now on; the ones before are withdrawn."""
        self.keys = {uuid4().hex: make_key(SECP256R1())}

    @property
    def kid(self) -> str:
        return list(self.keys)[-1]

    def published(self) -> bytes:
        """The set of keys, as its URL answers it."""
        keys = [
            {**json.loads(ECAlgorithm.to_jwk(key.public_key())), "kid": kid, "alg": "ES256"}
            for kid, key in self.keys.items()
        ]
        return json.dumps({"keys": keys}).encode()

    def fetch(self, _source: str) -> bytes:
        """Answers with the set of keys, unless it is away."""
        self.asked += 1
        if self.is_away:
            raise OSError("no answer")
        return self.published()

    def token(self, subject: str, scope: str = "read write", **claims: Any) -> str:
        """A token of a subject, valid for a day; a claim that is None is left out."""
        now = int(time.time())
        every = {
            "iss": ISSUER, "aud": AUDIENCE, "sub": subject, "exp": now + 86_400, "iat": now,
            "scope": scope, **claims,
        }  # fmt: skip
        given = {name: value for name, value in every.items() if value is not None}
        return jwt.encode(given, self.keys[self.kid], "ES256", {"kid": self.kid})
