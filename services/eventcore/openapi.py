"""The OpenAPI 3.1 document of a service, made of the very models that validate.

The only file that imports openapi-pydantic.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from openapi_pydantic import OpenAPI
from openapi_pydantic.util import PydanticSchema, construct_open_api_with_schema_class
from pydantic import BaseModel, ConfigDict, Field

HEADERS = {
    "Idempotency-Key": "Makes the request safe to repeat: for 24 hours the same key and body"
    " give the same answer, and nothing is done twice.",
    "If-Match": 'The ETag that the change is based on, such as "3"; another version: 412.',
    "If-None-Match": "The ETag that the caller has; unchanged: 304, without a body.",
    "X-Request-ID": "This request's id, up to 128 letters, digits, '.', '_', ':' and '-'; made"
    " where it is missing or has another form, always returned.",
    "X-Correlation-ID": "The id of what the caller is doing, in the same form; stored with every"
    " event.",
}
"""What each header is for; a route names those it takes."""

HEADER_SCHEMAS: Mapping[str, Mapping[str, Any]] = {
    "Idempotency-Key": {"type": "string", "pattern": "^[!-~]{1,255}$"},
    "If-Match": {
        "type": "string",
        "pattern": r'^(\*|(W/)?"[^",]*"(\s*,\s*(W/)?"[^",]*")*)$',
    },
    "If-None-Match": {"type": "string"},
    "X-Request-ID": {"type": "string"},
    "X-Correlation-ID": {"type": "string"},
}
"""What a header must be; where there is no pattern, whatever comes is taken or passed over."""


class FieldProblem(BaseModel):
    """One thing that is wrong with one field."""

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
    503: "A server is away; nothing was lost, try again after Retry-After seconds",
    504: "The service did not answer in time; whether it was done is not known",
}


@dataclass(frozen=True)
class Operation:
    """One call: what it takes, and what it answers. `path` writes an id as `{id}`."""

    method: str
    path: str
    summary: str
    answers: Mapping[int, type[BaseModel]]
    body: type[BaseModel] | None = None
    body_required: bool = True
    query: type[BaseModel] | None = None
    headers: Sequence[str] = ()
    problems: Sequence[int] = ()
    tag: str = ""


def build(title: str, version: str, operations: Iterable[Operation]) -> bytes:
    """The document, as JSON text."""
    paths: dict[str, dict[str, Any]] = {}
    for operation in operations:
        paths.setdefault(operation.path, {})[operation.method.lower()] = _describe(operation)
    document = OpenAPI.model_validate(
        {"openapi": "3.1.1", "info": {"title": title, "version": version}, "paths": paths}
    )
    full = construct_open_api_with_schema_class(document)
    return full.model_dump_json(
        by_alias=True, exclude_unset=True, exclude_none=True, indent=1
    ).encode()


def merge(title: str, documents: Iterable[bytes], problems: Sequence[int] = ()) -> bytes:
    """One document of several: their paths and schemas side by side.

    `problems` are those that every call may meet besides its own.
    """
    merged: dict[str, Any] = {}
    for document in map(json.loads, documents):
        if not merged:
            merged = document
            merged["info"]["title"] = title
            continue
        for path, item in document["paths"].items():
            merged["paths"].setdefault(path, item)
        merged["components"]["schemas"].update(document["components"]["schemas"])
    schema = {"$ref": "#/components/schemas/Problem"}
    for item in merged["paths"].values():
        for operation in item.values():
            operation["responses"] |= {str(each): _problem(each, schema) for each in problems}
    return json.dumps(merged, indent=1).encode()


def _describe(operation: Operation) -> dict[str, Any]:
    described: dict[str, Any] = {
        "summary": operation.summary,
        "operationId": _operation_id(operation),
        "parameters": [*_path(operation), *_query(operation), *_headers(operation)],
        "responses": {**_answers(operation), **_problems(operation)},
    }
    if operation.tag:
        described["tags"] = [operation.tag]
    if operation.body:
        described["requestBody"] = {
            "required": operation.body_required,
            "content": {"application/json": {"schema": _schema(operation.body)}},
        }
    return described


def _schema(model: type[BaseModel]) -> Any:
    return PydanticSchema(schema_class=model)  # type: ignore[call-arg]


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
    """A query parameter is there or not; it cannot be null."""
    choices = [each for each in schema.pop("anyOf", ()) if each.get("type") != "null"]
    if schema.get("default") is None:
        schema.pop("default", None)
    schema.pop("title", None)
    return {**schema, **(choices[0] if choices else {})}


def _headers(operation: Operation) -> list[dict[str, Any]]:
    names = [*operation.headers, "X-Request-ID", "X-Correlation-ID"]
    return [
        {
            "name": name,
            "in": "header",
            "required": False,
            "description": HEADERS[name],
            "schema": HEADER_SCHEMAS[name],
        }
        for name in names
    ]


def _answers(operation: Operation) -> dict[str, Any]:
    return {
        str(status): {
            "description": (model.__doc__ or operation.summary).splitlines()[0],
            "content": {"application/json": {"schema": _schema(model)}},
        }
        for status, model in operation.answers.items()
    } | ({"304": {"description": "Unchanged"}} if "If-None-Match" in operation.headers else {})


def _problems(operation: Operation) -> dict[str, Any]:
    statuses = {*operation.problems, 400, 503}
    if operation.body:
        statuses |= {413, 415, 422}
    if _path(operation):
        statuses.add(404)
    schema = _schema(Problem)
    return {str(status): _problem(status, schema) for status in sorted(statuses)}


def _problem(status: int, schema: Any) -> dict[str, Any]:
    return {
        "description": PROBLEMS[status],
        "content": {"application/problem+json": {"schema": schema}},
    }
