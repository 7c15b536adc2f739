"""Settings, questions and tables, shared by the tools."""

import importlib
import json
import os
import sys
from collections.abc import Sequence
from typing import Any, TypeVar

import click

from eventcore import settings
from eventcore.errors import Misconfigured, Refused
from eventcore.model.projection import Projection
from eventcore.model.service import Service
from eventcore.project.applier import EventApplier
from eventcore.readmodel.mongo import Mongo
from eventcore.store.http_feed import HttpFeed

Row = dict[str, object]

Kind = TypeVar("Kind", bound=settings.Settings)

projection_name = click.argument("projection_name", metavar="PROJECTION")

letter_ids = click.argument("letter_ids", metavar="[ID]...", nargs=-1)

as_json = click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")

yes = click.option("--yes", is_flag=True, help="Do not ask.")


def service_module(module: str) -> Any:
    """Returns a module of the service that SERVICE names: `main` or `service`."""
    name = os.environ.get("SERVICE", "")
    try:
        return importlib.import_module(f"{name or 'SERVICE'}.{module}")
    except ModuleNotFoundError as error:
        raise Misconfigured(f"SERVICE must name a service, not {name!r}") from error


def declared() -> Service:
    """Returns the declaration of the service that SERVICE names; raises Misconfigured."""
    service: Service = service_module("service").SERVICE
    return service


def projection_named(name: str) -> Projection:
    """The projection of that name; raises Misconfigured where the service has none."""
    known: dict[str, Projection] = {each.name: each for each in declared().projections}
    if name not in known:
        raise Misconfigured(f"there is no projection {name!r}, only {', '.join(known) or 'none'}")
    return known[name]


def open_applier(
    config: settings.ProjectionSettings, projection: Projection, announcement: str = ""
) -> EventApplier:
    """Returns the applier of a projection, on its read model and feed."""
    feed = HttpFeed(config.feed.url, config.feed.token, announcement=announcement)
    return EventApplier(projection, Mongo(config.readmodel), feed)


def open_at(name: str, command: str) -> EventApplier:
    """The applier of a projection, at the generation that serves."""
    config = command_settings(settings.ProjectionSettings, command)
    applier = open_applier(config, projection_named(name))
    applier.follow()
    return applier


def open_projections(
    command: str, names: Sequence[str] = ()
) -> tuple[Mongo, HttpFeed, list[Projection]]:
    """A read model, a feed, and the projections that are folded from it, or those of `names`."""
    config = command_settings(settings.ProjectionSettings, command)
    feed = HttpFeed(config.feed.url, config.feed.token)
    known = [projection_named(name) for name in names] or declared().projections
    owner = feed.aggregate_type()
    return Mongo(config.readmodel), feed, [p for p in known if p.aggregate_type == owner]


def ask(yes: bool, question: str) -> None:
    """Asks, unless `yes`; raises Refused if the answer is no, or there is no terminal."""
    if not yes and not sys.stdin.isatty():
        raise Refused(f"nothing was changed. {question} If so, run it again with --yes")
    if not yes and not click.confirm(question):
        raise Refused("nothing was changed")


def show(rows: Sequence[Row], as_json: bool, nothing: str = "") -> None:
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


def command_settings(kind: type[Kind], command: str) -> Kind:
    """Returns the settings of a command; raises Misconfigured, which says where to run it."""
    try:
        return settings.read_settings(kind, command)
    except Misconfigured as error:
        where = "Run it in the pod of the process that it is about, or in `make shell`"
        raise Misconfigured(f"{error}. {where}") from error
