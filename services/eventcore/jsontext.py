"""JSON text to values and back, exactly: decimals stay decimals, and nothing is guessed.

msgspec refuses NaN, Infinity, broken UTF-8, lone surrogates and bottomless nesting.
"""

import json
from collections.abc import Iterable
from dataclasses import MISSING
from decimal import Decimal, InvalidOperation
from typing import Any

import msgspec

_decoder = msgspec.json.Decoder(float_hook=Decimal)
_encoder = msgspec.json.Encoder(decimal_format="number")
_lenient = msgspec.json.Encoder(enc_hook=str)


def parse(text: bytes | str, *, unique_keys: bool = False) -> Any:
    """The value of a JSON text; raises ValueError with a reason for anything else.

    With `unique_keys` an object that gives a key twice is refused; without, the last counts.
    """
    try:
        value = _decoder.decode(text)
        if unique_keys:
            _unique.decode(text if isinstance(text, str) else text.decode())
        return value
    except RecursionError as error:
        raise ValueError("JSON is nested too deeply") from error
    except InvalidOperation as error:
        raise ValueError("a number is out of range") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"not valid JSON: {error}") from error


def _refuse_duplicates(pairs: list[tuple[str, Any]]) -> None:
    keys = set()
    for key, _ in pairs:
        if key in keys:
            raise ValueError(f"{key[:80]!r} is given more than once")
        keys.add(key)


_unique = json.JSONDecoder(object_pairs_hook=_refuse_duplicates)


def render(value: object) -> bytes:
    """The JSON text of a value: Decimals as numbers, UUIDs and times as text."""
    return _encoder.encode(value)


def render_line(value: object) -> str:
    """Renders any value as one line; unsupported types become strings."""
    try:
        return _lenient.encode(value).decode()
    except (UnicodeEncodeError, TypeError):
        return json.dumps(value, default=str, skipkeys=True)


class Shape:
    """The form of a JSON object: its fields by name, type and default (MISSING: it is required)."""

    def __init__(self, name: str, doc: str, fields: Iterable[tuple[str, Any, Any]]) -> None:
        defined = [
            (each, hint) if default is MISSING else (each, hint, default)
            for each, hint, default in fields
        ]
        namespace = {"__doc__": doc}
        self._kind = msgspec.defstruct(name, defined, namespace=namespace, kw_only=True)

    def schema(self) -> dict[str, Any]:
        """Its JSON Schema, without references."""
        (top,), parts = msgspec.json.schema_components([self._kind], ref_template="{name}")
        schema: dict[str, Any] = _inlined(top, parts)
        return schema

    def check(self, value: object) -> None:
        """Raises ValueError with the reason where a value has another form."""
        msgspec.json.decode(render(value), type=self._kind)


def _inlined(schema: Any, parts: dict[str, Any]) -> Any:
    """A schema with its parts in place, in which decimals are numbers, as `render` writes them."""
    if isinstance(schema, list):
        return [_inlined(each, parts) for each in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        rest = {name: value for name, value in schema.items() if name != "$ref"}
        return _inlined({**parts[schema["$ref"]], **rest}, parts)
    inlined = {name: _inlined(value, parts) for name, value in schema.items()}
    if inlined.get("format") == "decimal":
        inlined |= {"type": "number"}
        del inlined["format"]
        if "default" in inlined:
            inlined["default"] = Decimal(inlined["default"])
    return inlined
