"""The OpenAPI document: what it says is what the running gateway does, and no more than that.

The document is made here as the gateway makes it, so that each of its calls is a test of its
own; that the gateway serves this very document is a test as well.
"""

import json
import re
from collections import defaultdict
from collections.abc import Iterator
from html.parser import HTMLParser
from typing import Any
from uuid import uuid4

import jsonschema_rs
import pytest
import requests
import schemathesis
import urllib3
from flask import Flask
from schemathesis import Case
from schemathesis.config import SchemathesisConfig
from schemathesis.core.parameters import ParameterLocation

from eventcore.web import openapi
from eventcore.web.inputs import UUID_PATTERN
from gateway.api import ABOUT
from local.shop import Shop
from order.customer_queries import PLACE
from tests.fakes.shop import FakeShop

FAKE = FakeShop()
SERVICES: dict[str, Flask] = {
    "user-service": FAKE.users.application,
    "order-service": FAKE.orders.application,
}
OWN = re.compile(r"/(|healthz|readyz|metrics|openapi\.json|docs|docs/.*|internal/.*)")
"""What a service answers besides its calls."""


def described_by(app: Flask) -> bytes:
    return bytes(app.test_client().get("/openapi.json").data)


DOCUMENT = json.loads(
    openapi.merge("Shop", ABOUT, map(described_by, SERVICES.values()), problems=(502, 504))
)

# Every check is on. The seed makes CI see the same requests each time; coverage comes on top
# of the 40 that are made up at random for each call.
schema = schemathesis.openapi.from_dict(
    DOCUMENT,
    config=SchemathesisConfig.from_dict(
        {
            "seed": 1,
            "suppress-health-check": ["too_slow"],  # which is about this machine, not the API
            "generation": {"max-examples": 40, "deterministic": True, "database": "none"},
            "checks": {
                # By default any 5xx, 401, 403, 409 and 429 would do as well.
                "positive_data_acceptance": {"expected-statuses": ["2xx", "304", "404"]},
                "max_response_time": 10,
            },
            "operations": [
                {
                    # A well-formed If-Match may name another version.
                    "include-operation-id": [
                        "putUsersId",
                        "putUsersIdCreditLimit",
                        "postOrdersIdCancel",
                    ],
                    "checks": {
                        "positive_data_acceptance": {"expected-statuses": ["2xx", "404", "412"]}
                    },
                }
            ],
        }
    ),
)

answered: dict[str, set[int]] = defaultdict(set)
"""The statuses that each call has been answered with."""


class Existing:
    """A user and an order for the requests to be about."""

    def __init__(self, gateway: str, session: requests.Session) -> None:
        self._gateway = gateway
        self._session = session
        self.user_id = self._post("/users", {"name": "Ada", "email": "ada@example.com"})["userId"]
        order = {"userId": self.user_id, "item": "Laptop", "price": 19.99}
        self.order_id = self._post("/orders", order)["orderId"]

    def _post(self, path: str, body: dict[str, Any]) -> dict[str, str]:
        answer = self._session.post(self._gateway + path, json=body)
        assert answer.ok, answer.text
        self.token = answer.headers["Consistency-Token"]
        found: dict[str, str] = answer.json()
        return found


@pytest.fixture(scope="module", autouse=True)
def _all_up(shop: Shop) -> None:
    """Looked after once: nothing here leaves anything down."""
    shop.start()


@pytest.fixture(scope="module")
def session() -> Iterator[requests.Session]:
    with requests.Session() as session:
        yield session


@pytest.fixture(scope="module")
def existing(shop: Shop, session: requests.Session) -> Existing:
    return Existing(shop.url("gateway"), session)


@schema.parametrize()
def test_every_call_does_what_is_written_and_refuses_what_is_not(
    case: Case[Any], shop: Shop, session: requests.Session, existing: Existing
) -> None:
    make_sensible(case, existing)
    answer = case.call_and_validate(base_url=shop.url("gateway"), session=session)
    if case.method == case.operation.method.upper():
        answered[case.operation.label].add(answer.status_code)


def make_sensible(case: Case[Any], existing: Existing) -> None:
    """Give a request what a schema cannot express, so that it gets further than a 404.

    What is wrong on purpose is left alone, and so is one id in four.
    """
    is_order = "/orders" in case.path
    path_id = str(case.path_parameters.get("id", ""))
    if re.fullmatch(UUID_PATTERN, path_id) and path_id[-1] not in "048c":
        case.path_parameters["id"] = existing.order_id if is_order else existing.user_id
    for body in bodies(case.body):
        if re.fullmatch(UUID_PATTERN, str(body.get("userId"))):
            # anybody else's order is a 422, as test_http_limits.py shows
            body["userId"] = existing.user_id
    if is_positive(case, ParameterLocation.QUERY) and "version" in case.query:
        case.query.pop("at", None)  # the one or the other
    if PLACE.pattern.fullmatch(str(case.query.get("after", ""))):  # its value depends on `sort`
        case.query["after"] = f"1_{existing.user_id}"
    key = str(case.headers.get("Idempotency-Key", ""))
    if re.fullmatch("[!-~]{1,255}", key):  # one of another request would be refused, rightly
        case.headers["Idempotency-Key"] = f"{uuid4()}{key}"[:255]
    if re.fullmatch("[A-Za-z0-9_-]{1,1024}", str(case.headers.get("Consistency-Token", ""))):
        case.headers["Consistency-Token"] = existing.token  # the schema cannot say which are
    if case.headers.get("If-Match") == "0":  # the coverage phase takes this to match the pattern
        case.headers["If-Match"] = "*"


