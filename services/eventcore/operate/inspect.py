"""`metrics`, `trace`, `lag` and `verify`: look, and change nothing."""

import random
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from datetime import UTC, datetime, timedelta
from http.client import HTTPConnection, HTTPException
from typing import NoReturn

import click

from eventcore import jsontext, settings
from eventcore.errors import Refused, Unavailable
from eventcore.model.view import AnyProjection, View
from eventcore.operate.history import find
from eventcore.operate.shared import (
    Row,
    as_json,
    command_settings,
    declared,
    open_projections,
    show,
)
from eventcore.operate.timeline import tell, timeline
from eventcore.operate.verifying import Verified, Verifier, why_halted
from eventcore.operate.verifying_snapshots import compare_snapshots
from eventcore.operate.verifying_view import ViewVerifier
from eventcore.operate.watch import Backlog
from eventcore.project.parts import open_parts
from eventcore.readmodel.mongo import Mongo
from eventcore.readmodel.records import Generation, Verification
from eventcore.readmodel.serving import Serving
from eventcore.store.feed import Feed
from eventcore.store.postgres import Postgres


@click.command()
@click.argument("beginnings", metavar="[BEGINNING]...", nargs=-1)
def metrics(beginnings: tuple[str, ...]) -> None:
    """Print the metrics of one process.

    It is the process at METRICS_PORT. Prints all metrics, or those that begin so.
    """
    port = command_settings(settings.Settings, "metrics").metrics_port
    try:
        with closing(HTTPConnection("localhost", port, timeout=10)) as connection:
            connection.request("GET", "/metrics")
            text = connection.getresponse().read().decode()
    except (OSError, HTTPException) as error:
        raise Unavailable(f"nothing serves metrics at METRICS_PORT: {error}") from error
    for line in text.splitlines():
        if not line.startswith("#") and (not beginnings or line.startswith(beginnings)):
            click.echo(line)


class _TraceSettings(settings.StoreSettings, settings.ReadModelSettings):
    """The settings of `trace`, which reads the event store and the read model."""


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
    config = command_settings(_TraceSettings, "trace")
    store, readmodel = Postgres(config.store, 1), Mongo(config.readmodel, 1)
    since = since and (since if since.tzinfo else since.replace(tzinfo=UTC))
    service = declared()
    types = [each.aggregate_type for each in service.catalogues]
    history = find(wanted, service.name, store, readmodel, service.projections, since, types)
    if history.searched and not history.searched.is_whole:
        click.echo(f"eventcore: {history.searched}", err=True)
    if history.is_empty:
        raise Refused(f"nothing is known of {wanted} in the service {config.service}")
    for entry in timeline(history, with_data=with_data):
        click.echo(jsontext.render(entry.as_json()) if as_json else tell(entry))


@click.command()
@click.argument("projection_names", metavar="[PROJECTION]...", nargs=-1)
@as_json
def lag(projection_names: Sequence[str], as_json: bool) -> None:
    """Print how far the relay and the projections are behind.

    The log is that of the feed's service; a view has a log, and a row, for each store. With names,
    prints those projections and no log. Lags are in positions, unused ones included, and seconds.
    """
    readmodel, feeds, logs, projections = open_projections("lag", projection_names)
    for feed in () if projection_names else logs.values():
        log = feed.progress()
        behind = max(0, log.settled - log.relayed)
        of_log: Row = {"head": log.head, "settled": log.settled, "relayed": log.relayed}
        show([{**of_log, "behind": behind, "halted": log.relay_halted}], as_json)
    rows = [
        _lag(projection, readmodel, feeds[store], part)
        for projection in projections
        for store, part in zip(
            projection.stores, Serving(projection, readmodel).parts(), strict=True
        )
    ]
    show(rows, as_json, "This service folds no projection from that log.")


