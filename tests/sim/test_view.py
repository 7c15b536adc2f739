"""A view over two stores: whatever dies at any call, its documents are the fold of both logs."""

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from pymongo import ReplaceOne

from eventcore.model.view import positions_of
from eventcore.readmodel.conversion import PROJECTED_AT
from tests.sim.mutants import Mutant
from tests.sim.views import simulate

SEEDS = 200

STATES = {
    "a bulk is done in part",
    "a bulk's outcome is unknown",
    "a commit below the head",
    "a page of the feed with gaps",
    "a replica was faster with a document",
    "a rolled back append leaves a gap",
    "a write takes effect after its process has given it up",
    "a write to MongoDB has an unknown outcome",
    "the lease is taken over from a dead holder",
    "the lease is taken over from a live holder",
    "who lost the lease cannot move the checkpoint",
}
"""Rare states that the seeds must reach."""


def test_whatever_dies_at_any_call_a_view_is_the_fold_of_both_logs() -> None:
    reached = Counter[str]()
    for seed in range(SEEDS):
        result = simulate(seed)
        assert (seed, result.wrong) == (seed, ())
        reached.update(result.reached)
    assert {state for state in STATES if not reached[state]} == set()


def test_a_seed_of_a_view_is_the_same_run_every_time() -> None:
    assert simulate(7) == simulate(7)
    assert len({simulate(seed).trace_hash for seed in range(10)}) == 10


def _folds_what_the_document_has(
    real: Any, self: Any, id: str, document: Any, events: Any, is_log: bool
) -> Any:
    """A document that claims to have nothing of the store."""
    if document:
        none = {**positions_of(document), self.store: 0}
        document = {**document, "positions": none}
    return real(self, id, document, events, is_log)


def _moves_the_checkpoint_first(real: Any, self: Any, lease: Any) -> Any:
    apply, pages = self.applier.apply, list[Any]()
    self.applier.apply = pages.append
    try:
        more = real(self, lease)
    finally:
        self.applier.apply = apply
    for page in pages:
        apply(page)
    return more


def _replaces_whatever_is_there(_: Any, write: Any, now: Any) -> Any:
    document = {**write.document, PROJECTED_AT: now}
    return ReplaceOne({"_id": document["_id"]}, document, upsert=True)


def _counts_an_overtaken_write(real: Any, self: Any, collection: str, writes: Any) -> Any:
    real(self, collection, writes)
    return True


def _ignores_the_epoch(real: Any, self: Any, lease: Any, mark: Any, covered_at: Any) -> Any:
    return real(self, replace(lease, epoch={"$gt": 0}), mark, covered_at)


MUTANTS = [
    Mutant(fault, f"eventcore.{target}", wrong)
    for fault, target, wrong in (
        (
            "an event at or below the document's position is folded again",
            "project.view_applier.ViewApplier._fold",
            _folds_what_the_document_has,
        ),
        (
            "the checkpoint moves before the documents",
            "project.view_projector.PartSweep._page",
            _moves_the_checkpoint_first,
        ),
        (
            "a write does not name the version that it replaces",
            "readmodel.documents.to_operation",
            _replaces_whatever_is_there,
        ),
        (
            "a write that was overtaken counts as done",
            "readmodel.mongo.Mongo.write",
            _counts_an_overtaken_write,
        ),
        (
            "the lease's epoch fences nothing",
            "readmodel.mongo.Mongo.move_checkpoint",
            _ignores_the_epoch,
        ),
    )
]
"""The view with one of its safeguards taken out, each in turn."""


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.fault)
def test_a_view_without_a_safeguard_is_found_out(mutant: Mutant) -> None:
    with mutant.lives():
        assert any(simulate(seed).wrong for seed in range(2 * SEEDS))
