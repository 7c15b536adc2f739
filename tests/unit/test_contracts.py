"""The events are those of contracts/: a forbidden change is named, and every golden event is folded
by every consumer.
"""

import importlib
from collections.abc import Iterator
from dataclasses import MISSING, field, fields, make_dataclass, replace
from decimal import Decimal
from pathlib import Path
from pkgutil import iter_modules
from typing import Any, Literal, get_type_hints
from uuid import UUID

import pytest

from eventcore import jsontext
from eventcore.errors import Misconfigured
from eventcore.model.catalogue import Catalogue, camel, event_type_of
from eventcore.model.event import Event, from_message, to_message
from eventcore.model.view import AnyProjection, View, fold
from local import contracts
from local.services import SERVICES

Fields = list[tuple[str, Any, Any]]

CONSUMERS: list[AnyProjection] = [
    projection for service in SERVICES.values() for projection in service.projections
]


EVERYTHING: Fields = [
    ("to_whom", str, MISSING),
    ("weight", Decimal, MISSING),
    ("speed", Literal["slow", "fast"], "slow"),
    ("note", str | None, None),
    ("stops", list[str] | None, None),
]

DEFAULTS = {str: "x", Decimal: Decimal(1)}


def fields_of(kind: type[Any]) -> Fields:
    hints = get_type_hints(kind)
    return [(each.name, hints[each.name], each.default) for each in fields(kind)]


EVENTS: list[tuple[str, Fields]] = [
    *(
        (kind.__name__, fields_of(kind))
        for service in SERVICES.values()
        for catalogue in service.catalogues
        for kind in catalogue.types.values()
    ),
    ("ThingSent", EVERYTHING),
]


def catalogue(name: str, members: Fields, version: int = 1, doc: str = "A fact.") -> Catalogue:
    """A catalogue of one event class, made of fields."""
    defined = [
        (each, hint, field(default=default, kw_only=True)) for each, hint, default in members
    ]
    own = {"schema_version": version, "__doc__": doc}
    kind = make_dataclass(name, defined, frozen=True, namespace=own)
    steps = {(event_type_of(kind), at): dict for at in range(1, version)}
    return Catalogue("thing", kind, steps)


def committed(members: Fields, name: str = "ThingSent") -> dict[str, Any]:
    """The files of an event's first version."""
    return contracts.files_of(catalogue(name, members), {})


def forbidden(members: Fields) -> Iterator[tuple[str, str, Fields]]:
    """Each forbidden change of each field, with the words that name it."""
    for place, (name, hint, default) in enumerate(members):
        before, after = members[:place], members[place + 1 :]
        json = camel(name)

        def changed(*to: Any, before: Fields = before, after: Fields = after) -> Fields:
            return [*before, *to, *after]

        yield f"removed {name}", f"lost `{json}`", changed()
        yield f"renamed {name}", f"lost `{json}`", changed((f"{name}_of", hint, default))
        other = int if hint is not int else str
        yield f"retyped {name}", f"changed the type of `{json}`", changed((name, other, default))
        wider = hint | other
        yield f"widened {name}", f"changed the type of `{json}`", changed((name, wider, default))
        if default is MISSING:
            yield (
                f"optional {name}",
                f"made `{json}` optional",
                changed((name, hint, DEFAULTS.get(hint))),
            )
        else:
            yield f"required {name}", f"made `{json}` required", changed((name, hint, MISSING))
            new = "fast" if default == "slow" else "another"
            yield f"default {name}", f"changed the default of `{json}`", changed((name, hint, new))
        if hint == Literal["slow", "fast"]:
            types = f"changed the type of `{json}`"
            yield f"narrowed {name}", types, changed((name, Literal["slow"], default))
            yield f"another {name}", types, changed((name, Literal["slow", "fast", "own"], default))
    yield "gained", "gained `more` without a default", [*members, ("more", str, MISSING)]


@pytest.mark.parametrize(
    ("name", "members", "said", "changed"),
    [
        pytest.param(name, members, said, changed, id=f"{name}: {what}")
        for name, members in EVENTS
        for what, said, changed in forbidden(members)
    ],
)
def test_every_forbidden_change_of_every_event_is_named_with_what_to_do(
    name: str, members: Fields, said: str, changed: Fields
) -> None:
    files = committed(members, name)
    sentences = list(contracts.broken(catalogue(name, changed), files))
    event_type = next(iter(catalogue(name, members).types))
    expected = f"{event_type} v1 {said}: make it v2 and write the upcaster 1 → 2."
    assert expected in sentences


@pytest.mark.parametrize(("name", "members"), EVENTS, ids=[name for name, _ in EVENTS])
def test_an_allowed_change_is_no_alarm(name: str, members: Fields) -> None:
    files = committed(members, name)
    for allowed in (
        catalogue(name, members),
        catalogue(name, [*reversed(members)]),
        catalogue(name, members, doc="Told better."),
        catalogue(name, [*members, ("more", str, ""), ("less", int | None, None)]),
        catalogue(name, [*members, ("parts", tuple[str, ...], ())]),
        catalogue(name, [*members, ("own", int, MISSING)], version=2),
        catalogue(name, [("own", int, MISSING)], version=2),
    ):
        assert list(contracts.broken(allowed, files)) == []


def test_an_event_type_is_never_removed_and_a_version_never_goes_back() -> None:
    files = committed(EVERYTHING)
    [gone] = contracts.broken(catalogue("ThingLost", EVERYTHING), files)
    assert gone.startswith("THING_SENT v1 has no class: an event type is never removed or renamed")
    second = catalogue("ThingSent", EVERYTHING, version=2)
    files = contracts.files_of(second, files)
    assert list(contracts.broken(second, files)) == []
    [back] = contracts.broken(catalogue("ThingSent", EVERYTHING), files)
    assert back == "THING_SENT is v1, and v2 is committed: a version never goes back."


