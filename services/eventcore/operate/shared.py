"""Settings, questions and tables, shared by the tools."""

import importlib
import json
import os
import sys
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, TypeVar

import click

from eventcore import settings
from eventcore.errors import Misconfigured, Refused
from eventcore.model.projection import Projection
from eventcore.model.service import Service
from eventcore.model.view import AnyProjection, View
from eventcore.project.applier import EventApplier
from eventcore.project.folding import Folding
from eventcore.project.parts import open_parts
from eventcore.project.reacting import ReactingApplier
from eventcore.project.view_applier import ViewApplier
from eventcore.reactor import Reactor
from eventcore.readmodel.mongo import Mongo
from eventcore.store.feed import Feed
from eventcore.store.http_feed import HttpFeed
from eventcore.store.postgres import Postgres

Row = dict[str, object]

Kind = TypeVar("Kind", bound=settings.Settings)

REACTOR_CONNECTIONS = 2
"""Connections of a reactor to its store, and one more, which wakes the relay."""

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


def projection_named(name: str) -> AnyProjection:
    """The projection of that name, or the view whose part it is; raises Misconfigured."""
    known: dict[str, AnyProjection] = {each.name: each for each in declared().projections}
    whole = name.partition("/")[0]
    if whole not in known:
        raise Misconfigured(f"there is no projection {name!r}, only {', '.join(known) or 'none'}")
    return known[whole]


def open_applier(
    config: settings.ProjectionSettings, projection: Projection, announcement: str = ""
) -> EventApplier:
    """Returns the applier of a projection, on its read model and feed; a reactor's reacts."""
    feed = _feed(config.feed, projection, projection.aggregate_type, announcement)
    if isinstance(projection, Reactor):
        assert isinstance(config, settings.ReactionSettings)
        own = Postgres(config.store, REACTOR_CONNECTIONS)
        amounts = {name: getattr(config, name.lower()) for name in projection.amounts}
        return ReactingApplier(projection, Mongo(config.readmodel), feed, own=own, amounts=amounts)
    return EventApplier(projection, Mongo(config.readmodel), feed)


def tool_settings(projection: Projection) -> type[settings.ProjectionSettings]:
    """The settings of a tool that applies events to a projection."""
    if isinstance(projection, Reactor):
        return settings.with_amounts(settings.ReactionSettings, projection.amounts)
    return settings.ProjectionSettings


def open_view(
    config: settings.ViewSettings,
    view: View,
    announcements: Mapping[str, str] = MappingProxyType({}),
) -> list[ViewApplier]:
    """Returns the appliers of a view, on its read model and feeds; raises Misconfigured."""
    for owner in view.owners:
        if owner not in config.feeds and len(view.owners) > 1:
            raise Misconfigured(f"{view.name} needs FEED_{owner.upper()}_URL and its token")
    return open_parts(view, Mongo(config.readmodel), _feeds(config.feeds, view, announcements))


def _feeds(
    given: Mapping[str, settings.Feed],
    projection: AnyProjection,
    announcements: Mapping[str, str] = MappingProxyType({}),
) -> dict[str, Feed]:
    """The feeds of a projection by aggregate type; `given` has those of owners, "" of any owner."""
    return {
        store: _feed(
            given.get(projection.owner_of(store)) or given[""],
            projection, store, announcements.get(store, ""),
        )
        for store in projection.stores
    }  # fmt: skip


def _feed(
    given: settings.Feed, projection: AnyProjection, store: str, announcement: str = ""
) -> Feed:
    asked = "" if store == projection.owner_of(store) else store
    return HttpFeed(given.url, given.token, announcement=announcement, aggregate_type=asked)


def open_appliers(name: str, command: str) -> list[Folding[Any]]:
    """The appliers of a projection, or of a view's parts, at the generation that serves."""
    projection, found = projection_named(name), list[Folding[Any]]()
    if isinstance(projection, View):
        found += open_view(command_settings(settings.ViewSettings, command), projection)
    else:
        found += [open_applier(command_settings(tool_settings(projection), command), projection)]
    for each in found:
        each.follow()
    return found


def open_at(name: str, command: str) -> Folding[Any]:
    """The applier of a projection, or of the part of a view that is named, such as VIEW/STORE."""
    parts = {each.generation.label: each for each in open_appliers(name, command)}
    if name not in parts:
        raise Refused(f"{name} has a parked list for each store: name {' or '.join(parts)}")
    return parts[name]


def open_projections(
    command: str, names: Sequence[str] = ()
) -> tuple[Mongo, dict[str, Feed], dict[str, Feed], list[AnyProjection]]:
    """A read model, and the projections that are folded from the logs at hand, or `names` of them.

    With their feeds by aggregate type, and a feed of each log by its owner.
    """
    if "FEED_URL" not in os.environ and any(each.startswith("FEED_") for each in os.environ):
        view = command_settings(settings.ViewSettings, command)
        owners, readmodel = view.feeds, Mongo(view.readmodel)
        logs: dict[str, Feed] = {name: HttpFeed(o.url, o.token) for name, o in owners.items()}
    else:
        config = command_settings(settings.ProjectionSettings, command)
        own = HttpFeed(config.feed.url, config.feed.token)
        logs, readmodel = {own.aggregate_type(): own}, Mongo(config.readmodel)
        owners = dict.fromkeys(logs, config.feed)
    known = [projection_named(name) for name in names] or declared().projections
    folded = [each for each in known if logs.keys() >= set(each.owners)]
    feeds = {store: feed for each in folded for store, feed in _feeds(owners, each).items()}
    return readmodel, feeds, logs, folded


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
        is_fold = issubclass(kind, settings.ProjectionSettings | settings.ViewSettings)
        place = "projector" if is_fold else "process that it is about"
        where = f"Run it in the pod of the {place}, or in `make shell` without IN"
        raise Misconfigured(f"{error}. {where}") from error
