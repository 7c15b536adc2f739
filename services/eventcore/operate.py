"""Commands for operators, beside the processes: `python -m eventcore lag`, `trace ID`, ...

A command prints tables, or with --json one JSON object a line. One that deletes asks first, or
takes --yes.
"""

import getpass
import importlib
import json
import os
import random
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from datetime import UTC, datetime, timedelta
from http.client import HTTPConnection, HTTPException
from typing import Any, TypeVar
from uuid import uuid4

import click

from eventcore import jsontext, settings
from eventcore import rebuild as rebuilding
from eventcore.broker import DeadLetter, Fate, Queue, RabbitMQ
from eventcore.errors import Away, Misconfigured, Refused
from eventcore.feed import HttpFeed
from eventcore.history import find, tell, timeline
from eventcore.projection import Projection
from eventcore.projector import Folder
from eventcore.query import Serving
from eventcore.readmodel import Mongo, Parked, Skip, Verification, generation_of
from eventcore.store import Postgres
from eventcore.verify import Verifier, why_halted
from eventcore.watch import Behind

Row = dict[str, object]
Kind = TypeVar("Kind", bound=settings.Settings)

projection_name = click.argument("projection_name", metavar="PROJECTION")
letter_ids = click.argument("letter_ids", metavar="[ID]...", nargs=-1)
as_json = click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
yes = click.option("--yes", is_flag=True, help="Do not ask.")


@click.command()
@click.argument("beginnings", metavar="[BEGINNING]...", nargs=-1)
def metrics(beginnings: tuple[str, ...]) -> None:
    """Print the metrics of one process.

    It is the process at METRICS_PORT. Prints all metrics, or those that begin so.
    """
    port = _settings(settings.Settings, "metrics").metrics_port
    try:
        with closing(HTTPConnection("localhost", port, timeout=10)) as connection:
            connection.request("GET", "/metrics")
            text = connection.getresponse().read().decode()
    except (OSError, HTTPException) as error:
        raise Away(f"nothing serves metrics at METRICS_PORT: {error}") from error
    for line in text.splitlines():
        if not line.startswith("#") and (not beginnings or line.startswith(beginnings)):
            click.echo(line)


@click.command()
@click.argument("wanted", metavar="ID")
@as_json
@click.option("--data", "with_data", is_flag=True, help="What is in the events and errors, too.")
@click.option(
    "--since", type=click.DateTime(["%Y-%m-%dT%H:%M:%S%z", "%Y-%m-%d"]),
    help="Look for a correlation id from then on, such as 2026-01-16T10:00:00Z.",
)  # fmt: skip
def trace(wanted: str, as_json: bool, with_data: bool, since: datetime | None) -> None:
    """Print all that happened to ID, in order, with times.

    ID is an aggregate's, such as an order's, or a correlation id. It is looked for in the store and
    the read model of the SERVICE. Nothing of an event's data is printed, unless --data is given.
    """
    own = _settings(settings.TraceSettings, "trace")
    store, readmodel = Postgres(own.store, 1), Mongo(own.readmodel, 1)
    since = since and (since if since.tzinfo else since.replace(tzinfo=UTC))
    history = find(wanted, own.service, store, readmodel, service_module().PROJECTIONS, since)
    if history.searched and not history.searched.is_whole:
        click.echo(f"eventcore: {history.searched}", err=True)
    if history.is_empty:
        raise Refused(f"nothing is known of {wanted} in the service {own.service}")
    for entry in timeline(history, with_data=with_data):
        click.echo(jsontext.render(entry.as_json()) if as_json else tell(entry))


@click.command()
@as_json
def lag(as_json: bool) -> None:
    """Print how far the relay and the projections are behind.

    The log is that of the feed's service. Lags are in positions, where gaps count, and in seconds.
    """
    readmodel, feed, projections = _at_projections("lag")
    log = feed.progress()
    behind = max(0, log.settled - log.relayed)
    of_log: Row = {"head": log.head, "settled": log.settled, "relayed": log.relayed}
    _show([{**of_log, "behind": behind, "halted": log.relay_halted}], as_json)
    rows = [_lag(projection, readmodel, feed) for projection in projections]
    _show(rows, as_json, "This service folds no projection from that log.")


def _lag(projection: Projection, readmodel: Mongo, feed: HttpFeed) -> Row:
    generation = Serving(projection, readmodel).now()
    checkpoint = readmodel.checkpoint(generation.name)
    oldest, settled = Behind(projection, readmodel, feed, generation).oldest(checkpoint.position)
    age = datetime.now(UTC) - oldest.recorded_at if oldest else timedelta()
    return {
        "projection": projection.name,
        "generation": generation.number,
        "checkpoint": checkpoint.position,
        "behind": settled - oldest.position + 1 if oldest else 0,
        "seconds": max(0.0, round(age.total_seconds(), 1)),
        "parked": readmodel.count_parked(generation.name),
        "halted": checkpoint.halted or why_halted(projection.name, checkpoint, feed),
    }


