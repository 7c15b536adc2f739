"""Tokens: forged ones are refused, keys are fetched in the background, and verified ones cached."""

import base64
import hashlib
import hmac
import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from jwt.algorithms import ECAlgorithm

from eventcore.clock import SYSTEM_CLOCK, Clock
from gateway import tokens
from gateway.tokens import Keys, KeysUnknown, NotVerified, Tokens
from tests.fakes.issuer import AUDIENCE, ISSUER, Issuer

SUBJECT = str(uuid4())


class Time:
    """A clock that stands until it is set forward."""

    def __init__(self) -> None:
        self.seconds = 1000.0

    def clock(self) -> Clock:
        return replace(SYSTEM_CLOCK, monotonic=lambda: self.seconds)


class Setting:
    """An issuer, and a gateway that has read its keys."""

    def __init__(self) -> None:
        self.time = Time()
        self.issuer = Issuer()
        self.keys = Keys("https://keys", self.time.clock(), self.issuer.fetch)
        self.tokens = Tokens(self.keys, ISSUER, AUDIENCE, clock=self.time.clock())
        self.keys.refresh()

    def accepts(self, token: str) -> bool:
        try:
            return bool(self.tokens.verify(token))
        except NotVerified:
            return False


@pytest.fixture
def setting() -> Setting:
    return Setting()


