"""The AsyncAPI 3 document of a service's events, generated from its catalogue."""

import json
from collections.abc import Iterable
from typing import Any

from eventcore import jsontext
from eventcore.broker.topology import EXCHANGE
from eventcore.model.catalogue import Catalogue
from eventcore.model.event import SPEC, routing_key_of

ABOUT = (
    "The events of {title}, as RabbitMQ carries them: at least once, in the order of each stream"
    " where nothing was lost. A consumer is idempotent, or reads the feed. A committed version of"
    " an event never changes, except that it may gain an optional field with a default."
)

_TEXT = {"type": "string"}
_UUID = {"type": "string", "format": "uuid"}
_NATURAL = {"type": "integer", "minimum": 1}
_OBJECT = {"type": "object"}


def build(title: str, version: str, catalogues: Iterable[Catalogue]) -> bytes:
    """The document, as JSON text."""
    channels, operations, messages = {}, {}, {}
    types = [(each, *known) for each in catalogues for known in each.versions.items()]
    for catalogue, event_type, schema_version in types:
        key = routing_key_of(catalogue.aggregate_type, event_type)
        messages[event_type] = _message(catalogue, event_type, schema_version)
        channels[event_type] = {
            "address": key,
            "messages": {event_type: {"$ref": f"#/components/messages/{event_type}"}},
            "bindings": {"amqp": _BINDING},
        }
        operations[event_type] = {
            "action": "send",
            "channel": {"$ref": f"#/channels/{event_type}"},
            "messages": [{"$ref": f"#/channels/{event_type}/messages/{event_type}"}],
        }
    return _render(title, version, channels, operations, messages)


def merge(title: str, documents: Iterable[bytes]) -> bytes:
    """One document of several: their channels, operations and messages side by side."""
    parts = [json.loads(each) for each in documents]
    channels, operations, messages = dict[str, Any](), dict[str, Any](), dict[str, Any]()
    for part in parts:
        channels |= part["channels"]
        operations |= part["operations"]
        messages |= part["components"]["messages"]
    return _render(title, parts[0]["info"]["version"], channels, operations, messages)


_BINDING = {
    "is": "routingKey",
    "exchange": {"name": EXCHANGE, "type": "topic", "durable": True, "autoDelete": False},
    "bindingVersion": "0.3.0",
}


def _render(title: str, version: str, channels: Any, operations: Any, messages: Any) -> bytes:
    document = {
        "asyncapi": "3.0.0",
        "info": {"title": title, "version": version, "description": ABOUT.format(title=title)},
        "defaultContentType": "application/json",
        "channels": channels,
        "operations": operations,
        "components": {"messages": messages},
    }
    return jsontext.render(document)


def _message(catalogue: Catalogue, event_type: str, schema_version: int) -> dict[str, Any]:
    kind = catalogue.types[event_type]
    data = jsontext.Shape(kind.__name__, kind.__doc__ or "", catalogue.fields_of(event_type))
    envelope = {
        "specVersion": {"const": SPEC},
        "eventId": _UUID,
        "eventType": {"const": event_type},
        "schemaVersion": {"const": schema_version},
        "aggregateType": {"const": catalogue.aggregate_type},
        "aggregateId": _UUID,
        "version": _NATURAL,
        "position": _NATURAL,
        "previousId": {"anyOf": [_UUID, {"type": "null"}]},
        "recordedAt": {"type": "string", "format": "date-time"},
        "data": data.schema(),
        "metadata": _OBJECT,
    }
    payload = {"type": "object", "properties": envelope, "required": list(envelope)}
    return {
        "name": event_type,
        "title": f"{event_type} version {schema_version}",
        "summary": kind.__doc__ or "",
        "contentType": "application/json",
        "headers": {"type": "object", "properties": {"traceparent": _TEXT}},
        "payload": payload,
    }