@click.group()
def parked() -> None:
    """Look at, retry or skip streams that a projection has parked."""


@parked.command(name="list")
@as_json
def parked_list(as_json: bool) -> None:
    """List the parked streams: where each stopped, and why."""
    own = _settings(settings.ReadModelSettings, "parked list")
    readmodel = Mongo(own.readmodel)
    rows = [
        _parked(projection, each)
        for projection in service_module().PROJECTIONS
        for each in readmodel.parked(Serving(projection, readmodel).now().name).values()
    ]
    _show(rows, as_json, f"No parked streams in the service {own.service}.")


@parked.command(name="show")
@projection_name
@click.argument("stream")
@click.option("--data", is_flag=True, help="Also what the events say; it may be personal.")
@as_json
def parked_show(projection_name: str, stream: str, data: bool, as_json: bool) -> None:
    """Show a parked stream, and its events since it stopped."""
    folder = _at(projection_name, "parked show")
    found = _require_parked(folder, stream)
    _show([_parked(folder.projection, found)], as_json)
    rows: list[Row] = [
        {
            "version": event.version,
            "event": event.event_type,
            "schemaVersion": event.schema_version,
            "id": event.event_id,
            "position": event.position,
            "recordedAt": event.recorded_at.isoformat(),
            **({"data": event.data} if data else {}),
        }
        for event in folder.feed.stream(stream, found.version - 1)
    ]
    _show(rows, as_json, "The feed has no event of it from there on.")


@parked.command(name="retry")
@projection_name
@click.argument("streams", metavar="[STREAM]...", nargs=-1)
def parked_retry(projection_name: str, streams: Sequence[str]) -> None:
    """Try parked streams again, all or those named.

    A stream goes on where it stopped; one that still cannot be applied stays parked. Ends
    with status 1 if any does.
    """
    folder = _at(projection_name, "parked retry")
    entries = folder.readmodel.parked(folder.generation.name, streams or None)
    released = folder.retry(entries)
    for stream in entries:
        click.echo(f"{stream}: {'released' if stream in released else 'still parked'}")
    if not entries:
        click.echo(f"No parked streams in {projection_name}.")
    sys.exit(0 if len(released) == len(entries) else 1)


@parked.command(name="skip")
@projection_name
@click.argument("stream")
@click.option("--why", required=True, help="The reason; it is kept.")
@click.option("--who", default=getpass.getuser, help="Who decides this; it is kept.")
@yes
def parked_skip(projection_name: str, stream: str, why: str, who: str, yes: bool) -> None:
    """Pass over the event that a stream stopped at, for good.

    The stream goes on after it. The event stays in the log. A rebuild passes over it too. Where it
    is the first of its stream, the document is not shown. Ends with status 1 if it stops again.
    """
    folder = _at(projection_name, "parked skip")
    found = _require_parked(folder, stream)
    event = next(iter(folder.feed.stream(stream, found.version - 1)), None)
    if event is None:
        raise Refused(f"the log has no version {found.version} of {stream}")
    version, name = event.version, folder.projection.name
    _ask(yes, f"Pass over {event.event_type}, version {version} of {stream}, in {name}, for good?")
    now = datetime.now(UTC)
    folder.readmodel.skip(Skip(name, stream, version, str(event.event_id), who, why, now))
    folder.follow()
    released = folder.retry({stream: found})
    click.echo(f"{stream}: {'released' if released else 'parked again, further on'}")
    sys.exit(0 if released else 1)


@click.group(name="dead-letters")
def dead_letters() -> None:
    """Look at, requeue or discard messages that are not events."""


@dead_letters.command(name="list")
@projection_name
@as_json
def dead_letters_list(projection_name: str, as_json: bool) -> None:
    """List the dead letters of PROJECTION: id, key, size, and why."""
    rows: list[Row] = [
        {
            "id": letter.id,
            "routingKey": letter.routing_key,
            "bytes": len(letter.message.body),
            "messageId": letter.message.id,
            "reason": letter.reason,
        }
        for letter in _letters(projection_name, "list")
    ]
    _show(rows, as_json, f"No dead letters of {projection_name}.")