def encoded(value: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()


def claims(**more: Any) -> dict[str, Any]:
    now = int(time.time())
    return {
        "iss": ISSUER,
        "aud": AUDIENCE,
        "sub": SUBJECT,
        "exp": now + 300,
        "scope": "read",
    } | more


def signed(setting: Setting, header: dict[str, object], **more: Any) -> str:
    """A token that the issuer itself has signed, with another header."""
    issuer = setting.issuer
    return jwt.encode(
        claims(**more), issuer.keys[issuer.kid], "ES256", {"kid": issuer.kid, **header}
    )


def by_stranger(setting: Setting, **header: object) -> str:
    """A token that a stranger has signed, who names his own key in a header."""
    kid = header.pop("kid", setting.issuer.kid)
    key = generate_private_key(SECP256R1())
    if "jwk" in header:
        header["jwk"] = json.loads(ECAlgorithm.to_jwk(key.public_key()))
    return jwt.encode(claims(), key, "ES256", {"kid": kid, **header})


def with_hmac(setting: Setting, form: Callable[[Any], bytes]) -> str:
    """HS256, with a public key of the issuer for the shared secret."""
    public = setting.issuer.keys[setting.issuer.kid].public_key()
    text = f"{encoded({'alg': 'HS256', 'kid': setting.issuer.kid})}.{encoded(claims())}"
    digest = hmac.new(form(public), text.encode(), hashlib.sha256).digest()
    return f"{text}.{base64.urlsafe_b64encode(digest).rstrip(b'=').decode()}"


def altered(token: str, **changes: object) -> str:
    """The same signature over other claims."""
    header, body, signature = token.split(".")
    padded = body + "=" * (-len(body) % 4)
    return f"{header}.{encoded(json.loads(base64.urlsafe_b64decode(padded)) | changes)}.{signature}"


def pem(key: Any) -> bytes:
    found: bytes = key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return found


NOW = int(time.time())

FORGED: dict[str, Callable[[Setting], str]] = {
    "alg none": lambda _: f"{encoded({'alg': 'none'})}.{encoded(claims())}.",
    "alg NoNe": lambda s: f"{encoded({'alg': 'NoNe', 'kid': s.issuer.kid})}.{encoded(claims())}.",
    "no signature": lambda s: s.issuer.token(SUBJECT).rpartition(".")[0] + ".",
    "HS256 with the public key": lambda s: with_hmac(s, pem),
    "HS256 with the public JWK": lambda s: with_hmac(s, lambda k: ECAlgorithm.to_jwk(k).encode()),
    "another algorithm of the key": lambda s: s.issuer.token(SUBJECT).replace(
        s.issuer.token(SUBJECT).split(".")[0], encoded({"alg": "ES384", "kid": s.issuer.kid})
    ),
    "another audience": lambda s: s.issuer.token(SUBJECT, aud="another"),
    "no audience": lambda s: s.issuer.token(SUBJECT, aud=None),
    "another issuer": lambda s: s.issuer.token(SUBJECT, iss="https://evil.example.com/"),
    "no issuer": lambda s: s.issuer.token(SUBJECT, iss=None),
    "expired": lambda s: s.issuer.token(SUBJECT, exp=NOW - 60),
    "never expires": lambda s: s.issuer.token(SUBJECT, exp=None),
    "expires at no number": lambda s: s.issuer.token(SUBJECT, exp="soon"),
    "not yet valid": lambda s: s.issuer.token(SUBJECT, nbf=NOW + 600),
    "issued in the future": lambda s: s.issuer.token(SUBJECT, iat=NOW + 600),
    "no subject": lambda s: s.issuer.token(SUBJECT, sub=None),
    "a subject that is no text": lambda s: altered(s.issuer.token(SUBJECT), sub=7),
    "an empty subject": lambda s: s.issuer.token(""),
    "a subject with a line break": lambda s: s.issuer.token("a\r\nX-Actor-Scopes: admin"),
    "a subject beyond ASCII": lambda s: s.issuer.token("Zoë"),
    "an altered subject": lambda s: altered(s.issuer.token(SUBJECT), sub=str(uuid4())),
    "an altered scope": lambda s: altered(s.issuer.token(SUBJECT), scope="read write admin"),
    "jwk, of a stranger": lambda s: by_stranger(s, jwk=True),
    "jku, of a stranger": lambda s: by_stranger(s, jku="https://evil.example.com/keys"),
    "x5u, of a stranger": lambda s: by_stranger(s, x5u="https://evil.example.com/cert"),
    "a known key id, of a stranger": by_stranger,
    "an unknown key id": lambda s: by_stranger(s, kid="unknown"),
    "a path for a key id": lambda s: by_stranger(s, kid="../../../dev/null"),
    "jku, signed": lambda s: signed(s, {"jku": "https://evil.example.com/keys"}),
    "crit, signed": lambda s: signed(s, {"crit": ["exp"]}),
    "9 KiB": lambda s: s.issuer.token(SUBJECT, padding="x" * 9 * 1024),
    "100 KiB of dots": lambda _: "." * 100 * 1024,
    "two tokens": lambda s: f"{s.issuer.token(SUBJECT)},{s.issuer.token(SUBJECT)}",
    "no token": lambda _: "password",
    "deep JSON": lambda _: f"{base64.urlsafe_b64encode(b'[' * 5000).decode()}.e30.e30",
}  # fmt: skip


@pytest.mark.parametrize("forge", FORGED.values(), ids=FORGED.keys())
def test_a_forged_token_is_refused(setting: Setting, forge: Callable[[Setting], str]) -> None:
    assert not setting.accepts(forge(setting))
    assert setting.accepts(setting.issuer.token(SUBJECT))


def test_a_verified_caller_has_its_user_and_scopes(setting: Setting) -> None:
    caller = setting.tokens.verify(setting.issuer.token(SUBJECT, "openid read admin delete"))
    assert (caller.actor, caller.user) == (f"sub:{SUBJECT}", SUBJECT)
    assert caller.scopes == {"read", "admin"}
    listed = setting.tokens.verify(setting.issuer.token("ada", None, scp=["write"]))  # type: ignore[arg-type]
    assert (listed.actor, listed.user) == ("sub:ada", "")
    assert listed.scopes == {"write"}


def test_another_claim_may_have_the_users_id(setting: Setting) -> None:
    verifier = Tokens(setting.keys, ISSUER, AUDIENCE, "user_id")
    caller = verifier.verify(setting.issuer.token("ada", user_id=SUBJECT.upper()))
    assert (caller.actor, caller.user) == ("sub:ada", SUBJECT)


def test_no_symmetric_key_of_a_set_is_used() -> None:
    key = {"kty": "oct", "k": "c2VjcmV0" * 8, "kid": "shared"}
    with pytest.raises(ValueError, match="no key"):
        tokens._parse(json.dumps({"keys": [key]}).encode())


def test_while_the_issuer_is_away_its_keys_stay(setting: Setting) -> None:
    setting.issuer.is_away = True
    for _ in range(3600):
        setting.time.seconds += 1
        setting.keys.refresh()
    assert setting.accepts(setting.issuer.token(SUBJECT))
    assert setting.issuer.asked == 1 + 3600 / tokens.FETCH_TIME


@pytest.mark.parametrize("answer", [b"<html>", b"[]", b'{"keys": []}', b'{"keys": [7]}', b"\xff"])
def test_an_answer_without_keys_changes_nothing(setting: Setting, answer: bytes) -> None:
    keys = Keys("https://keys", setting.time.clock(), lambda _: answer)
    keys.known = setting.keys.known
    keys.refresh()
    assert keys.known == setting.keys.known


def test_another_key_is_known_within_the_fetch_time_and_the_old_one_refused(
    setting: Setting,
) -> None:
    old = setting.issuer.token(SUBJECT)
    assert setting.accepts(old)
    setting.issuer.rotate()
    new = setting.issuer.token(SUBJECT)
    assert not setting.accepts(new)
    setting.time.seconds += tokens.FETCH_TIME
    setting.keys.refresh()
    assert setting.accepts(new)
    assert not setting.accepts(old)  # though it was verified a moment ago


def test_a_token_may_expire_after_more_seconds_than_a_float_holds(setting: Setting) -> None:
    caller = setting.tokens.verify(signed(setting, {}, exp=10**400))
    assert caller.actor == f"sub:{SUBJECT}"


def test_a_flood_of_unknown_key_ids_fetches_nothing(setting: Setting) -> None:
    for number in range(1000):
        assert not setting.accepts(by_stranger(setting, kid=f"unknown-{number}"))
        setting.keys.refresh()
    assert setting.issuer.asked == 1


def test_until_keys_are_known_no_token_is_verified_and_none_refused() -> None:
    issuer = Issuer()
    verifier = Tokens(Keys("https://keys", fetch=issuer.fetch), ISSUER, AUDIENCE)
    with pytest.raises(KeysUnknown):
        verifier.verify(issuer.token(SUBJECT))


def test_a_verified_token_is_not_verified_again_until_it_expires(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    verified: list[str] = []
    decode = jwt.decode

    def count(token: str, *args: Any, **more: Any) -> Any:
        verified.append(token)
        return decode(token, *args, **more)

    monkeypatch.setattr(jwt, "decode", count)
    long, short = setting.issuer.token(SUBJECT), setting.issuer.token(SUBJECT, exp=time.time() + 20)
    for _ in range(3):
        assert setting.accepts(long)
        assert setting.accepts(short)
    assert len(verified) == 2
    setting.time.seconds += 21
    setting.accepts(short)
    assert len(verified) == 3
    setting.time.seconds += tokens.CACHE_TIME
    setting.accepts(long)
    assert len(verified) == 4


def test_the_cache_is_bounded(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "CACHE_SIZE", 3)
    for number in range(10):
        assert setting.accepts(setting.issuer.token(f"user-{number}"))
    assert len(setting.tokens._cache) == 3


def test_keys_are_read_from_a_file(tmp_path: Path) -> None:
    issuer, file = Issuer(), tmp_path / "keys.json"
    file.write_bytes(issuer.published())
    keys = Keys(str(file))
    keys.refresh()
    assert Tokens(keys, ISSUER, AUDIENCE).verify(issuer.token(SUBJECT)).user == SUBJECT
