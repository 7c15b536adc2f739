"""`dead-letters`: list, show, requeue and discard messages."""

from collections.abc import Sequence

import click

from eventcore import settings
from eventcore.broker.dead_letters import DeadLetter
from eventcore.broker.port import Decision, Queue
from eventcore.broker.rabbitmq import RabbitMQ
from eventcore.errors import Refused
from eventcore.operate.shared import (
    Row,
    as_json,
    ask,
    command_settings,
    letter_ids,
    projection_name,
    projection_named,
    show,
    yes,
)


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
    show(rows, as_json, f"No dead letters of {projection_name}.")


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


def _settle_letters(name: str, decision: Decision, ids: Sequence[str], yes: bool) -> None:
    ask(yes, f"{decision.capitalize()} {', '.join(ids) or 'all dead letters'} of {name}?")
    settled = _letters(name, decision, ids, decision)
    for letter in settled:
        click.echo(f"{letter.id}: {'requeued' if decision == 'requeue' else 'discarded'}")
    if not settled and not ids:
        click.echo(f"No dead letters of {name}.")
    _require_letters(name, ids, settled)


def _letters(
    name: str, command: str, ids: Sequence[str] = (), decision: Decision = "keep"
) -> list[DeadLetter]:
    """Settles the dead letters of these ids, or all, and returns them."""
    config = command_settings(settings.BrokerSettings, f"dead-letters {command}")
    projection = projection_named(name)
    found: list[DeadLetter] = []

    def decide(letter: DeadLetter) -> Decision:
        if ids and letter.id not in ids:
            return "keep"
        found.append(letter)
        return decision

    broker = RabbitMQ(config.broker, name=config.process)
    broker.dead_letters(Queue(projection.queue, projection.binding)).go_through(decide)
    return found


def _require_letters(name: str, ids: Sequence[str], found: Sequence[DeadLetter]) -> None:
    if missing := set(ids) - {letter.id for letter in found}:
        raise Refused(f"{name} has no dead letter {', '.join(sorted(missing))}; list them again")
