"""The OpenAPI 3.1 document of a service, generated from the models that validate requests."""

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.json_schema import models_json_schema

HEADERS: Mapping[str, tuple[str, str | None]] = {
    "Idempotency-Key": (
        "Makes the request safe to repeat: for 24 hours the same key and body give the same"
        " answer, and nothing is done twice.",
        "^[!-~]{1,255}$",
    ),
    "If-Match": (
        "The ETag that the change is based on, as it was answered. Its version is compared;"
        " another version: 412.",
        r'^(\*|(W/)?"[^",]*"(\s*,\s*(W/)?"[^",]*")*)$',
    ),
    "If-None-Match": ("The ETag that the caller has; unchanged: 304, without a body.", None),
    "Consistency-Token": (
        "The newest Consistency-Token that was answered, by whichever call: the answer shows what"
        " it names. One that was made before the log was put back: 409.",
        "^[A-Za-z0-9_-]{1,1024}$",
    ),
    "Prefer": (
        "`wait=2`: the seconds to wait at most for what the Consistency-Token names. The service"
        " has a limit of its own, which counts without this header.",
        None,
    ),
    "X-Request-ID": (
        "The id of this request, up to 128 letters, digits, '.', '_', ':' and '-'. Any other"
        " value is replaced by a new id. Every answer has it.",
        None,
    ),
    "X-Correlation-ID": (
        "The id of the process that this request belongs to, in the same form. Every event"
        " stores it.",
        None,
    ),
}
"""Description and pattern of each request header."""


ANSWERED: Mapping[bool, tuple[str, str]] = {
    True: (
        "Consistency-Token",
        "What the caller has seen, with this change. Send it with any later call.",
    ),
    False: (
        "Answered-From",
        "`view`: the read model. `live`: the events themselves. `stale; reason=…`: a read model"
        " that does not show all that the Consistency-Token names.",
    ),
}
"""The header of each answer to a command (true) or to a query, and its description."""


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
    401: "A token or an API key is needed",
    403: "The token or API key does not have the scope that is needed",
    404: "There is no such thing",
    409: "The resource was changed concurrently: retry; or the Consistency-Token is of another log",
    412: "It is not at the version in If-Match",
    413: "The body is over 64 KiB",
    415: "The body is not application/json",
    422: "A rule is broken",
    502: "The service was reached but did not answer; whether it was done is not known",
    503: "A server is unavailable; try again after Retry-After seconds",
    504: "There was no answer in time; whether it was done is not known",
}

Mode = Literal["validation", "serialization"]

Model = tuple[type[BaseModel], Mode]

References = Mapping[tuple[Any, Mode], Mapping[str, Any]]


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
    guard: Callable[[Any], None] | None = None
    """Raises NotFound for what a caller may not see; a call without one is for admins alone."""

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
        of_change = ["Idempotency-Key", "If-Match"] if self.has_id else ["Idempotency-Key"]
        specific = of_change if self.is_command else ["If-None-Match"]
        return [*specific, "Consistency-Token", "Prefer", "X-Request-ID", "X-Correlation-ID"]

    @property
    def problems(self) -> Sequence[int]:
        """The statuses of all refusals."""
        statuses = {400, 409, 503}
        statuses |= {404} if self.has_id else set()
        statuses |= {422, 504} if self.is_command else set()
        statuses |= {412} if self.is_command and self.has_id else set()
        statuses |= {413, 415} if self.body else set()
        statuses |= {422} if self.query else set()
        return sorted(statuses)

    @property
    def models(self) -> Sequence[Model]:
        """All models of bodies."""
        models: list[Model] = [(model, "serialization") for model in self.answers.values()]
        return [*models, (self.body, "validation")] if self.body else models


def build(title: str, version: str, description: str, operations: Iterable[Operation]) -> bytes:
    """The document, as JSON text."""
    listed = list(operations)
    models: dict[Model, None] = {(Problem, "serialization"): None}
    models |= {each: None for operation in listed for each in operation.models}
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

    Its description is `description`, then a line for each document with its title and description.
    `problems` are those that every call may meet besides its own.
    """
    parts = [json.loads(each) for each in documents]
    services = (f"- **{i['title']}**: {i['description']}" for i in (p["info"] for p in parts))
    about = "\n\n".join((description, "\n".join(services)))
    info = {**parts[0]["info"], "title": title, "description": about}
    paths, schemas = dict[str, Any](), dict[str, Any]()
    for part in parts:
        paths = part["paths"] | paths
        schemas |= part["components"]["schemas"]
    for operation in (each for item in paths.values() for each in item.values()):
        operation["responses"] |= _problems(problems)
    return _render({**parts[0], "info": info, "paths": paths, "components": {"schemas": schemas}})


def _render(document: Mapping[str, Any]) -> bytes:
    return json.dumps(document, indent=1).encode()


def _describe(operation: Operation, references: References) -> dict[str, Any]:
    words = re.findall(r"[A-Za-z]+", operation.path)
    described: dict[str, Any] = {
        "summary": operation.summary,
        "operationId": operation.method.lower() + "".join(word.title() for word in words),
        "parameters": _parameters(operation),
        "responses": {**_answers(operation, references), **_problems(operation.problems)},
    }
    if operation.tag:
        described["tags"] = [operation.tag]
    if operation.body:
        content = _content("application/json", references[operation.body, "validation"])
        described["requestBody"] = {"required": operation.body_required, "content": content}
    return described


def _parameters(operation: Operation) -> list[dict[str, Any]]:
    ids = [
        {"name": name, "in": "path", "required": True, "schema": _UUID}
        for name in re.findall(r"{(\w+)}", operation.path)
    ]
    model = operation.query.model_json_schema(by_alias=True) if operation.query else {}
    query = [
        {
            "name": name,
            "in": "query",
            "required": False,
            "description": schema.pop("description", ""),
            "schema": _without_null(schema),
        }
        for name, schema in model.get("properties", {}).items()
    ]
    headers = [
        {
            "name": name,
            "in": "header",
            "required": False,
            "description": HEADERS[name][0],
            "schema": {"type": "string"} | ({"pattern": p} if (p := HEADERS[name][1]) else {}),
        }
        for name in operation.headers
    ]
    return [*ids, *query, *headers]


_UUID = {"type": "string", "format": "uuid"}


def _without_null(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema of a parameter, which may be absent but cannot be null."""
    choices = [each for each in schema.pop("anyOf", ()) if each.get("type") != "null"]
    if schema.get("default") is None:
        schema.pop("default", None)
    schema.pop("title", None)
    return {**schema, **(choices[0] if choices else {})}


def _answers(operation: Operation, references: References) -> dict[str, Any]:
    name, text = ANSWERED[operation.is_command]
    header = {name: {"description": text, "schema": {"type": "string"}}}
    answers: dict[str, Any] = {
        str(status): {
            "headers": header,
            "description": (model.__doc__ or operation.summary).splitlines()[0],
            "content": _content("application/json", references[model, "serialization"]),
        }
        for status, model in operation.answers.items()
    }
    return answers if operation.is_command else answers | {"304": {"description": "Unchanged"}}


def _problems(statuses: Iterable[int]) -> dict[str, Any]:
    content = _content("application/problem+json", {"$ref": "#/components/schemas/Problem"})
    return {str(each): {"description": PROBLEMS[each], "content": content} for each in statuses}


def _content(kind: str, schema: Mapping[str, Any]) -> dict[str, Any]:
    return {kind: {"schema": schema}}
