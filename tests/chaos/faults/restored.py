"""An older backup is restored under its projections; and replicas that are not alike."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from local.processes import prepare_stores
from tests.chaos.fault import Scene, Unmet, until
from tests.chaos.faults.processes import let_pass
from tests.chaos.system import PROJECTIONS

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
    _owner_does(scene, "backup", str(file), "--json")
    let_pass(2)
    scene.load.rest()
    written = system.sql("user_event_db", _WRITTEN)
    system.shop.stop("user-service", "user-relay")
    system.sql("postgres", "drop database user_event_db with (force)")
    prepare_stores(system.postgres.address, system.secrets, ("user",))
    _owner_does(scene, "restore", str(file), "--yes", "--json")
    kept = {event_id for event_id, *_ in system.sql("user_event_db", _WRITTEN)}
    gone = [its for event_id, *its in written if event_id not in kept]
    scene.load.journal.forget({command for command, _, _ in gone})
    scene.load.known.forget({stream for _, stream, version in gone if version == 1})
    scene.log.events["user"].clear()
    system.shop.start("user-service", "user-relay")
    for projection, service, _ in PROJECTIONS:
        if projection.aggregate_type == "user":
            model, name = system.models[service], projection.name
            until(lambda m=model, n=name: m.checkpoint(_serving(m, n)).halted, 30, f"{name} halts")  # type: ignore[misc]
    yield f"the users' log restored without its last {len(gone)} events; its projections halted"
    for projection, _, process in PROJECTIONS:
        if projection.aggregate_type == "user":
            options = ("--yes", "--accept-differences", "--json")
            done = system.tool(process, "rebuild", projection.name, *options)
            if done.returncode:
                raise Unmet(f"rebuild: {done.stdout[-300:]}{done.stderr[-300:]}")
    scene.load.go()


def _owner_does(scene: Scene, *arguments: str) -> str:
    """Run a tool as the owner of the users' database; what it said."""
    address, secrets = scene.system.postgres.address, scene.system.secrets
    done = scene.system.tool(
        "user-service", *arguments,
        POSTGRES_PORT=str(address.port), POSTGRES_USER="user_owner",
        POSTGRES_PASSWORD_FILE=str(secrets / "user_owner"),
    )  # fmt: skip
    if done.returncode:
        raise Unmet(f"{arguments[0]}: {done.stdout[-300:]}{done.stderr[-300:]}")
    return done.stdout


def _serving(model: object, projection: str) -> str:
    """The name of the generation that serves."""
    number: int = model.generations(projection).serving  # type: ignore[attr-defined]
    return projection if number == 1 else f"{projection}.{number}"


def _mixed(scene: Scene) -> Iterator[str]:
    """A second relay and second projectors, which take one message at a time, beside the others."""
    with ExitStack() as stack:
        for name in ("order-relay", "order-projector", "user-projector"):
            stack.enter_context(scene.system.beside(name, settings={"BATCH": "1", "WINDOW": "1"}))
        scene.system.shop.kill("order-relay")
        yield "a relay and projectors of other settings beside ours; our relay killed"
        scene.system.shop.launch("order-relay")
        scene.system.shop.await_ready("order-relay")
