"""python -m local.contracts [--check]: the events of every service as files, in contracts/.

Each version of an event has a JSON Schema of its data, `contracts/SERVICE/TYPE.vN.json`, and a
golden event beside it, `TYPE.vN.golden.json`: a message as the broker carries it. Two rules hold:

    A committed version never changes, except that it may gain an optional field with a default.
    Any other change is a new version, with an upcaster and a golden event.

Without --check it writes the files that are missing or may change, and never a golden event again.
"""

import re
import sys
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import msgspec

from eventcore import jsontext
from eventcore.model.catalogue import Catalogue
from eventcore.model.event import Event, from_message, to_message
from eventcore.model.service import Service
from local.services import ROOT, SERVICES

FOLDER = ROOT / "contracts"

Files = Mapping[str, Any]
"""The parsed files of one service, by name."""

_NAME = re.compile(r"([A-Z0-9_]+)\.v(\d+)(\.golden)?\.json")


def shape_of(catalogue: Catalogue, event_type: str) -> jsontext.Shape:
    """The form of an event's data in its current version."""
    kind = catalogue.types[event_type]
    return jsontext.Shape(kind.__name__, kind.__doc__ or "", catalogue.fields_of(event_type))


def schemas(catalogue: Catalogue) -> dict[str, Any]:
    """The JSON Schema of each event type in its current version, by file name."""
    found = {}
    for event_type, version in catalogue.versions.items():
        about = {"$schema": "https://json-schema.org/draft/2020-12/schema"}
        schema = about | shape_of(catalogue, event_type).schema()
        # as it is read from a file
        found[f"{event_type}.v{version}.json"] = jsontext.parse(jsontext.render(schema))
    return found


def broken(catalogue: Catalogue, files: Files) -> Iterator[str]:
    """One sentence for each change of a committed version that the rules forbid."""
    new = schemas(catalogue)
    for name in sorted(files):
        event_type, version, golden = _parts(name)
        now = catalogue.versions.get(event_type, 0)
        if golden or version < now:
            continue
        if not now:
            yield (
                f"{event_type} v{version} has no class: an event type is never removed or renamed,"
                " since logs hold it. Put the class back into the catalogue."
            )
        elif version > now:
            yield f"{event_type} is v{now}, and v{version} is committed: a version never goes back."
        else:
            for change in _changes(files[name], new[name]):
                yield (
                    f"{event_type} v{version} {change}: make it v{version + 1} and write the"
                    f" upcaster {version} → {version + 1}."
                )
    for event_type, now in catalogue.versions.items():
        for name in (_file(event_type, version) for version in range(1, now)):
            if name not in files or _golden(name) not in files:
                yield f"{name} or its golden event is missing: restore it, since logs hold it."


def _changes(old: Any, new: Any) -> Iterator[str]:
    before, after = old["properties"], new["properties"]
    was, required = set(old["required"]), set(new["required"])
    for field, schema in before.items():
        if field not in after:
            yield f"lost `{field}`"
            continue
        if field in required - was:
            yield f"made `{field}` required"
        elif field in was - required:
            yield f"made `{field}` optional"
        elif schema.get("default") != after[field].get("default"):
            yield f"changed the default of `{field}`"
        if _type_of(schema) != _type_of(after[field]):
            yield f"changed the type of `{field}`"
    for field in after.keys() - before.keys() & required:
        yield f"gained `{field}` without a default"


def _type_of(schema: Any) -> Any:
    """The part of a schema that says which values are valid."""
    if isinstance(schema, Mapping):
        told = ("default", "title", "description")
        return {name: _type_of(each) for name, each in schema.items() if name not in told}
    return [_type_of(each) for each in schema] if isinstance(schema, list) else schema