@pytest.mark.parametrize("missing", ["THING_SENT.v1.json", "THING_SENT.v1.golden.json"])
def test_the_files_of_an_old_version_stay(missing: str) -> None:
    second = catalogue("ThingSent", EVERYTHING, version=2)
    files = contracts.files_of(second, committed(EVERYTHING))
    del files[missing]
    [said] = contracts.broken(second, files)
    assert said.startswith("THING_SENT.v1.json or its golden event is missing: restore it")


def test_an_upcaster_that_makes_something_else_is_named() -> None:
    kind = make_dataclass("ThingSent", [("city", str)], namespace={"schema_version": 2})
    files = committed([("to", str, MISSING)])
    for upcaster, sound in ((dict, False), (lambda data: {"city": data["to"]}, True)):
        second = Catalogue("thing", kind, {("THING_SENT", 1): upcaster})
        found = list(contracts.unsound(second, contracts.files_of(second, files)))
        assert [said.partition(",")[0] for said in found] == (
            [] if sound else ["THING_SENT.v1.golden.json does not fit THING_SENT"]
        )


def test_a_golden_event_is_written_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    service = replace(SERVICES["user"], catalogue=catalogue("ThingSent", EVERYTHING), others=())
    monkeypatch.setattr(contracts, "SERVICES", {"user": service})
    first = list(contracts.main(check=True, folder=tmp_path))
    assert len(first) == 2
    assert all("run `make contracts`" in said for said in first)
    assert list(contracts.main(check=False, folder=tmp_path)) == []
    assert list(contracts.main(check=True, folder=tmp_path)) == []
    golden = tmp_path / "user" / "THING_SENT.v1.golden.json"
    before = golden.read_bytes()
    more = catalogue("ThingSent", [*EVERYTHING, ("more", str, "")])
    monkeypatch.setattr(contracts, "SERVICES", {"user": replace(service, catalogue=more)})
    [said] = contracts.main(check=True, folder=tmp_path)
    assert said.startswith("contracts/user/THING_SENT.v1.json is not as the code says")
    assert list(contracts.main(check=False, folder=tmp_path)) == []
    assert golden.read_bytes() == before
    assert list(contracts.main(check=True, folder=tmp_path)) == []


def test_the_contracts_of_the_repository_are_those_of_the_code() -> None:
    assert list(contracts.main(check=True)) == []
    found = {folder.name for folder in contracts.FOLDER.iterdir()}
    assert found == set(SERVICES)


def golden_streams(service: str, known: Catalogue) -> Iterator[tuple[str, list[Event]]]:
    """Each golden event of a catalogue, after the golden event that begins a stream."""
    begins = next(iter(known.types))
    files = contracts.read(contracts.FOLDER / service)
    events = {name: from_message(each) for name, each in files.items() if ".golden." in name}
    golden = {name: each for name, each in events.items() if each.event_type in known.types}
    first = golden[f"{begins}.v{known.versions[begins]}.golden.json"]
    for name, event in sorted(golden.items()):
        stream = [event] if event.event_type == begins else [first, event]
        yield name, [replace(each, version=at) for at, each in enumerate(stream, start=1)]


def stores_of(projection: AnyProjection) -> tuple[str, ...]:
    """The aggregate types of the events that it reads."""
    if isinstance(projection, View):
        return projection.stores
    return (projection.aggregate_type,)


GOLDEN = [
    (known.aggregate_type, *each)
    for name, service in SERVICES.items()
    for known in service.catalogues
    for each in golden_streams(name, known)
]

DECIDERS = {
    module.DECIDER.aggregate_type: module.DECIDER
    for name in SERVICES
    for found in iter_modules(importlib.import_module(name).__path__, f"{name}.")
    if hasattr(module := importlib.import_module(found.name), "DECIDER")
}


@pytest.mark.parametrize(
    ("projection", "name", "stream"),
    [
        pytest.param(projection, name, stream, id=f"{projection.name} {name}")
        for projection in CONSUMERS
        for owner, name, stream in GOLDEN
        if owner in stores_of(projection)
    ],
)
def test_every_golden_event_is_folded_by_every_projection(
    projection: AnyProjection, name: str, stream: list[Event]
) -> None:
    if isinstance(projection, View):
        assert fold(projection, stream) or not projection.reads(stream[-1]), name
        return
    document = projection.fold(stream)
    assert document is not None, name
    assert document["version"] == len(stream)


@pytest.mark.parametrize(
    ("owner", "stream"), [pytest.param(owner, stream, id=name) for owner, name, stream in GOLDEN]
)
def test_every_golden_event_is_folded_by_its_decider(owner: str, stream: list[Event]) -> None:
    decider = DECIDERS[owner]
    decider.fold(decider.initial, stream)  # raises CannotApply for what it does not know
    # and what the decider would append is what was recorded
    if stream[-1].schema_version == decider.catalogue.versions[stream[-1].event_type]:
        domain_event = decider.catalogue.to_domain_event(stream[-1])
        again = decider.to_new_event(domain_event, UUID(int=1))
        assert jsontext.render(again.data) == jsontext.render(stream[-1].data)


def test_every_message_is_of_the_schema_that_messages_have() -> None:
    for _, _, stream in GOLDEN:
        for event in stream:
            assert from_message(jsontext.parse(jsontext.render(to_message(event)))) == event


def test_a_new_version_without_an_upcaster_does_not_start() -> None:
    kind = make_dataclass("ThingSent", [("to", str)], namespace={"schema_version": 2})
    with pytest.raises(Misconfigured, match="missing from THING_SENT version 1"):
        Catalogue("thing", kind)
