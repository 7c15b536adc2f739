"""Commands for operators, beside the processes: `python -m eventcore lag`, `trace ID`, ...

A command runs with the settings of the process that it is about: in its pod, or in `make shell`.
It prints tables, or with --json one JSON object a line. A command that deletes asks first, or
takes --yes.
"""

import getpass
import importlib
import json
import os
import random
import sys
import time
import urllib.request
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any, TypeVar
from uuid import uuid4

import click

from eventcore import jsontext
from eventcore import rebuild as rebuilding
from eventcore.broker import DeadLetter, DeadLetters, Fate, Queue, RabbitMQ
from eventcore.errors import Away, Misconfigured, Refused
from eventcore.feed import HttpFeed
from eventcore.history import find, tell, timeline
from eventcore.projection import Projection
from eventcore.projector import Folder
from eventcore.query import Serving
from eventcore.readmodel import Mongo, Parked, Skip, Verification, generation_of
from eventcore.settings import (
    BrokerSettings,
    ProjectionSettings,
    ReadModelSettings,
    Settings,
    TraceSettings,
    read_settings,
)
from eventcore.store import Postgres
from eventcore.verify import Verifier, why_halted
from eventcore.watch import Behind

Row = dict[str, object]
Kind = TypeVar("Kind", bound=Settings)

as_json = click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
yes = click.option("--yes", is_flag=True, help="Do not ask.")


