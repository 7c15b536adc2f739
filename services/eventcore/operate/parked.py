"""`parked`: list, show, retry and skip parked streams."""

import getpass
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import click

from eventcore import settings
from eventcore.errors import Refused
from eventcore.model.event import to_timestamp
from eventcore.operate.shared import (
    Row,
    as_json,
    ask,
    command_settings,
    declared,
    open_at,
    projection_name,
    show,
    yes,
)
from eventcore.project.folding import Folding
from eventcore.reactor import Reactor
from eventcore.readmodel.mongo import Mongo
from eventcore.readmodel.records import Generation, Parked, Skip
from eventcore.readmodel.serving import Serving


@click.group()
def parked() -> None:
    """Look at, retry or skip streams that a projection has parked."""


@parked.command(name="list")
@as_json
def parked_list(as_json: bool) -> None:
    """List the parked streams: where each stopped, and why."""
    config = command_settings(settings.ReadModelSettings, "parked list")
    readmodel = Mongo(config.readmodel)
    rows = [
        _row(part, each)
        for projection in declared().projections
        for part in Serving(projection, readmodel).parts()
        for each in readmodel.parked(part.name).values()
    ]
    show(rows, as_json, f"No parked streams in the service {config.service}.")


@parked.command(name="show")
@projection_name
@click.argument("stream")
@click.option("--data", is_flag=True, help="Also what the events say; it may be personal.")
@as_json
def parked_show(projection_name: str, stream: str, data: bool, as_json: bool) -> None:
    """Show a parked stream, and its events since it stopped."""
    applier = open_at(projection_name, "parked show")
    found = _require_parked(applier, stream)
    show([_row(applier.generation, found)], as_json)
    rows: list[Row] = [
        {
            "version": event.version,
            "event": event.event_type,
            "schemaVersion": event.schema_version,
            "id": event.event_id,
            "position": event.position,
            "recordedAt": to_timestamp(event.recorded_at),
            **({"data": event.data} if data else {}),
        }
        for event in applier.stopped_events(found)
    ]
    show(rows, as_json, "The feed has no event of it from there on.")


@parked.command(name="retry")
@projection_name
@click.argument("streams", metavar="[STREAM]...", nargs=-1)
def parked_retry(projection_name: str, streams: Sequence[str]) -> None:
    """Try parked streams again, all or those named.

    A stream goes on where it stopped; one that still cannot be applied stays parked. Ends
    with status 1 if any does.
    """
    applier = open_at(projection_name, "parked retry")
    entries = applier.readmodel.parked(applier.generation.name, streams or None)
    released = applier.retry(entries)
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
    is the first of its stream, the document is not shown. The command of a reactor is passed over
    as well. Ends with status 1 if it stops again.
    """
    applier = open_at(projection_name, "parked skip")
    found = _require_parked(applier, stream)
    event = next(iter(applier.stopped_events(found)), None)
    if event is None:
        raise Refused(f"the log has no version {found.version} of {stream}")
    version, name = event.version, applier.projection.name
    command = " Its command is then never carried out."
    note = command if isinstance(applier.projection, Reactor) else ""
    what = f"{event.event_type}, version {version} of {stream}, in {name}"
    ask(yes, f"Pass over {what}, for good?{note}")
    now = datetime.now(UTC)
    applier.readmodel.skip(Skip(name, stream, version, str(event.event_id), who, why, now))
    applier.follow()
    released = applier.retry({stream: found})
    click.echo(f"{stream}: {'released' if released else 'parked again, further on'}")
    sys.exit(0 if released else 1)


def _require_parked(applier: Folding[Any], stream: str) -> Parked:
    found = applier.readmodel.parked(applier.generation.name, [stream]).get(stream)
    if found is None:
        raise Refused(f"{stream} is not parked in {applier.projection.name}")
    return found


def _row(generation: Generation, parked: Parked) -> Row:
    return {"projection": generation.label, **parked.as_json()}