@dead_letters.command(name="show")
@projection_name
@click.argument("letter_id", metavar="ID")
def dead_letters_show(projection_name: str, letter_id: str) -> None:
    """Print one message as it came.

    Bytes that are not text are written as \\xNN.
    """
    letters = _letters(projection_name, "show", [letter_id])
    _require_letters(projection_name, [letter_id], letters)
    for name, value in letters[0].message.headers.items():
        click.echo(f"{name}: {value}")
    click.echo(f"\n{letters[0].message.body.decode(errors='backslashreplace')}")


@dead_letters.command(name="requeue")
@projection_name
@letter_ids
@yes
def dead_letters_requeue(projection_name: str, letter_ids: Sequence[str], yes: bool) -> None:
    """Give messages back to PROJECTION, all or those named.

    New code may be able to read them.
    """
    _settle_letters(projection_name, "requeue", letter_ids, yes)


@dead_letters.command(name="discard")
@projection_name
@letter_ids
@yes
def dead_letters_discard(projection_name: str, letter_ids: Sequence[str], yes: bool) -> None:
    """Delete messages, all or those named.

    No event is lost: the log has them all.
    """
    _settle_letters(projection_name, "discard", letter_ids, yes)


def _settle_letters(name: str, fate: Fate, ids: Sequence[str], yes: bool) -> None:
    _ask(yes, f"{fate.capitalize()} {', '.join(ids) or 'all dead letters'} of {name}?")
    settled = _letters(name, fate, ids, fate)
    for letter in settled:
        click.echo(f"{letter.id}: {'requeued' if fate == 'requeue' else 'discarded'}")
    if not settled and not ids:
        click.echo(f"No dead letters of {name}.")
    _require_letters(name, ids, settled)


def _letters(
    name: str, command: str, ids: Sequence[str] = (), fate: Fate = "keep"
) -> list[DeadLetter]:
    """Settles the dead letters of these ids, or all, and returns them."""
    own = _settings(settings.BrokerSettings, f"dead-letters {command}")
    projection = projection_named(name)
    found: list[DeadLetter] = []

    def decide(letter: DeadLetter) -> Fate:
        if ids and letter.id not in ids:
            return "keep"
        found.append(letter)
        return fate

    broker = RabbitMQ(own.broker, name=own.process)
    broker.dead_letters(Queue(projection.queue, projection.binding)).go_through(decide)
    return found


def _require_letters(name: str, ids: Sequence[str], found: Sequence[DeadLetter]) -> None:
    if missing := set(ids) - {letter.id for letter in found}:
        raise Refused(f"{name} has no dead letter {', '.join(sorted(missing))}; list them again")


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
    folder = _at(projection_name, "rebuild")
    projection, readmodel, feed = folder.projection, folder.readmodel, folder.feed
    if stream:
        serving = folder.generation
        changed = rebuilding.rebuild_stream(projection, readmodel, feed, serving, stream)
        click.echo(f"{stream}: {'folded anew' if changed else 'was right already'}")
        return
    generations = readmodel.generations(projection.name)
    if drop_previous:
        if not generations.previous:
            raise Refused(f"no generation of {projection.name} is kept beside the serving one")
        previous = generation_of(projection, generations.previous)
        _ask(yes, f"Delete {previous.name}, which served before?")
        readmodel.drop(previous)
        click.echo(f"{previous.name} is deleted.")
        return
    begin = rebuilding.back if rollback else rebuilding.begin
    build = begin(projection, readmodel, feed, str(uuid4()), time.sleep)
    new, old = build.generation.name, generation_of(projection, generations.serving).name
    switched = False
    try:
        if not rollback:
            build.fold(_progress(projection.name))
        build.catch_up()
        if readmodel.checkpoint(old).halted:
            note = f"not compared: {old} is halted, its documents come from another log"
            _show([{"generation": new, "note": note}], as_json)
        else:
            parity = build.compare()
            _show_parity(new, parity, as_json)
            if not parity.agrees and not accept_differences:
                _ask(yes, f"{new} differs. Let it serve all the same?")
        build.switch()
        switched = True
    finally:
        if not switched and not rollback:
            build.discard()
    _show([{"serves": new}], as_json)