def _lag(projection: AnyProjection, readmodel: Mongo, feed: Feed, generation: Generation) -> Row:
    checkpoint = readmodel.checkpoint(generation.name)
    backlog = Backlog(projection, readmodel, feed, generation)
    oldest, settled = backlog.oldest(checkpoint.position)
    age = datetime.now(UTC) - oldest.recorded_at if oldest else timedelta()
    return {
        "projection": generation.label,
        "generation": generation.number,
        "checkpoint": checkpoint.position,
        "behind": settled - oldest.position + 1 if oldest else 0,
        "seconds": max(0.0, round(age.total_seconds(), 1)),
        "parked": readmodel.count_parked(generation.name),
        "halted": checkpoint.halted or why_halted(generation.label, checkpoint, feed),
    }


@click.command()
@click.argument("projection_names", metavar="[PROJECTION]...", nargs=-1)
@click.option("--all", "everything", is_flag=True, help="Every stream and every document.")
@click.option("--sample", default=200, show_default=True, help="Streams taken by chance.")
@click.option("--snapshots", is_flag=True, help="All snapshots of streams, and no projection.")
@as_json
def verify(
    projection_names: Sequence[str], everything: bool, sample: int, snapshots: bool, as_json: bool
) -> None:
    """Compare projections with the log, all or those named.

    Each stream's versions must have no gap, and its document must be what they fold to. A view has
    a row for each store; its documents are compared once. Ends with status 1 if anything is wrong;
    the result is a metric as well. With --snapshots, which needs the event store alone, compares
    the snapshots of streams with the folds of all their events.
    """
    if snapshots:
        _verify_snapshots(as_json)
    wrong: list[Row] = []
    rows: list[Row] = []
    readmodel, feeds, _, projections = open_projections("verify", projection_names)
    for projection in projections:
        name, generation = projection.name, Serving(projection, readmodel).now()
        verifier = _verifier(projection, readmodel, feeds, generation)
        found = verifier.run(None if everything else sample, random.SystemRandom())
        wrong += [{"projection": name, "stream": w.stream, "what": w.what} for w in found.wrong]
        rows += _verified(found)
        noted = Verification(name, datetime.now(UTC), found.checked, len(found.wrong))
        readmodel.note_verification(noted)
    if wrong:
        show(wrong, as_json)
    show(rows, as_json, "This service folds no projection from that log.")
    sys.exit(1 if wrong else 0)


def _verified(found: Verified) -> list[Row]:
    return [
        {
            "projection": part.label,
            "generation": part.number,
            "checked": found.checked,
            "wrong": len(found.wrong),
            "checkpoint": checkpoint.position,
            "settled": log.settled,
            "relayBehind": log.settled - log.relayed,
        }
        for part, checkpoint, log in found.parts
    ]


def _verify_snapshots(as_json: bool) -> NoReturn:
    store = Postgres(command_settings(settings.StoreSettings, "verify --snapshots").store, 1)
    found = {each.aggregate_type: compare_snapshots(store, each) for each in declared().deciders}
    wrong: list[Row] = [
        {"stream": str(stream), "what": what}
        for each in found.values()
        for stream, what in each.wrong.items()
    ]
    rows: list[Row] = [
        {"aggregate": kind, "checked": each.checked, "wrong": len(each.wrong),
         "ofOtherCode": each.of_other_code}
        for kind, each in found.items()
    ]  # fmt: skip
    if wrong:
        show(wrong, as_json)
    show(rows, as_json, "This service declares no decider whose streams have snapshots.")
    sys.exit(1 if wrong else 0)


def _verifier(
    projection: AnyProjection, readmodel: Mongo, feeds: Mapping[str, Feed], generation: Generation
) -> Verifier | ViewVerifier:
    if isinstance(projection, View):
        parts = open_parts(projection, readmodel, feeds, generation.number)
        for part in parts:
            part.follow()
        return ViewVerifier(parts)
    feed = feeds[projection.aggregate_type]
    return Verifier(projection, readmodel, feed, generation, time.sleep)
