"""`rebuild`: folds a projection again and lets it serve."""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any
from uuid import uuid4

import click

from eventcore.errors import Refused
from eventcore.operate import parity, rebuilding
from eventcore.operate.rebuilding import Rebuild
from eventcore.operate.shared import Row, as_json, ask, open_appliers, projection_name, show, yes
from eventcore.project.folding import Folding
from eventcore.project.reacting import ReactingApplier
from eventcore.readmodel.records import generation_of, parts_of


@click.command()
@projection_name
@click.option("--stream", help="Fold this one stream again, in place.")
@click.option("--rollback", is_flag=True, help="Go back to the generation that served before.")
@click.option("--drop-previous", is_flag=True, help="Delete the generation that served before.")
@as_json
@yes
def rebuild(
    projection_name: str,
    stream: str | None,
    rollback: bool,
    drop_previous: bool,
    as_json: bool,
    yes: bool,
) -> None:
    """Fold PROJECTION again and let the new documents serve.

    They are folded from position 0 beside those that serve, compared with them, and switched to in
    one step. Where they differ, or an event cannot be applied, it asks before it switches; without
    a terminal it needs --yes, else it ends with status 1 and nothing has changed. A projection that
    is halted is not compared: its documents come from another log. The old ones are kept for
    --rollback, until the next time. A reactor carries out the command of each event again, which
    changes nothing where it was carried out before.
    """
    parts = open_appliers(projection_name, "rebuild")
    applier = parts[0]
    if stream:
        _rebuild_stream(applier, stream)
        return
    if drop_previous:
        _drop_previous(applier, yes)
        return
    reacting = applier if isinstance(applier, ReactingApplier) else None
    begin = rebuilding.rollback if rollback else rebuilding.begin
    say = partial(click.echo, err=True)
    feeds = {part.store: part.feed for part in parts} if applier.store else applier.feed
    given = applier.projection, applier.readmodel, feeds, str(uuid4())
    build = begin(*given, time.sleep, say, reacting)
    with _discarded_unless_switched(build, keep=rollback):
        if not rollback:
            build.fold(_progress(applier.projection.name))
        build.catch_up()
        _compare(build, parts, as_json, yes)
        build.switch()
    show([{"serves": build.generation.name}], as_json)


@contextmanager
def _discarded_unless_switched(build: Rebuild, keep: bool) -> Iterator[None]:
    switched = False
    try:
        yield
        switched = True
    finally:
        if not switched and not keep:
            build.discard()


def _rebuild_stream(applier: Folding[Any], stream: str) -> None:
    if applier.store:
        raise Refused(f"{applier.projection.name} is of many streams: rebuild it whole")
    given = applier.projection, applier.readmodel, applier.feed, applier.generation, stream
    fold = applier.fold if isinstance(applier, ReactingApplier) else None
    changed = rebuilding.rebuild_stream(*given, fold)
    click.echo(f"{stream}: {'folded again' if changed else 'was right already'}")


def _drop_previous(applier: Folding[Any], yes: bool) -> None:
    name = applier.projection.name
    number = applier.readmodel.generations(name).previous
    if not number:
        raise Refused(f"no generation of {name} is kept beside the serving one")
    previous = generation_of(applier.projection, number).name
    ask(yes, f"Delete {previous}, which served before?")
    for part in parts_of(applier.projection, number):
        applier.readmodel.drop(part)
    click.echo(f"{previous} is deleted.")


def _compare(build: Rebuild, serving: Sequence[Folding[Any]], as_json: bool, yes: bool) -> None:
    """Shows how the new generation differs from the serving one; raises Refused if it must not."""
    new = build.generation.name
    halted = [
        each.generation.name
        for each in serving
        if build.readmodel.checkpoint(each.generation.name).halted
    ]
    if halted:
        note = f"not compared: {halted[0]} is halted, its documents come from another log"
        show([{"generation": new, "note": note}], as_json)
        return
    parity = build.compare()
    _show_parity(new, parity, as_json)
    if not parity.agrees:
        ask(yes, f"{new} differs. Let it serve all the same?")


def _progress(name: str) -> Callable[[int, int], None]:
    """Returns a function that says on stderr, every two seconds, how far a rebuild is."""
    begun_at = said_at = time.monotonic()

    def tell(position: int, until: int) -> None:
        nonlocal said_at
        now = time.monotonic()
        if now - said_at >= 2 or position >= until:
            said_at = now
            rate = position / max(now - begun_at, 0.001)
            click.echo(f"{name}: position {position} of {until}, {rate:.0f} a second", err=True)

    return tell


def _show_parity(name: str, parity: parity.Parity, as_json: bool) -> None:
    line: Row = {
        "generation": name,
        "documents": parity.new,
        "serving": parity.serving,
        "alike": parity.alike,
        "different": parity.different,
        "missing": parity.missing,
        "added": parity.added,
        "parked": parity.parked,
        "newlyParked": parity.newly_parked,
        "digest": f"{parity.new_digest % 2**64:016x}",
        "servingDigest": f"{parity.serving_digest % 2**64:016x}",
    }
    show([line], as_json)
    for kind, streams in parity.ids.items():
        listed = " ".join(streams)
        click.echo(json.dumps({kind: listed}) if as_json else f"{kind}: {listed}")
