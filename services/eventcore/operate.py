"""The operator's tools: what `python -m eventcore` has beside the processes.

As in `__main__`, imports wait until a command is known.
"""

import importlib
import json
import os
import sys
from collections.abc import Sequence
from typing import Any

import click

from eventcore.errors import Away, Misconfigured
from eventcore.projection import Projection
from eventcore.settings import Settings, read_settings


@click.command()
@click.argument("beginnings", metavar="[BEGINNING]...", nargs=-1)
def metrics(beginnings: Sequence[str]) -> None:
    """Print the metrics of the process whose METRICS_PORT this is, all or those that begin so."""
    settings = read_settings(process="metrics", needs=())
    import urllib.request

    try:
        url = f"http://127.0.0.1:{settings.metrics_port}/metrics"
        with urllib.request.urlopen(url, timeout=10) as answer:
            lines = answer.read().decode().splitlines()
    except OSError as error:
        raise Away(f"nothing serves metrics at METRICS_PORT: {error}") from error
    for line in lines:
        if not line.startswith("#") and (not beginnings or line.startswith(beginnings)):
            click.echo(line)


@click.group()
def parked() -> None:
    """Streams that a projection has set aside."""


@parked.command(name="list")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
def parked_list(as_json: bool) -> None:
    """List them: projection, stream, where it stopped, and why."""
    settings = read_settings(process="parked list", needs=("readmodel",))
    from eventcore.query import Serving
    from eventcore.readmodel import Mongo

    assert settings.readmodel
    readmodel = Mongo(settings.readmodel)
    for projection in service_module().PROJECTIONS:
        serving = Serving(projection, readmodel).now()
        for each in readmodel.parked(serving.name).values():
            line = {
                "projection": projection.name,
                "stream": each.stream,
                "version": each.version,
                "highest": each.highest,
                "when": each.when.isoformat(),
                "error": each.error,
            }
            click.echo(json.dumps(line) if as_json else "  ".join(map(str, line.values())))


@parked.command(name="retry")
@click.argument("projection_name", metavar="PROJECTION")
@click.argument("streams", metavar="[STREAM]...", nargs=-1)
def parked_retry(projection_name: str, streams: Sequence[str]) -> None:
    """Try the parked streams of PROJECTION again, all or those named.

    A stream goes on where it stopped; one that still cannot be applied stays parked. Ends
    with status 1 if any does.
    """
    settings = read_settings(process="parked retry", needs=("readmodel", "feed"))
    readmodel, _, folder = open_folder(settings, projection_named(projection_name))
    still = 0
    for stream in streams or readmodel.parked(projection_name):
        released = folder.retry(stream)
        still += not released
        click.echo(f"{stream}: {'released' if released else 'still parked'}")
    sys.exit(1 if still else 0)


def service_module() -> Any:
    """The module that puts the service together: TITLE, NEEDS, PROJECTIONS, create_app."""
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


def open_folder(settings: Settings, projection: Projection) -> tuple[Any, Any, Any]:
    """The read model, the feed and the folder of a projection."""
    from eventcore.feed import HttpFeed
    from eventcore.projector import Folder
    from eventcore.readmodel import Mongo

    assert settings.readmodel
    readmodel = Mongo(settings.readmodel)
    feed = HttpFeed(settings.feed_url, settings.feed_token)
    return readmodel, feed, Folder(projection, readmodel, feed)


TOOLS = (metrics, parked)
"""All of them."""
