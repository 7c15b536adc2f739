"""The OpenAPI 3.1 document of a service, generated from the models that validate requests."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.json_schema import models_json_schema

HEADERS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "Idempotency-Key": (
        "Makes the request safe to repeat: for 24 hours the same key and body give the same"
        " answer, and nothing is done twice.",
        {"type": "string", "pattern": "^[!-~]{1,255}$"},
    ),
    "If-Match": (
        "The ETag that the change is based on, as it was answered. Its version is compared;"
        " another version: 412.",
        {"type": "string", "pattern": r'^(\*|(W/)?"[^",]*"(\s*,\s*(W/)?"[^",]*")*)$'},
    ),
    "If-None-Match": (
        "The ETag that the caller has; unchanged: 304, without a body.",
        {"type": "string"},
    ),
    "X-Request-ID": (
        "The id of this request, up to 128 letters, digits, '.', '_', ':' and '-'. Any other"
        " value is replaced by a new id. Every answer has it.",
        {"type": "string"},
    ),
    "X-Correlation-ID": (
        "The id of the process that this request belongs to, in the same form. Every event"
        " stores it.",
        {"type": "string"},
    ),
}
"""Description and schema of each request header."""


class FieldProblem(BaseModel):
    """Describes the error of one field."""

    field: str
    reason: str


class Problem(BaseModel):
    """Why a request was not done, and what to do (RFC 9457)."""

    model_config = ConfigDict(json_schema_serialization_defaults_required=False)

    type: str
    title: str
    status: int
    detail: str
    requestId: str
    errors: list[FieldProblem] = Field(default_factory=list)


PROBLEMS = {
    400: "The request cannot be read",
    401: "A token is needed",
    404: "There is no such thing",
    409: "Others kept changing it; try again",
    412: "It is not at the version in If-Match",
    413: "The body is over 64 KiB",
    415: "The body is not application/json",
    422: "A rule is broken",
    502: "The service was reached but did not answer; whether it was done is not known",
    503: "A server is unavailable; try again after Retry-After seconds",
    504: "There was no answer in time; whether it was done is not known",
}

Mode = Literal["validation", "serialization"]


@dataclass(frozen=True)
class Operation:
    """One call: its input and its answers. `path` writes an id as `{id}`."""

    method: str
    path: str
    summary: str
    answers: Mapping[int, type[BaseModel]]
    body: type[BaseModel] | None = None
    body_required: bool = True
    query: type[BaseModel] | None = None
    tag: str = ""

    @property
    def is_command(self) -> bool:
        """Whether the call changes something."""
        return self.method != "GET"

    @property
    def has_id(self) -> bool:
        """Whether the path names one aggregate."""
        return "{" in self.path

    @property
    def headers(self) -> Sequence[str]:
        """The request headers that have a meaning here."""
        if not self.is_command:
            own = ["If-None-Match"]
        else:
            own = ["Idempotency-Key", "If-Match"] if self.has_id else ["Idempotency-Key"]
        return [*own, "X-Request-ID", "X-Correlation-ID"]

    @property
    def problems(self) -> Sequence[int]:
        """The statuses of all refusals."""
        statuses = {400, 503}
        statuses |= {404} if self.has_id else set()
        statuses |= {409, 422, 504} if self.is_command else set()
        statuses |= {412} if self.is_command and self.has_id else set()
        statuses |= {413, 415} if self.body else set()
        statuses |= {422} if self.query else set()
        return sorted(statuses)

    @property
    def models(self) -> Sequence[tuple[type[BaseModel], Mode]]:
        """All models of bodies."""
        models: list[tuple[type[BaseModel], Mode]] = [(Problem, "serialization")]
        models += [(model, "serialization") for model in self.answers.values()]
        return [*models, (self.body, "validation")] if self.body else models


References = Mapping[tuple[Any, Mode], Mapping[str, Any]]


def build(title: str, version: str, description: str, operations: Iterable[Operation]) -> bytes:
    """The document, as JSON text."""
    listed = list(operations)
    models = {each: None for operation in listed for each in operation.models}
    references, definitions = models_json_schema(
        list(models), ref_template="#/components/schemas/{model}"
    )
    paths: dict[str, dict[str, Any]] = {}
    for each in listed:
        paths.setdefault(each.path, {})[each.method.lower()] = _describe(each, references)
    return _render(
        {
            "openapi": "3.1.1",
            "info": {"title": title, "version": version, "description": description},
            "paths": paths,
            "components": {"schemas": definitions.get("$defs", {})},
        }
    )


def merge(
    title: str, description: str, documents: Iterable[bytes], problems: Sequence[int] = ()
) -> bytes:
    """One document of several: their paths and schemas side by side.

    `problems` are those that every call may meet besides its own.
    """
    parts = [json.loads(each) for each in documents]
    merged: dict[str, Any] = {
        **parts[0],
        "info": {**parts[0]["info"], "title": title, "description": description},
        "paths": {path: item for part in reversed(parts) for path, item in part["paths"].items()},
        "components": {
            "schemas": {
                name: schema
                for part in parts
                for name, schema in part["components"]["schemas"].items()
            }
        },
    }
    schema = {"$ref": "#/components/schemas/Problem"}
    for item in merged["paths"].values():
        for operation in item.values():
            operation["responses"] |= {str(each): _problem(each, schema) for each in problems}
    return _render(merged)


def _render(document: Mapping[str, Any]) -> bytes:
    return json.dumps(document, indent=1).encode()


def _describe(operation: Operation, references: References) -> dict[str, Any]:
    described: dict[str, Any] = {
        "summary": operation.summary,
        "operationId": _operation_id(operation),
        "parameters": [*_path(operation), *_query(operation), *_headers(operation)],
        "responses": {**_answers(operation, references), **_problems(operation, references)},
    }
    if operation.tag:
        described["tags"] = [operation.tag]
    if operation.body:
        schema = references[operation.body, "validation"]
        described["requestBody"] = {
            "required": operation.body_required,
            "content": {"application/json": {"schema": schema}},
        }
    return described


def _operation_id(operation: Operation) -> str:
    words = re.findall(r"[A-Za-z]+", operation.path)
    return operation.method.lower() + "".join(word.title() for word in words)


def _path(operation: Operation) -> list[dict[str, Any]]:
    names = re.findall(r"{(\w+)}", operation.path)
    schema = {"type": "string", "format": "uuid"}
    return [{"name": n, "in": "path", "required": True, "schema": schema} for n in names]


def _query(operation: Operation) -> list[dict[str, Any]]:
    if operation.query is None:
        return []
    properties = operation.query.model_json_schema(by_alias=True)["properties"]
    return [
        {
            "name": name,
            "in": "query",
            "required": False,
            "description": schema.pop("description", ""),
            "schema": _without_null(schema),
        }
        for name, schema in properties.items()
    ]


def _without_null(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema of a parameter, which may be absent but cannot be null."""
    choices = [each for each in schema.pop("anyOf", ()) if each.get("type") != "null"]
    if schema.get("default") is None:
        schema.pop("default", None)
    schema.pop("title", None)
    return {**schema, **(choices[0] if choices else {})}


def _headers(operation: Operation) -> list[dict[str, Any]]:
    return [
        {"name": name, "in": "header", "required": False, "description": text, "schema": schema}
        for name in operation.headers
        for text, schema in (HEADERS[name],)
    ]


def _answers(operation: Operation, references: References) -> dict[str, Any]:
    answers: dict[str, Any] = {
        str(status): {
            "description": (model.__doc__ or operation.summary).splitlines()[0],
            "content": {"application/json": {"schema": references[model, "serialization"]}},
        }
        for status, model in operation.answers.items()
    }
    return answers if operation.is_command else answers | {"304": {"description": "Unchanged"}}


def _problems(operation: Operation, references: References) -> dict[str, Any]:
    schema = references[Problem, "serialization"]
    return {str(status): _problem(status, schema) for status in operation.problems}


def _problem(status: int, schema: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "description": PROBLEMS[status],
        "content": {"application/problem+json": {"schema": schema}},
    }
