"""The calls of a gateway that verifies callers, as its document describes them.

The whole system is in this process, on fakes.
"""

import json
import re
from typing import Any
from uuid import uuid4

import pytest
import schemathesis
from schemathesis import Case
from schemathesis.config import SchemathesisConfig
from schemathesis.core.parameters import ParameterLocation

from eventcore.web.inputs import UUID_PATTERN
from tests.fakes.guarded import Guarded

GUARDED = Guarded()

USER, OWN = GUARDED.person()

ORDER = GUARDED.order(USER, OWN)

ADMIN = GUARDED.issuer.token("root", "read write admin")

DOCUMENT = json.loads(GUARDED.client.get("/openapi.json").data)

CONFIG: dict[str, Any] = {
    "seed": 1,
    "suppress-health-check": ["too_slow"],
    "generation": {"max-examples": 15, "deterministic": True, "database": "none"},
    "checks": {
        "positive_data_acceptance": {
            "expected-statuses": ["2xx", "304", "403", "404", "409", "412", "422"]
        },
        # others' things do not exist: a user's refusals are not those that an admin meets
        "max_response_time": 10,
    },
}

schema = schemathesis.openapi.from_dict(DOCUMENT, config=SchemathesisConfig.from_dict(CONFIG))
schema.app = GUARDED.app


@pytest.mark.parametrize("token", [ADMIN, OWN], ids=["admin", "user"])
@schema.parametrize()
def test_every_call_with_a_credential_does_what_is_written(case: Case[Any], token: str) -> None:
    make_sensible(case)
    case.call_and_validate(headers={"Authorization": f"Bearer {token}"})


@schema.parametrize()
def test_every_call_without_a_credential_is_a_401(case: Case[Any]) -> None:
    make_sensible(case)
    case.headers.pop("Authorization", None)
    answer = case.call()
    if case.method == "OPTIONS":  # it lists methods, and a browser's preflight has no credential
        assert answer.content == b""
        return
    assert answer.status_code in (401, 404, 405)  # 404: the path is no call's
    if answer.status_code == 401:
        assert answer.headers["www-authenticate"][0].startswith("Bearer")
        case.validate_response(answer, excluded_checks=EXCLUDED)


EXCLUDED: list[Any] = [
    schemathesis.checks.CHECKS.get_one("positive_data_acceptance"),
    schemathesis.checks.CHECKS.get_one("ignored_auth"),
]


def make_sensible(case: Case[Any]) -> None:
    """Gives a request the ids of what exists, and a key of its own."""
    path_id = str(case.path_parameters.get("id", ""))
    if re.fullmatch(UUID_PATTERN, path_id) and path_id[-1] not in "048c":
        case.path_parameters["id"] = ORDER if "/orders" in case.path else USER
    if isinstance(case.body, dict) and re.fullmatch(UUID_PATTERN, str(case.body.get("userId"))):
        case.body["userId"] = USER
    case.headers.pop("Consistency-Token", None)
    key = str(case.headers.get("Idempotency-Key", ""))
    if re.fullmatch("[!-~]{1,255}", key):
        case.headers["Idempotency-Key"] = f"{uuid4()}{key}"[:255]
    if case.headers.get("If-Match") == "0":
        case.headers["If-Match"] = "*"
    assert case.meta
    query = case.meta.components.get(ParameterLocation.QUERY)
    if query is not None and query.mode.is_positive and "version" in case.query:
        case.query.pop("at", None)