@click.command()
@click.argument("projection_names", metavar="[PROJECTION]...", nargs=-1)
@click.option("--all", "everything", is_flag=True, help="Every stream and every document.")
@click.option("--sample", default=200, show_default=True, help="Streams taken by chance.")
@as_json
def verify(projection_names: Sequence[str], everything: bool, sample: int, as_json: bool) -> None:
    """Compare projections with the log, all or those named.

    Each stream's versions must have no gap, and its document must be what they fold to. Ends with
    status 1 if anything is wrong; the result is a metric as well.
    """
    wrong: list[Row] = []
    rows: list[Row] = []
    readmodel, feed, projections = _at_projections("verify", projection_names)
    for projection in projections:
        name, generation = projection.name, Serving(projection, readmodel).now()
        verifier = Verifier(projection, readmodel, feed, generation, time.sleep)
        found = verifier.run(None if everything else sample, random.SystemRandom())
        wrong += [{"projection": name, "stream": w.stream, "what": w.what} for w in found.wrong]
        row: Row = {
            "projection": name,
            "generation": generation.number,
            "checked": found.checked,
            "wrong": len(found.wrong),
            "checkpoint": found.checkpoint.position,
            "settled": found.log.settled,
            "relayBehind": found.log.settled - found.log.relayed,
        }
        rows.append(row)
        noted = Verification(name, datetime.now(UTC), found.checked, len(found.wrong))
        readmodel.note_verification(noted)
    if wrong:
        _show(wrong, as_json)
    _show(rows, as_json, "This service folds no projection from that log.")
    sys.exit(1 if wrong else 0)


def service_module() -> Any:
    """Returns the main module of the service: Settings, PROJECTIONS, create_app."""
    name = os.environ.get("SERVICE", "")
    try:
        return importlib.import_module(f"{name or 'SERVICE'}.main")
    except ModuleNotFoundError as error:
        raise Misconfigured(f"SERVICE must name a service, not {name!r}") from error


def projection_named(name: str) -> Projection:
    """The projection of that name; raises Misconfigured where the service has none."""
    known: dict[str, Projection] = {each.name: each for each in service_module().PROJECTIONS}
    if name not in known:
        raise Misconfigured(f"there is no projection {name!r}, only {', '.join(known) or 'none'}")
    return known[name]


def open_folder(own: settings.ProjectionSettings, projection: Projection) -> Folder:
    """Returns the folder of a projection, on its read model and feed."""
    return Folder(projection, Mongo(own.readmodel), HttpFeed(own.feed.url, own.feed.token))


def _at(name: str, command: str) -> Folder:
    """The folder of a projection, at the generation that serves."""
    own = _settings(settings.ProjectionSettings, command)
    folder = open_folder(own, projection_named(name))
    folder.follow()
    return folder


def _at_projections(
    command: str, names: Sequence[str] = ()
) -> tuple[Mongo, HttpFeed, list[Projection]]:
    """A read model, a feed, and the projections that are folded from it, or those of `names`."""
    own = _settings(settings.ProjectionSettings, command)
    feed = HttpFeed(own.feed.url, own.feed.token)
    known = [projection_named(name) for name in names] or service_module().PROJECTIONS
    owner = feed.aggregate_type()
    return Mongo(own.readmodel), feed, [p for p in known if p.aggregate_type == owner]


def _require_parked(folder: Folder, stream: str) -> Parked:
    found = folder.readmodel.parked(folder.generation.name, [stream]).get(stream)
    if found is None:
        raise Refused(f"{stream} is not parked in {folder.projection.name}")
    return found


def _parked(projection: Projection, parked: Parked) -> Row:
    return {
        "projection": projection.name,
        "stream": parked.stream,
        "version": parked.version,
        "highest": parked.highest,
        "when": parked.when.isoformat(),
        "error": parked.error,
    }


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


def _show_parity(name: str, parity: rebuilding.Parity, as_json: bool) -> None:
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
    _show([line], as_json)
    for kind, streams in parity.ids.items():
        listed = " ".join(streams)
        click.echo(json.dumps({kind: listed}) if as_json else f"{kind}: {listed}")


def _ask(yes: bool, question: str) -> None:
    """Asks, unless `yes`; raises Refused if the answer is no, or there is no terminal."""
    if not yes and not sys.stdin.isatty():
        raise Refused(f"nothing was changed. {question} If so, run it again with --yes")
    if not yes and not click.confirm(question):
        raise Refused("nothing was changed")


def _show(rows: Sequence[Row], as_json: bool, nothing: str = "") -> None:
    """Prints a table, or one JSON object a line; `nothing` where there is no row."""
    if as_json:
        for row in rows:
            click.echo(json.dumps(row, default=str))
    elif not rows:
        click.echo(nothing)
    else:
        cells = [["-" if v in ("", None) else str(v) for v in row.values()] for row in rows]
        lines = [list(rows[0]), *cells]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        for line in lines:
            click.echo("  ".join(map(str.ljust, line, widths)).rstrip())


def _settings(kind: type[Kind], command: str) -> Kind:
    """Returns the settings of a command; raises Misconfigured, which says where to run it."""
    try:
        return settings.read_settings(kind, command)
    except Misconfigured as error:
        where = "Run it in the pod of the process that it is about, or in `make shell`"
        raise Misconfigured(f"{error}. {where}") from error


TOOLS = (metrics, trace, lag, parked, dead_letters, rebuild, verify)
"""All of them."""
