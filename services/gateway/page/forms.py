"""The page's forms: each sends one command of the API, with the form's own Idempotency-Key."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from decimal import Decimal
from http import HTTPStatus
from typing import Any
from urllib.parse import urlencode

from flask import Blueprint, g, redirect, request
from werkzeug.wrappers import Response as AnyResponse

from eventcore.ids import new_id
from gateway.page.services import Reply, Services, segment

_NUMBER = re.compile(r"-?\d{1,15}(\.\d{1,6})?")

ROWS = 5
"""Rows of a form with rows."""


@dataclass(frozen=True, slots=True)
class Filled:
    """The values typed into one form, and the errors in them, by field."""

    form: str = ""
    values: Mapping[str, str] = field(default_factory=dict)
    errors: Mapping[str, str] = field(default_factory=dict)
    key: str = ""
    was: Mapping[str, str] = field(default_factory=dict)
    """The values that the form was rendered with, and its tag; empty: those of now."""
    tag: str = ""
    """The ETag of the document that the form was rendered with."""
    is_stale: bool = False
    """Whether the document was changed since; then `values` are those that were typed anew."""

    def of(self, form: str) -> "Filled":
        """This one, if it is of the form; else an empty one with a new key."""
        return self if self.form == form else Filled(form, key=str(new_id()))


@dataclass(frozen=True, slots=True)
class Form:
    """A command: where it goes, its fields, and the page that shows what it has done.

    A form with rows sends a list of objects under the name `rows`; its fields are those of a row.
    """

    name: str
    service: str
    method: str
    path: str
    fields: tuple[str, ...]
    numbers: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    rows: str = ""
    done: Callable[[Mapping[str, Any], str], str] = lambda _, id: f"/page/users/{id}"

    def values(self, typed: Mapping[str, str]) -> dict[str, str]:
        """The typed values, by the names that the API's errors have; empty rows are left out."""
        if not self.rows:
            return self._of(typed)
        rows = [self._of(typed, f"{self.rows}.{place}.") for place in range(ROWS)]
        filled = enumerate(row for row in rows if any(row.values()))
        return {f"{self.rows}.{n}.{name}": row[name] for n, row in filled for name in row}

    def _of(self, typed: Mapping[str, str], prefix: str = "") -> dict[str, str]:
        return {name: typed.get(prefix + name, "").strip() for name in self.fields}

    def body(self, values: Mapping[str, str]) -> dict[str, object]:
        """The JSON of these values; an empty optional field is null, a number is exact."""
        if not self.rows:
            return self._object(values)
        count = len(values) // len(self.fields)
        rows = (self._of(values, f"{self.rows}.{place}.") for place in range(count))
        return {self.rows: [*map(self._object, rows)]}

    def _object(self, values: Mapping[str, str]) -> dict[str, object]:
        typed: dict[str, object] = dict(values)
        for name in self.numbers:
            if _NUMBER.fullmatch(values.get(name, "")):
                typed[name] = Decimal(values[name])
        return {
            name: None if name in self.optional and not value else value
            for name, value in typed.items()
        }


FORMS = (
    Form(
        "user", "user", "POST", "/users", ("name", "email"),
        done=lambda body, _: f"/page/users/{body['userId']}",
    ),
    Form(
        "order", "order", "POST", "/orders", ("userId", "item", "price"), numbers=("price",),
        done=lambda body, _: f"/page/orders/{body['orderId']}",
    ),
    Form(
        "batch", "order", "POST", "/orders/batch", ("userId", "item", "price"),
        numbers=("price",), rows="orders",
        done=lambda body, _: f"/page?{urlencode({'placed': body['orderIds']}, doseq=True)}",
    ),
    Form("change", "user", "PUT", "/users/{id}", ("name", "email")),
    Form(
        "limit", "user", "PUT", "/users/{id}/credit-limit", ("limit",), numbers=("limit",),
        optional=("limit",),
    ),
    Form(
        "cancel", "order", "POST", "/orders/{id}/cancel", ("reason",), optional=("reason",),
        done=lambda _, id: f"/page/orders/{id}",
    ),
)  # fmt: skip
"""A form for each command."""

_REPEATED = {
    "user": "This user had been created before: no new one was created now.",
    "order": "This order had been placed before: no new one was placed now.",
    "batch": "These orders had been placed before: no new ones were placed now.",
}


def repeated() -> str:
    """A sentence about the form that led here, if it had been sent before; else ""."""
    form = request.args.get("repeated", "")
    known = any(each.name == form for each in FORMS)
    return _REPEATED.get(form, "This form had been sent before: nothing was done now.") * known


Again = Callable[[Filled, str], Any]
"""Shows the page with a form once more; the second argument is the id in the path, or ""."""


def add_forms(pages: Blueprint, services: Services, again: Mapping[str, Again]) -> None:
    """Adds the routes of FORMS; one that is refused is shown `again` with its errors."""
    for form in FORMS:
        rule = "/page" + form.path.replace("{id}", "<id>")
        view = _view(form, services, again[form.name])
        pages.add_url_rule(rule, f"send_{form.name}", view, methods=["POST"])


def _view(form: Form, services: Services, again: Again) -> Callable[..., Any]:
    def send(id: str = "") -> AnyResponse | tuple[str, int]:
        typed = _typed(form)
        changed = {n: v for n, v in typed.values.items() if typed.was.get(n) != v}
        path, body = form.path.replace("{id}", segment(id)), form.body(changed)
        reply = services.send(form.service, form.method, path, body, typed.key, typed.tag)
        if reply.ok:
            repeated = form.name if reply.is_replayed else ""
            place = _with(form.done(reply.body, id), seen=reply.seen, repeated=repeated)
            return redirect(place, 303)
        g.seen = reply.seen
        key = _next_key(reply, typed.key)
        if reply.status == HTTPStatus.PRECONDITION_FAILED:
            return again(Filled(form.name, changed, key=key, is_stale=True), id), reply.status
        return again(replace(typed, errors=reply.errors(typed.values), key=key), id), reply.status

    return send


def _with(place: str, **parameters: str) -> str:
    """A path with more parameters, without those that are empty."""
    more = urlencode({name: value for name, value in parameters.items() if value})
    return f"{place}{'&' if '?' in place else '?'}{more}" if more else place


def _typed(form: Form) -> Filled:
    """The values that were sent, and those that the form was rendered with."""
    sent = request.form
    was = {n: sent[f"was.{n}"].strip() for n in form.fields if f"was.{n}" in sent}
    key = sent.get("key") or str(new_id())
    return Filled(form.name, form.values(sent), {}, key, was, sent.get("tag", ""))


def _next_key(reply: Reply, key: str) -> str:
    """The same key while it is not known whether the command was done; else a new one."""
    return key if reply.status >= 500 else str(new_id())