def bodies(body: object) -> list[dict[str, Any]]:
    """The body of a request, and those of the orders of a batch."""
    orders = body.get("orders") if isinstance(body, dict) else None
    return [
        each for each in (body, *(orders if isinstance(orders, list) else ()))
        if isinstance(each, dict)
    ]  # fmt: skip


def is_positive(case: Case[Any], location: ParameterLocation) -> bool:
    assert case.meta
    component = case.meta.components.get(location)
    return component is not None and component.mode.is_positive


@pytest.mark.parametrize(
    "label",
    [f"{method.upper()} {path}" for path, item in DOCUMENT["paths"].items() for method in item],
)
def test_those_requests_met_success_and_refusal_alike(label: str) -> None:
    if label not in answered:
        pytest.skip("needs the test before it")
    assert answered[label] & {200, 202}
    assert answered[label] & {400, 404, 422}


# ── the document ──────────────────────────────────────────────────────────────────────────


def test_the_document_is_valid() -> None:
    assert DOCUMENT["openapi"].startswith("3.1.")
    schema.validate()
    for model in DOCUMENT["components"]["schemas"].values():
        jsonschema_rs.meta.validate(model)


def test_the_gateway_serves_this_document(shop: Shop) -> None:
    served = urllib3.request("GET", f"{shop.url('gateway')}/openapi.json")
    assert served.status == 200
    assert served.headers["Content-Type"] == "application/json"
    assert served.json() == DOCUMENT


@pytest.mark.parametrize("service", SERVICES)
def test_a_service_serves_its_own_part_of_it(shop: Shop, service: str) -> None:
    served = urllib3.request("GET", f"{shop.url(service)}/openapi.json").json()
    assert served["paths"] == json.loads(described_by(SERVICES[service]))["paths"]


@pytest.mark.parametrize("service", SERVICES)
def test_a_service_routes_what_its_document_names_and_nothing_else(service: str) -> None:
    app = SERVICES[service]
    routed = {
        (re.sub(r"<(?:\w+:)?(\w+)>", r"{\1}", rule.rule), method)
        for rule in app.url_map.iter_rules()
        for method in rule.methods or ()
        if method not in ("HEAD", "OPTIONS") and not OWN.fullmatch(rule.rule)
    }
    documented = {
        (path, method.upper())
        for path, item in json.loads(described_by(app))["paths"].items()
        for method in item
    }
    assert routed == documented


@pytest.mark.parametrize("path", DOCUMENT["paths"])
def test_the_gateway_allows_the_methods_that_are_documented_for_a_path(
    shop: Shop, path: str
) -> None:
    url = shop.url("gateway") + path.replace("{id}", str(uuid4()))
    answer = urllib3.request("OPTIONS", url)
    assert answer.status == 200
    allowed = set(re.split(r",\s*", answer.headers["Allow"]))
    documented = {method.upper() for method in DOCUMENT["paths"][path]}
    assert allowed - {"HEAD", "OPTIONS"} == documented


def test_calls_have_names_of_their_own() -> None:
    names = [o["operationId"] for item in DOCUMENT["paths"].values() for o in item.values()]
    assert len(names) == len(set(names))


# ── the page ──────────────────────────────────────────────────────────────────────────────


class Links(HTMLParser):
    """Whatever a page loads or leads to."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.inline = 0
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [value or "" for name, value in attrs if name in ("src", "href", "srcset")]
        self.inline += tag in ("script", "style") and not any(name == "src" for name, _ in attrs)


@pytest.mark.parametrize("name", ["gateway", *SERVICES])
def test_the_page_to_try_it_loads_nothing_from_elsewhere(shop: Shop, name: str) -> None:
    page = urllib3.request("GET", f"{shop.url(name)}/docs")
    assert (page.status, page.headers["Content-Type"]) == (200, "text/html; charset=utf-8")
    policy = dict(
        directive.strip().split(" ", 1)
        for directive in page.headers["Content-Security-Policy"].split(";")
    )
    assert policy["default-src"] == policy["script-src"] == "'self'"
    assert {source for each in policy.values() for source in each.split()} <= {
        "'self'", "'unsafe-inline'", "data:",
    }  # fmt: skip

    links = Links(page.data.decode())
    assert not links.inline
    kinds = {}
    for link in links.found:
        assert re.fullmatch(r"(docs/)?[a-z.-]+", link)
        loaded = urllib3.request("GET", f"{shop.url(name)}/{link}")
        assert loaded.status == 200
        assert not re.search(rb"@import|url\(\s*[\"']?(https?:)?//", loaded.data[:100_000])
        kinds[link] = loaded.headers["Content-Type"].split(";")[0]
    assert kinds == {
        "asyncapi.json": "application/json",
        "docs/start.js": "text/javascript",
        "docs/swagger-ui-bundle.js": "text/javascript",
        "docs/swagger-ui.css": "text/css",
    }
    start = urllib3.request("GET", f"{shop.url(name)}/docs/start.js").data.decode()
    assert re.findall(r'url: "([^"]*)"', start) == ["openapi.json"]


@pytest.mark.parametrize(
    "asset", ["x", "..%2fweb.py", "..%2f..%2fweb.py", "swagger-ui.css.map", "oauth2-redirect.html"]
)
def test_the_page_has_no_other_files(shop: Shop, asset: str) -> None:
    assert urllib3.request("GET", f"{shop.url('gateway')}/docs/{asset}").status == 404
