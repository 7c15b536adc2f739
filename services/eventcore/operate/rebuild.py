"""`rebuild`: fold a projection anew and let it serve."""

import json
import time
from collections.abc import Callable
from functools import partial
from uuid import uuid4

import click

from eventcore.errors import Refused
from eventcore.operate import parity, rebuilding
from eventcore.operate.shared import Row, as_json, ask, open_at, projection_name, show, yes
from eventcore.readmodel.records import generation_of


@click.command()
@projection_name
@click.option("--stream", help="Fold this one stream anew, in place.")
@click.option("--rollback", is_flag=True, help="Go back to the generation that served before.")
@click.option("--drop-previous", is_flag=True, help="Delete the generation that served before.")
@click.option("--accept-differences", is_flag=True, help="Switch although documents differ.")
@as_json
@yes
def rebuild(
    projection_name: str,
    stream: str | None,
    rollback: bool,
    drop_previous: bool,
    accept_differences: bool,
    as_json: bool,
    yes: bool,
) -> None:
    """Fold PROJECTION anew and let the new documents serve.

    They are folded from position 0 beside those that serve, compared with them, and switched to in
    one step. Where they differ, or an event cannot be applied, it asks before it switches; without
    a terminal it needs --yes, else it ends with status 1 and nothing has changed. A projection that
    is halted is not compared: its documents come from another log. The old ones are kept for
    --rollback, until the next time.
    """
    applier = open_at(projection_name, "rebuild")
    projection, readmodel, feed = applier.projection, applier.readmodel, applier.feed
    if stream:
        serving = applier.generation
        changed = rebuilding.rebuild_stream(projection, readmodel, feed, serving, stream)
        click.echo(f"{stream}: {'folded anew' if changed else 'was right already'}")
        return
    generations = readmodel.generations(projection.name)
    if drop_previous:
        if not generations.previous:
            raise Refused(f"no generation of {projection.name} is kept beside the serving one")
        previous = generation_of(projection, generations.previous)
        ask(yes, f"Delete {previous.name}, which served before?")
        readmodel.drop(previous)
        click.echo(f"{previous.name} is deleted.")
        return
    begin = rebuilding.rollback if rollback else rebuilding.begin
    say = partial(click.echo, err=True)
    build = begin(projection, readmodel, feed, str(uuid4()), time.sleep, say)
    new, old = build.generation.name, generation_of(projection, generations.serving).name
    switched = False
    try:
        if not rollback:
            build.fold(_progress(projection.name))
        build.catch_up()
        if readmodel.checkpoint(old).halted:
            note = f"not compared: {old} is halted, its documents come from another log"
            show([{"generation": new, "note": note}], as_json)
        else:
            parity = build.compare()
            _show_parity(new, parity, as_json)
            if not parity.agrees and not accept_differences:
                ask(yes, f"{new} differs. Let it serve all the same?")
        build.switch()
        switched = True
    finally:
        if not switched and not rollback:
            build.discard()
    show([{"serves": new}], as_json)


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
        "parkedAnew": parity.parked_anew,
        "digest": f"{parity.new_digest % 2**64:016x}",
        "servingDigest": f"{parity.serving_digest % 2**64:016x}",
    }
    show([line], as_json)
    for kind, streams in parity.ids.items():
        listed = " ".join(streams)
        click.echo(json.dumps({kind: listed}) if as_json else f"{kind}: {listed}")