@click.command()
@click.argument("beginnings", metavar="[BEGINNING]...", nargs=-1)
def metrics(beginnings: Sequence[str]) -> None:
    """Print the metrics of one process.

    It is the process whose METRICS_PORT this is. Prints all metrics, or those that begin so.
    """
    settings = _settings(Settings, "metrics")

    try:
        url = f"http://localhost:{settings.metrics_port}/metrics"
        without_proxy = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with without_proxy.open(url, timeout=10) as answer:
            lines = answer.read().decode().splitlines()
    except OSError as error:
        raise Away(f"nothing serves metrics at METRICS_PORT: {error}") from error
    for line in lines:
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
    the read model of the SERVICE. Neither names nor e-mails nor anything else of an event's data is
    printed, unless --data is given.
    """
    settings = _settings(TraceSettings, "trace")
    store, readmodel = Postgres(settings.store, 1), Mongo(settings.readmodel, 1)
    since = since and (since if since.tzinfo else since.replace(tzinfo=UTC))
    projections = service_module().PROJECTIONS
    history = find(wanted, settings.service, store, readmodel, projections, since)
    if history.searched and not history.searched.is_whole:
        click.echo(f"eventcore: {history.searched}", err=True)
    if history.is_empty:
        raise Refused(f"nothing is known of {wanted} in the service {settings.service}")
    for entry in timeline(history, with_data=with_data):
        click.echo(jsontext.render(entry.as_json()) if as_json else tell(entry))


@click.command()
@as_json
def lag(as_json: bool) -> None:
    """Print how far the relay and the projections are behind.

    The log is that of the feed's service. Lags are in positions, where gaps count, and in seconds.
    """
    rows: list[Row] = []
    readmodel, feed, projections = _at_projections("lag")
    log = feed.progress()
    of_log: Row = {"head": log.head, "settled": log.settled, "relayed": log.relayed}
    behind = max(0, log.settled - log.relayed)
    _show([{**of_log, "behind": behind, "halted": log.relay_halted}], as_json)
    for projection in projections:
        generation = Serving(projection, readmodel).now()
        checkpoint = readmodel.checkpoint(generation.name)
        oldest, settled = Behind(projection, readmodel, feed, generation).oldest(
            checkpoint.position
        )
        row: Row = {
            "projection": projection.name,
            "generation": generation.number,
            "checkpoint": checkpoint.position,
            "behind": settled - oldest.position + 1 if oldest else 0,
            "seconds": round(_age(oldest.recorded_at), 1) if oldest else 0,
            "parked": readmodel.count_parked(generation.name),
            "halted": checkpoint.halted or why_halted(projection.name, checkpoint, feed),
        }
        rows.append(row)
    _show(rows, as_json, "This service folds no projection from that log.")


@click.group()
def parked() -> None:
    """Look at, retry or skip streams that a projection has parked."""


@parked.command(name="list")
@as_json
def parked_list(as_json: bool) -> None:
    """List the parked streams: where each stopped, and why."""
    settings = _settings(ReadModelSettings, "parked list")

    readmodel = Mongo(settings.readmodel)
    rows = [
        _parked(projection, each)
        for projection in service_module().PROJECTIONS
        for each in readmodel.parked(Serving(projection, readmodel).now().name).values()
    ]
    _show(rows, as_json, f"No parked streams in the service {settings.service}.")


@parked.command(name="show")
@click.argument("projection_name", metavar="PROJECTION")
@click.argument("stream")
@click.option("--data", is_flag=True, help="Also what the events say; it may be personal.")
@as_json
def parked_show(projection_name: str, stream: str, data: bool, as_json: bool) -> None:
    """Show a parked stream, and its events since it stopped."""
    rows: list[Row] = []
    projection, readmodel, feed, folder = _at(projection_name, "parked show")
    found = _require_parked(projection, readmodel, folder, stream)
    _show([_parked(projection, found)], as_json)
    for event in feed.stream(stream, found.version - 1):
        row: Row = {
            "version": event.version,
            "event": event.event_type,
            "schemaVersion": event.schema_version,
            "id": str(event.event_id),
            "position": event.position,
            "recordedAt": event.recorded_at.isoformat(),
        }
        rows.append({**row, "data": _plain(event.data)} if data else row)
    _show(rows, as_json, "The feed has no event of it from there on.")


@parked.command(name="retry")
@click.argument("projection_name", metavar="PROJECTION")
@click.argument("streams", metavar="[STREAM]...", nargs=-1)
def parked_retry(projection_name: str, streams: Sequence[str]) -> None:
    """Try parked streams again, all or those named.

    A stream goes on where it stopped; one that still cannot be applied stays parked. Ends
    with status 1 if any does.
    """
    _, readmodel, __, folder = _at(projection_name, "parked retry")
    entries = readmodel.parked(folder.generation.name, streams or None)
    released = folder.retry(entries)
    for stream in entries:
        click.echo(f"{stream}: {'released' if stream in released else 'still parked'}")
    if not entries:
        click.echo(f"No parked streams in {projection_name}.")
    sys.exit(0 if len(released) == len(entries) else 1)


@parked.command(name="skip")
@click.argument("projection_name", metavar="PROJECTION")
@click.argument("stream")
@click.option("--why", required=True, help="The reason; it is kept.")
@click.option("--who", default=getpass.getuser, help="Who decides this; it is kept.")
@yes
def parked_skip(projection_name: str, stream: str, why: str, who: str, yes: bool) -> None:
    """Pass over the event that a stream stopped at, for good.

    The stream goes on after it. The event stays in the log. A rebuild passes over it too. Where it
    is the first of its stream, the document is not shown. Ends with status 1 if it stops again.
    """
    projection, readmodel, feed, folder = _at(projection_name, "parked skip")
    found = _require_parked(projection, readmodel, folder, stream)
    event = next(iter(feed.stream(stream, found.version - 1)), None)
    if event is None:
        raise Refused(f"the log has no version {found.version} of {stream}")
    what = f"{event.event_type}, version {event.version} of {stream}, in {projection.name}"
    _ask(yes, f"Pass over {what}, for good?")
    event_id = str(event.event_id)
    readmodel.skip(
        Skip(projection.name, stream, event.version, event_id, who, why, datetime.now(UTC))
    )
    folder.follow()
    released = folder.retry({stream: found})
    click.echo(f"{stream}: {'released' if released else 'parked again, further on'}")
    sys.exit(0 if released else 1)


@click.group(name="dead-letters")
def dead_letters() -> None:
    """Look at, requeue or discard messages that are not events."""


@dead_letters.command(name="list")
@click.argument("projection_name", metavar="PROJECTION")
@as_json
def dead_letters_list(projection_name: str, as_json: bool) -> None:
    """List the dead letters of PROJECTION: id, key, size, and why."""
    rows: list[Row] = []

    def note(letter: DeadLetter) -> Fate:
        row: Row = {
            "id": letter.id,
            "routingKey": letter.routing_key,
            "bytes": len(letter.message.body),
            "messageId": letter.message.id,
            "reason": letter.reason,
        }
        rows.append(row)
        return "keep"

    _dead_letters(projection_name, "dead-letters list").go_through(note)
    _show(rows, as_json, f"No dead letters of {projection_name}.")


@dead_letters.command(name="show")
@click.argument("projection_name", metavar="PROJECTION")
@click.argument("letter_id", metavar="ID")
def dead_letters_show(projection_name: str, letter_id: str) -> None:
    """Print one message as it came.

    Bytes that are not text are written as \\xNN.
    """
    found: list[DeadLetter] = []

    def pick(letter: DeadLetter) -> Fate:
        if letter.id == letter_id:
            found.append(letter)
        return "keep"

    _dead_letters(projection_name, "dead-letters show").go_through(pick)
    if not found:
        raise Refused(f"{projection_name} has no dead letter {letter_id}; list them again")
    for name, value in found[0].message.headers.items():
        click.echo(f"{name}: {value}")
    click.echo("")
    click.echo(found[0].message.body.decode(errors="backslashreplace"))


@dead_letters.command(name="requeue")
@click.argument("projection_name", metavar="PROJECTION")
@click.argument("letter_ids", metavar="[ID]...", nargs=-1)
@yes
def dead_letters_requeue(projection_name: str, letter_ids: Sequence[str], yes: bool) -> None:
    """Give messages back to PROJECTION, all or those named.

    New code may be able to read them.
    """
    _settle_letters(projection_name, "requeue", letter_ids, yes)


@dead_letters.command(name="discard")
@click.argument("projection_name", metavar="PROJECTION")
@click.argument("letter_ids", metavar="[ID]...", nargs=-1)
@yes
def dead_letters_discard(projection_name: str, letter_ids: Sequence[str], yes: bool) -> None:
    """Delete messages, all or those named.

    No event is lost: the log has them all.
    """
    _settle_letters(projection_name, "discard", letter_ids, yes)


@click.command()
@click.argument("projection_name", metavar="PROJECTION")
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
    projection, readmodel, feed, folder = _at(projection_name, "rebuild")
    if stream:
        changed = rebuilding.rebuild_stream(projection, readmodel, feed, folder.generation, stream)
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
    switched = False
    try:
        if not rollback:
            build.fold(_progress(projection.name))
        build.catch_up()
        serving = generation_of(projection, generations.serving).name
        if readmodel.checkpoint(serving).halted:
            note = f"not compared: {serving} is halted, its documents come from another log"
            _show([{"generation": build.generation.name, "note": note}], as_json)
        else:
            parity = build.compare()
            _show_parity(build.generation.name, parity, as_json)
            if not parity.agrees and not accept_differences:
                _ask(yes, f"{build.generation.name} differs. Let it serve all the same?")
        build.switch()
        switched = True
    finally:
        if not switched and not rollback:
            build.discard()
    _show([{"serves": build.generation.name}], as_json)


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
        generation = Serving(projection, readmodel).now()
        verifier = Verifier(projection, readmodel, feed, generation, time.sleep)
        found = verifier.run(None if everything else sample, random.SystemRandom())
        wrong += [
            {"projection": projection.name, "stream": each.stream, "what": each.what}
            for each in found.wrong
        ]
        row: Row = {
            "projection": projection.name,
            "generation": generation.number,
            "checked": found.checked,
            "wrong": len(found.wrong),
            "checkpoint": found.checkpoint.position,
            "settled": found.log.settled,
            "relayBehind": found.log.settled - found.log.relayed,
        }
        rows.append(row)
        readmodel.note_verification(
            Verification(projection.name, datetime.now(UTC), found.checked, len(found.wrong))
        )
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


def open_folder(
    settings: ProjectionSettings, projection: Projection
) -> tuple[Mongo, HttpFeed, Folder]:
    """Returns the read model, the feed and the folder of a projection."""
    readmodel = Mongo(settings.readmodel)
    feed = HttpFeed(settings.feed.url, settings.feed.token)
    return readmodel, feed, Folder(projection, readmodel, feed)


def _at(name: str, command: str) -> tuple[Projection, Mongo, HttpFeed, Folder]:
    """A projection with its read model, feed and folder, at the generation that serves."""
    settings = _settings(ProjectionSettings, command)
    projection = projection_named(name)
    readmodel, feed, folder = open_folder(settings, projection)
    folder.follow()
    return projection, readmodel, feed, folder


def _at_projections(
    command: str, names: Sequence[str] = ()
) -> tuple[Mongo, HttpFeed, list[Projection]]:
    """A read model, a feed, and the projections that are folded from it, or those of `names`."""
    settings = _settings(ProjectionSettings, command)
    feed = HttpFeed(settings.feed.url, settings.feed.token)
    known: Sequence[Projection] = service_module().PROJECTIONS
    if names:
        known = [projection_named(name) for name in names]
    owner = feed.aggregate_type()
    return Mongo(settings.readmodel), feed, [p for p in known if p.aggregate_type == owner]


def _require_parked(
    projection: Projection, readmodel: Mongo, folder: Folder, stream: str
) -> Parked:
    found = readmodel.parked(folder.generation.name, [stream]).get(stream)
    if found is None:
        raise Refused(f"{stream} is not parked in {projection.name}")
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


def _dead_letters(name: str, command: str) -> DeadLetters:
    settings = _settings(BrokerSettings, command)
    projection = projection_named(name)

    broker = RabbitMQ(settings.broker, name=command)
    return broker.dead_letters(Queue(projection.queue, projection.binding))


def _settle_letters(name: str, fate: Fate, ids: Sequence[str], yes: bool) -> None:
    which = ", ".join(ids) or "all dead letters"
    _ask(yes, f"{fate.capitalize()} {which} of {name}?")
    settled: list[str] = []

    def decide(letter: DeadLetter) -> Fate:
        if ids and letter.id not in ids:
            return "keep"
        settled.append(letter.id)
        return fate

    _dead_letters(name, f"dead-letters {fate}").go_through(decide)
    for each in settled:
        click.echo(f"{each}: {'requeued' if fate == 'requeue' else 'discarded'}")
    if not settled and not ids:
        click.echo(f"No dead letters of {name}.")
    if missing := set(ids) - set(settled):
        raise Refused(f"{name} has no dead letter {', '.join(sorted(missing))}; list them again")


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
        if as_json:
            _show([{kind: " ".join(streams)}], as_json)
        else:
            click.echo(f"{kind}: {' '.join(streams)}")


def _ask(yes: bool, question: str) -> None:
    """Asks, unless `yes`; raises Refused if the answer is no, or there is no terminal."""
    if yes:
        return
    if not sys.stdin.isatty():
        raise Refused(f"nothing was changed. {question} If so, run it again with --yes")
    if not click.confirm(question):
        raise Refused("nothing was changed")


def _show(rows: Sequence[Row], as_json: bool, nothing: str = "") -> None:
    """Prints a table, or one JSON object a line; `nothing` where there is no row."""
    if as_json:
        for row in rows:
            click.echo(json.dumps(row))
    elif not rows:
        click.echo(nothing)
    else:
        lines = [list(rows[0]), *([_cell(each) for each in row.values()] for row in rows)]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        for line in lines:
            cells = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
            click.echo("  ".join(cells).rstrip())


def _cell(value: object) -> str:
    return "-" if value in ("", None) else str(value)


def _settings(kind: type[Kind], command: str) -> Kind:
    """Returns the settings of a command; raises Misconfigured, which says where to run it."""
    try:
        return read_settings(kind, command)
    except Misconfigured as error:
        raise Misconfigured(
            f"{error}. Run it in the pod of the process that it is about, or in `make shell`"
        ) from error


def _plain(data: Any) -> Any:
    """Event data as plain JSON; decimals as the text they are."""
    return json.loads(json.dumps(data, default=str))


def _age(moment: datetime) -> float:
    return max(0.0, (datetime.now(UTC) - moment).total_seconds())


TOOLS = (metrics, trace, lag, parked, dead_letters, rebuild, verify)
"""All of them."""
