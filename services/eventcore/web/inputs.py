"""Models of requests, which refuse unknown fields and control characters; sentences for errors."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from functools import cache
from typing import Annotated, Any, get_args
from uuid import UUID

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    PlainValidator,
    ValidationError,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
)
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

PLAIN = "^[^\\u0000-\\u001f\\u007f-\\u009f\\u2028\\u2029]*$"
"""Text without control characters and line separators; JSON has no lone surrogates here."""


def _refusal(rule: str) -> PydanticCustomError:
    return PydanticCustomError("form", "{rule}", {"rule": rule})


@dataclass(frozen=True)
class Form:
    """Annotates text that must match a pattern; `rule` says in words what the text must be.

    With `before`, the text is checked before it becomes a number or a time. The two methods of
    pydantic's names are its documented hooks.
    """

    pattern: re.Pattern[str]
    rule: str
    before: bool = False

    def check(self, value: Any) -> Any:
        """Returns the value; raises a validation error for a text of another form."""
        if isinstance(value, str) and not self.pattern.fullmatch(value):
            raise _refusal(self.rule)
        return value

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        if self.before:
            return core_schema.no_info_before_validator_function(self.check, handler(source))
        return core_schema.no_info_after_validator_function(self.check, handler(source))

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        described = handler(schema)
        return described if self.before else {**described, "pattern": self.pattern.pattern}


_PLAIN = Form(re.compile(PLAIN), "must not contain control characters or line breaks")

_INVISIBLE = (
    "\\u0000-\\u001f\\u007f-\\u009f\\u00ad\\u061c\\u180e\\u200b-\\u200f\\u2028-\\u202e"
    "\\u2060-\\u206f\\ufeff\\ufff9-\\ufffb"
)
"""Control characters, line separators, zero-width characters and those that turn the direction."""

_BLANK = (
    "\\u0020\\u00a0\\u034f\\u115f\\u1160\\u1680\\u17b4\\u17b5\\u180b-\\u180f\\u2000-\\u200a"
    "\\u202f\\u205f\\u2800\\u3000\\u3164\\ufe00-\\ufe0f\\uffa0"
)
"""Spaces, and characters that leave no mark of their own."""

VISIBLE = Form(
    re.compile(f"^[^{_INVISIBLE}]*[^{_INVISIBLE}{_BLANK}][^{_INVISIBLE}]*$"),
    "must have a visible character, and none that is invisible, breaks the line or turns the"
    " direction of writing",
)
"""Names that people read."""

EMAIL = Form(
    re.compile(f"^[^@{_INVISIBLE}{_BLANK}]+@[^@{_INVISIBLE}{_BLANK}]+$"),
    "must be an e-mail address, such as ada@example.com",
)

MULTILINE = Form(
    re.compile("^[^\\u0000-\\u0008\\u000b\\u000c\\u000e-\\u001f\\u007f-\\u009f\\u2028\\u2029]*$"),
    "must not contain control characters other than line breaks and tabs",
)
"""Text of several lines, such as a comment. All other texts refuse line breaks."""

UUID_PATTERN = "^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$"

Id = Annotated[
    str,
    Form(re.compile(UUID_PATTERN), "must be a UUID, as returned by POST"),
    Field(json_schema_extra={"format": "uuid"}),
    AfterValidator(lambda text: str(UUID(text))),
]
"""A UUID as text, in lower case from here on."""

DIGITS = Form(re.compile("^-?[0-9]{1,20}$"), "must be a whole number", before=True)
"""For numbers of a query: pydantic alone would take "1_0"."""

TIME = Form(
    re.compile(
        "^[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt][0-9]{2}:[0-9]{2}:[0-9]{2}(\\.[0-9]+)?"
        "([Zz]|[+-][0-9]{2}:[0-9]{2})$"
    ),
    "must be a time with its offset from UTC, such as 2026-01-16T10:00:00Z or"
    " 2026-01-16T11:00:00%2B01:00 (in a URL, + is written %2B)",
    before=True,
)
"""For times of a query: pydantic alone would take "0"."""


def exact_number(highest: Decimal) -> PlainValidator:
    """Takes a JSON number from 0 to `highest` as the decimal it is written as: 2.5E+3 as 2500.

    It may have two decimals. Digits are bounded as they are written, so 1.000 is refused: what is
    stored is what is answered, and a read model has room for it.
    """

    def exact(value: object) -> Decimal:
        if isinstance(value, int | Decimal) and not isinstance(value, bool):
            number = Decimal(value)
            exponent = number.as_tuple().exponent
            if isinstance(exponent, int) and exponent >= -2 and 0 <= number <= highest:
                return abs(number.quantize(Decimal(1)) if exponent > 0 else number)
        raise _refusal(f"must be a number from 0 to {highest} with at most two decimals")

    return PlainValidator(exact)


HIGHEST_PRICE = Decimal("9999999999.99")

Price = Annotated[
    Decimal,
    exact_number(HIGHEST_PRICE),
    WithJsonSchema(
        {
            "type": "number",
            "minimum": 0,
            "maximum": float(HIGHEST_PRICE),
            "multipleOf": 0.01,
            "description": "An exact decimal with at most two places, answered as it was given.",
            "examples": [19.99],
        }
    ),
]


class _Checked(BaseModel):
    """Refuses control characters in all texts, also in lists and objects; see MULTILINE."""

    @field_validator("*", mode="after")
    @classmethod
    def _refuse_controls(cls, value: Any, info: ValidationInfo) -> Any:
        form = MULTILINE if info.field_name in _multiline_fields(cls) else _PLAIN
        for text in _texts(value):
            form.check(text)
        return value

    @classmethod
    def __get_pydantic_json_schema__(
        cls, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        """Documented hook of pydantic: describes each text without control characters."""
        described = handler(schema)
        for each in _text_schemas(handler.resolve_ref_schema(described)):
            each.setdefault("pattern", PLAIN)
        return described


class Input(_Checked):
    """The body of a request: no unknown field, no value of another type."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class QueryInput(_Checked):
    """The query string of a request, in which every value is text at first."""

    model_config = ConfigDict(extra="forbid", frozen=True)


