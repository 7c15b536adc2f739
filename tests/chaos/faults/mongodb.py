"""Faults of MongoDB and of what is in it."""

from collections.abc import Iterator
from contextlib import contextmanager

from tests.chaos.fault import Scene, Unmet
from tests.chaos.system import PROJECTIONS


@contextmanager
def killed(scene: Scene) -> Iterator[str]:
    """kill -9."""
    scene.system.mongodb.kill()
    yield "MongoDB killed"
    scene.system.mongodb.start()


@contextmanager
def damaged(scene: Scene) -> Iterator[str]:
    """A collection emptied, documents set back, one altered: found by verify, mended by rebuild."""
    system = scene.system
    projection, service, process = PROJECTIONS[1]
    how = scene.turn("altered", "set back", "emptied")
    documents = system.models[service]._of(system.serving(projection, service))
    some = [each["_id"] for each in documents.find({}, {"_id": 1}).sort("_id", -1).limit(50)]
    if how == "emptied":
        documents.delete_many({})
    elif how == "set back":
        change = {"$set": {"status": "placed", "version": 1}}
        documents.update_many({"_id": {"$in": some}, "version": 2}, change)
        documents.delete_many({"_id": {"$in": some[:10]}})
    else:
        documents.update_one({"_id": scene.chance.choice(some)}, {"$set": {"item": "forged"}})
    how_many = ("--sample", "100") if how == "emptied" else ("--all",)
    found = system.tool(process, "verify", projection.name, *how_many, "--json")
    if found.returncode != 1 or '"what"' not in found.stdout:
        raise Unmet(f"verify did not find it ({found.returncode}): {found.stdout[-300:]}")
    yield f"the read model of orders {how}; found by verify"
    mended = system.tool(
        process, "rebuild", projection.name, "--yes", "--accept-differences", "--json"
    )
    if mended.returncode:
        raise Unmet(f"rebuild: {mended.stdout[-200:]}{mended.stderr[-300:]}")