def unsound(catalogue: Catalogue, files: Files) -> Iterator[str]:
    """One sentence for each golden event that is not of its version, or that no upcaster fits."""
    for name in sorted(each for each in files if _parts(each)[2]):
        event_type, version, _ = _parts(name)
        if not version <= catalogue.versions.get(event_type, 0):
            continue
        event = from_message(files[name])
        said = (event.aggregate_type, event.event_type, event.schema_version)
        if said != (catalogue.aggregate_type, event_type, version):
            yield f"{name} is an event {said[1]} v{said[2]} of {said[0]}: write the right one."
            continue
        try:
            shape_of(catalogue, event_type).check(catalogue.upcast(event).data)
        except ValueError as error:
            yield f"{name} does not fit {event_type}, upcast as it is: {error}."


def files_of(catalogue: Catalogue, files: Files) -> dict[str, Any]:
    """The files as they should be, where nothing is broken: the current schemas, and a golden
    event for each that has none.
    """
    new = schemas(catalogue)
    golden = {
        _golden(name): _example(catalogue, _parts(name)[0], schema) for name, schema in new.items()
    }
    return {**golden, **files, **new}


def _example(catalogue: Catalogue, event_type: str, schema: Any) -> Any:
    """A golden event with a value in each field."""
    number = [*catalogue.types].index(event_type) + 1
    event = Event(
        position=number,
        event_id=UUID(int=number),
        aggregate_type=catalogue.aggregate_type,
        aggregate_id=UUID(int=0),
        version=min(number, 2),
        event_type=event_type,
        schema_version=catalogue.versions[event_type],
        data={name: _value(name, each) for name, each in schema["properties"].items()},
        metadata={},
        recorded_at=datetime(2026, 1, 16, 10, tzinfo=UTC),
        previous=UUID(int=1) if number > 1 else None,
    )
    return jsontext.parse(jsontext.render(to_message(event)))


def _value(name: str, schema: Any) -> Any:
    """A value that a schema allows."""
    if "anyOf" in schema:
        return _value(name, schema["anyOf"][0])
    if "enum" in schema:
        return schema["enum"][0]
    of_type = {"string": name, "integer": 1, "number": Decimal("1.25"), "boolean": True}
    return of_type.get(schema["type"], [] if schema["type"] == "array" else {})


def _parts(name: str) -> tuple[str, int, bool]:
    """The event type and version of a file, and whether it is a golden event."""
    found = _NAME.fullmatch(name)
    if not found:
        raise SystemExit(f"{name} is not a contract: its name must be TYPE.vN.json. Remove it.")
    return found[1], int(found[2]), bool(found[3])


def _file(event_type: str, version: int) -> str:
    return f"{event_type}.v{version}.json"


def _golden(name: str) -> str:
    return name.replace(".json", ".golden.json")


def read(folder: Path) -> dict[str, Any]:
    """The parsed files of a folder."""
    return {file.name: jsontext.parse(file.read_bytes()) for file in folder.glob("*.json")}


def _files_of(catalogue: Catalogue, service: Service, files: Files) -> Files:
    """The files of one catalogue; the service's first one has those of no catalogue too."""
    of_others = {t for each in service.catalogues if each is not catalogue for t in each.types}
    is_first = catalogue is service.catalogue
    return {
        name: content
        for name, content in files.items()
        if (kind := _parts(name)[0]) in catalogue.types or (is_first and kind not in of_others)
    }


def main(check: bool, folder: Path = FOLDER) -> Iterator[str]:
    """Compares or writes the files of all services; yields a sentence for each problem."""
    for name, service in SERVICES.items():
        own = folder / name
        files = read(own)
        parts = [(each, _files_of(each, service, files)) for each in service.catalogues]
        found = [s for part in parts for s in (*broken(*part), *unsound(*part))]
        yield from found
        if found:
            continue
        for file, content in (pair for part in parts for pair in files_of(*part).items()):
            if content == files.get(file):
                continue
            if check:
                yield f"contracts/{name}/{file} is not as the code says: run `make contracts`."
                continue
            own.mkdir(parents=True, exist_ok=True)
            (own / file).write_bytes(msgspec.json.format(jsontext.render(content)) + b"\n")


if __name__ == "__main__":
    sys.exit("\n".join(main("--check" in sys.argv[1:])) or None)