@cache
def _multiline_fields(model: type[BaseModel]) -> frozenset[str]:
    """The fields of a model that are annotated with MULTILINE, at any depth."""
    found = set()
    for name, field in model.model_fields.items():
        waiting = [field.annotation, *field.metadata]
        while waiting:
            part = waiting.pop()
            if part is MULTILINE:
                found.add(name)
            waiting += get_args(part)
    return frozenset(found)


def _texts(value: Any) -> Iterator[str]:
    """All texts in a value, at any depth."""
    waiting = [value]
    while waiting:
        match waiting.pop():
            case str(text):
                yield text
            case Mapping() as fields:
                waiting += [*fields.keys(), *fields.values()]
            case list() | tuple() | set() | frozenset() as entries:
                waiting += entries


def _text_schemas(schema: Any) -> Iterator[dict[str, Any]]:
    """All schemas within a schema that describe free text."""
    if isinstance(schema, dict):
        if schema.get("type") == "string" and not schema.keys() & {"enum", "const", "format"}:
            yield schema
        schema = list(schema.values())
    if isinstance(schema, list):
        for each in schema:
            yield from _text_schemas(each)


_SENTENCES: Mapping[str, str] = {
    "form": "{rule}",
    "missing": "is required",
    "extra_forbidden": "is not known here",
    "string_too_short": "must have at least {min_length} characters",
    "string_too_long": "must have at most {max_length} characters",
    "string_pattern_mismatch": "has a form that is not allowed",
    "too_short": "must have at least {min_length} entries",
    "too_long": "must have at most {max_length} entries",
    "greater_than": "must be above {gt}",
    "greater_than_equal": "must be {ge} or more",
    "less_than": "must be below {lt}",
    "less_than_equal": "must be {le} or less",
    "multiple_of": "must be a multiple of {multiple_of}",
    "literal_error": "must be {expected}",
    "enum": "must be {expected}",
    "finite_number": "must be a finite number",
    "timezone_aware": "must name its offset from UTC",
    "none_required": "must be null",
}
"""Sentences about a field, by pydantic's name of the error."""

_KINDS: Mapping[str, str] = {
    "string": "text", "int": "a whole number", "float": "a number", "decimal": "a number",
    "bool": "true or false", "list": "a list", "tuple": "a list", "set": "a list",
    "dict": "an object", "mapping": "an object", "model": "an object", "date": "a date",
    "datetime": "a time", "time": "a time of day", "uuid": "a UUID", "bytes": "text",
}  # fmt: skip
"""Expected values, by the beginning of pydantic's name of the error."""


def problems_of(error: ValidationError) -> list[dict[str, str]]:
    """Describes the error of each field in words; a body that is no object counts as a field."""
    return [
        {
            "field": ".".join(map(str, each["loc"]))[:200] or "body",
            "reason": sentence(each["type"], each.get("ctx", {})),
        }
        for each in error.errors(include_url=False, include_input=False)[:20]
    ]


def sentence(kind: str, context: Mapping[str, Any]) -> str:
    """Says what is wrong with a field, for an error of pydantic's and its context."""
    if context.get("min_length") == 1:
        return "must not be empty"
    if known := _SENTENCES.get(kind):
        return known.format_map(context)
    expected = _KINDS.get(kind.partition("_")[0])
    return f"must be {expected}" if expected else "has a value that is not allowed"
