"""An older backup is restored under its projections; and replicas that are not alike."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial

from eventcore.model.view import AnyProjection
from eventcore.readmodel.mongo import Mongo
from eventcore.readmodel.records import parts_of
from local.processes import prepare_stores, store_login
from tests.chaos.fault import Scene, Unmet, until
from tests.chaos.faults.processes import let_pass
from tests.chaos.system import CREDIT, PROJECTIONS

_WRITTEN = (
    "select event_id::text, metadata ->> 'causationId', aggregate_id::text, version from events"
)


@contextmanager
def older_or_mixed(scene: Scene) -> Iterator[str]:
    """One of the two, in turn."""
    yield from _older(scene) if scene.number % 2 == 0 else _mixed(scene)


def _older(scene: Scene) -> Iterator[str]:
    """The users' log goes back to a backup; its projections say so, and stand still until rebuilt.

    What was written after the backup is gone, as it must be, and is taken out of the journal.
    """
    system, file = scene.system, scene.system.folder / f"backup-{scene.number}"
    owner = store_login(system.postgres.address, "user", "owner", system.secrets)
    system.postgres.run("pg_dump", "--format=custom", f"--file={file}", login=owner)
    let_pass(2)
    scene.load.rest()
    written = system.sql("user_event_db", _WRITTEN)
    system.shop.stop("user-service", "user-relay")
    system.sql("postgres", "drop database user_event_db with (force)")
    prepare_stores(system.postgres.address, system.secrets, ("user",))
    whole = ("--clean", "--if-exists", "--no-owner", "--single-transaction", str(file))
    system.postgres.run("pg_restore", *whole, login=owner)
    system.postgres.run("psql", "-c", "select begin_epoch('restored')", login=owner)
    kept = {event_id for event_id, *_ in system.sql("user_event_db", _WRITTEN)}
    gone = [its for event_id, *its in written if event_id not in kept]
    scene.load.journal.forget({command for command, _, _ in gone})
    scene.load.known.forget({stream for _, stream, version in gone if version == 1})
    scene.log.events["user"].clear()
    system.shop.start("user-service", "user-relay")
    concerned = [each for each in (*PROJECTIONS, *CREDIT) if "user" in each[0].owners]
    for projection, service, _ in concerned:
        halted = partial(_is_halted, system.models[service], projection)
        until(halted, 30, f"{projection.name} halts")
    yield f"the users' log restored without its last {len(gone)} events; its projections halted"
    for projection, _, process in concerned:
        done = system.tool(process, "rebuild", projection.name, "--yes", "--json")
        if done.returncode:
            raise Unmet(f"rebuild: {done.stdout[-300:]}{done.stderr[-300:]}")
    scene.load.go()


def _is_halted(model: Mongo, projection: AnyProjection) -> bool:
    """Whether any part of the generation that serves is halted."""
    parts = parts_of(projection, model.generations(projection.name).serving)
    return any(model.checkpoint(part.name).halted for part in parts)


def _mixed(scene: Scene) -> Iterator[str]:
    """A second relay and second projectors, which take one message at a time, beside the others."""
    with ExitStack() as stack:
        for name in ("order-relay", "order-projector", "user-projector", "order-customers"):
            stack.enter_context(scene.system.beside(name, settings={"BATCH": "1", "WINDOW": "1"}))
        scene.system.shop.kill("order-relay")
        yield "a relay and projectors of other settings beside ours; our relay killed"
        scene.system.shop.launch("order-relay")
        scene.system.shop.await_ready("order-relay")
