"""The issuer of `make run AUTH=on`: a key pair of its own, a user, and tokens for users.

The private key stays among the secrets of the data folder, for `make demo` to sign with as well.
"""

import json
import time
from pathlib import Path
from typing import NamedTuple

import jwt
import urllib3
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from jwt.algorithms import ECAlgorithm

from eventcore.ids import new_id
from eventcore.settings import Secret
from local.child import CannotStart
from local.processes import Environment
from local.secretfiles import secret_file

ISSUER, AUDIENCE, KEY_ID = "make-run", "shop", "make-run"

OPERATOR = "operator"
"""The subject of the token that sees everything."""

TOKEN_TIME = 24 * 3600
"""Seconds until a token expires."""


def identity_settings(secrets: Path) -> Environment:
    """The gateway's variables; makes the key pair and an empty file of API keys once."""
    key = _key(secrets)
    jwk = {**json.loads(ECAlgorithm.to_jwk(key.public_key())), "kid": KEY_ID, "alg": "ES256"}
    keys = secrets / "issuer_keys.json"
    keys.write_text(json.dumps({"keys": [jwk]}))
    api_keys = secret_file(secrets, "api_keys", "# python -m gateway.apikeys writes lines here\n")
    return {
        "AUTH": "on",
        "AUTH_ISSUER": ISSUER,
        "AUTH_AUDIENCE": AUDIENCE,
        "AUTH_JWKS": str(keys),
        "AUTH_API_KEYS_FILE": str(api_keys.file),
    }


def token_for(secrets: Path, user_id: str, scope: str = "read write") -> str:
    """A token of a user, signed with the key of `make run AUTH=on`."""
    now = int(time.time())
    claims = {"iss": ISSUER, "aud": AUDIENCE, "sub": user_id, "iat": now, "exp": now + TOKEN_TIME}
    return jwt.encode({**claims, "scope": scope}, _key(secrets), "ES256", {"kid": KEY_ID})


def own_user(secrets: Path) -> str:
    """The id of the user that `make run AUTH=on` makes; the same in every run on the same data."""
    return secret_file(secrets, "issuer_user", str(new_id())).read()


class Credentials(NamedTuple):
    """A user, its token, and an operator's token, which has the scope admin as well."""

    user: str
    token: str
    admin: str


def create_own_user(gateway: str, secrets: Path) -> Credentials:
    """Creates that user, unless an earlier run has."""
    user_id = own_user(secrets)
    token = token_for(secrets, user_id)
    answer = urllib3.request(
        "POST",
        f"{gateway}/users",
        json={"name": "Grace Hopper", "email": f"grace.{user_id[-6:]}@example.com"},
        headers={"Authorization": f"Bearer {token}"},
        retries=False,
        timeout=10,
    )
    if answer.status not in (202, 422):
        raise CannotStart(f"The first user was not created: {answer.data.decode()[:300]}")
    return Credentials(user_id, token, token_for(secrets, OPERATOR, "read write admin"))


def _key(secrets: Path) -> ec.EllipticCurvePrivateKey:
    made = ec.generate_private_key(ec.SECP256R1())
    pem = made.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
    known: Secret = secret_file(secrets, "issuer_key", pem)
    key = ECAlgorithm(ECAlgorithm.SHA256).prepare_key(known.read())
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    return key
