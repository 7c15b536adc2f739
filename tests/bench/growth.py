"""`python -m tests.bench.growth`: prints the bytes that an event takes in a PostgreSQL of its own.

It appends orders by the function that services call, reads the size of each table and index, and
divides. All of it is removed afterwards.
"""

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import click
from sqlalchemy import Engine

from eventcore.settings import Server
from eventcore.store.connection import connect, fetch
from local.processes import prepare_stores, store_login
from local.servers import PostgreSQL, free_port
from tests.bench.bed import ORDER, metadata

_APPEND = """
    select count(*) from generate_series(%(first)s::int, %(last)s::int) as each,
    lateral append_events('order', uuidv7(), 0,
        array(select uuidv7() from generate_series(1, %(length)s + 0 * each)),
        array_fill('ORDER_PLACED'::text, array[%(length)s]), array_fill(1, array[%(length)s]),
        array_fill(%(data)s::text, array[%(length)s]), %(metadata)s::jsonb,
        case when %(keys)s then 'key-' || each end,
        case when %(keys)s then repeat('f', 64) end, %(answer)s::jsonb)
"""

_SIZES = """
    select c.relname, pg_relation_size(c.oid) + pg_relation_size(c.oid, 'fsm')
               + pg_relation_size(c.oid, 'vm')
      from pg_class c left join pg_index i on i.indexrelid = c.oid
     where coalesce(i.indrelid, c.oid) = any(%s::regclass[]) order by 1
"""

TABLES = ["events", "streams", "idempotency_keys"]


class Growth(NamedTuple):
    """Bytes by table and index, after so many events."""

    events: int
    bytes: dict[str, int]

    @property
    def per_event(self) -> dict[str, float]:
        """The bytes that one event adds to each."""
        return {name: size / self.events for name, size in self.bytes.items()}


STEP = 500
"""Events that one statement appends."""


def grow(postgres: Server, secrets: Path, events: int, length: int, keys: bool) -> Growth:
    """Appends so many events, `length` a stream, with an idempotency key for each if asked for."""
    store = f"growth_{length}_{'keys' if keys else 'plain'}"  # a log takes no TRUNCATE
    prepare_stores(postgres, secrets, (store,))
    owner = connect(store_login(postgres, store, "owner", secrets))
    told = {
        "length": length,
        "keys": keys,
        "data": json.dumps(ORDER),
        "metadata": json.dumps(metadata()),
        "answer": json.dumps({"status": 201, "headers": {}, "body": ORDER}),
    }
    streams, step = events // length, STEP // length
    for begin in range(0, streams, step):
        part = {"first": begin + 1, "last": min(begin + step, streams)}
        _run(owner, _APPEND, told | part)
    _run(owner, "vacuum analyze events, streams, idempotency_keys")
    return Growth(streams * length, dict(_run(owner, _SIZES, (TABLES,))))


def _run(owner: Engine, statement: str, values: Any = None) -> list[Any]:
    with owner.connect() as connection:
        return fetch(connection.connection.driver_connection, statement, values)


def table(growths: Mapping[str, Growth]) -> str:
    """The bytes of an event by table and index, a column for each kind of load, as Markdown."""
    names = sorted({name for growth in growths.values() for name in growth.bytes})
    lines = [f"| bytes an event | {' | '.join(growths)} |", "| --- |" + " --- |" * len(growths)]
    for name in names:
        sizes = (f"{growth.per_event[name]:.0f}" for growth in growths.values())
        lines.append(f"| `{name}` | {' | '.join(sizes)} |")
    sums = (f"**{sum(growth.per_event.values()):.0f}**" for growth in growths.values())
    return "\n".join([*lines, f"| **all** | {' | '.join(sums)} |"])


LOADS = {
    "1 event a stream": (1, False),
    "2 events a stream": (2, False),
    "10 events a stream": (10, False),
    "1 event a stream, each with an Idempotency-Key": (1, True),
}


@click.command()
@click.option("--events", default=20_000, show_default=True, help="Events of each load.")
def main(events: int) -> None:
    """Measures each load and prints a table."""
    with tempfile.TemporaryDirectory(prefix="growth-") as name:
        folder = Path(name)
        folder.chmod(0o711)
        server = PostgreSQL(folder / "postgres", free_port())
        server.start()
        try:
            growths = {
                load: grow(server.address, folder / "secrets", events, length, keys)
                for load, (length, keys) in LOADS.items()
            }
        finally:
            server.stop()
    click.echo(table(growths))


if __name__ == "__main__":
    main()
