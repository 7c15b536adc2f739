"""Faults of MongoDB and of what is in it."""

from collections.abc import Iterator
from contextlib import contextmanager

import pymongo
from pymongo import DeleteOne, UpdateOne
from pymongo.errors import PyMongoError

from eventcore.model.view import View
from tests.chaos.fault import Scene, Unmet, until
from tests.chaos.faults.disks import fill, small_disk
from tests.chaos.proxy import Flow
from tests.chaos.system import PROJECTIONS


@contextmanager
def killed(scene: Scene) -> Iterator[str]:
    """kill -9."""
    scene.system.mongodb.kill()
    yield "MongoDB killed"
    scene.system.mongodb.start()


@contextmanager
def slow_or_full(scene: Scene) -> Iterator[str]:
    """Two seconds for each of its answers; or its disk full, upon which it ends or refuses."""
    if scene.turn("slow", "full") == "slow":
        scene.system.links["mongodb"].let_flow(Flow(latency=2.0, answers_only=True))
        yield "MongoDB answers after 2 s"
        scene.system.links["mongodb"].heal()
        return
    data = scene.system.folder / "mongodb" / "data"
    with small_disk(scene.system.mongodb, data, room=8) as filler:
        fill(filler)
        until(lambda: not _takes_writes(scene), 20, "MongoDB notices that its disk is full")
        yield "MongoDB's disk full"


def _takes_writes(scene: Scene) -> bool:
    try:
        with pymongo.timeout(5):
            scene.system.models["user"].of("filling").insert_one({"much": "x" * 100_000})
    except PyMongoError:
        return False
    return True


@contextmanager
def damaged(scene: Scene) -> Iterator[str]:
    """A collection emptied, documents set back, one altered: found by verify, mended by rebuild."""
    system = scene.system
    projection, service, process = PROJECTIONS[(1, 3)[scene.number // 3 % 2]]
    is_view = isinstance(projection, View)
    how = scene.turn("altered", "set back", "emptied")
    documents = system.models[service].of(system.serving(projection, service))
    with pymongo.timeout(120):  # of thousands of documents, which would end late if cut short
        ids = [each["_id"] for each in documents.find({}, {"_id": 1})]
        some = sorted(ids)[-50:]
        if how == "emptied":
            documents.delete_many({})  # one by one they would keep the stand-in from answering
        elif how == "set back":
            back = {"orders": 0, "positions": {}} if is_view else {"status": "placed"}
            change = {"$set": {**back, "version": 1}}
            documents.bulk_write([UpdateOne({"_id": each, "version": 2}, change) for each in some])
            documents.bulk_write([DeleteOne({"_id": each}) for each in some[:10]])
        else:
            forged = "lastOrderAt" if is_view else "item"
            documents.update_one({"_id": scene.chance.choice(some)}, {"$set": {forged: "forged"}})
    how_many = ("--sample", "100") if how == "emptied" else ("--all",)
    found = system.tool(process, "verify", projection.name, *how_many, "--json")
    if found.returncode != 1 or '"what"' not in found.stdout:
        raise Unmet(f"verify did not find it ({found.returncode}): {found.stdout[-300:]}")
    yield f"the read model of {projection.name} {how}; found by verify"
    mended = system.tool(process, "rebuild", projection.name, "--yes", "--json")
    if mended.returncode:
        raise Unmet(f"rebuild: {mended.stdout[-200:]}{mended.stderr[-300:]}")
