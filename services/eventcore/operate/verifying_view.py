"""Verify a view: compares documents with the fold of its stores' logs.

The events of a document are all over the logs, so each pass reads them whole and folds the
documents of one range of ids, as they are now: each up to its own positions. An event above a
document's position is on its way, unless the checkpoint has passed it.
"""

import random
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

from eventcore.model.event import Event
from eventcore.model.projection import Document
from eventcore.model.view import positions_of
from eventcore.operate.verifying import Finding, Verified, different, why_halted
from eventcore.project.view_applier import ViewApplier, name_of
from eventcore.readmodel.port import SCANNED
from eventcore.store.feed import SWEEP_RANGE
from eventcore.store.port import Progress

AT_ONCE = 50_000
"""Documents that one pass over the logs compares, which it holds in memory twice."""


@dataclass(eq=False)
class ViewVerifier:
    """Compares the generation of these parts with the logs. Every method may raise Unavailable."""

    parts: list[ViewApplier]

    def run(self, sample: int | None, chance: random.Random) -> Verified:
        """Compares `sample` documents from one by chance on, or all of them (None)."""
        checkpoints = [each.readmodel.checkpoint(each.generation.name) for each in self.parts]
        logs = [each.feed.progress() for each in self.parts]
        limit, after = sample or AT_ONCE, "" if sample is None else self._by_chance(logs[0], chance)
        checked, wrong, is_last = 0, list[Finding](), False
        while not is_last:
            documents = self._range(after, limit)
            is_last = len(documents) < limit or sample is not None
            until = max(documents, default="") if len(documents) == limit else ""
            positions = [each.position for each in checkpoints]
            wrong += self._compare(documents, after, until, positions)
            checked, after = checked + len(documents), until
        for part, checkpoint in zip(self.parts, checkpoints, strict=True):
            halted = checkpoint.halted or why_halted(part.generation.label, checkpoint, part.feed)
            wrong += [Finding("", halted)] if halted else []
        generations = (each.generation for each in self.parts)
        parts = tuple(zip(generations, checkpoints, logs, strict=True))
        return Verified(checked, tuple(wrong), parts)

    def _by_chance(self, log: Progress, chance: random.Random) -> str:
        """The id of a document that an event of the first store concerns; "": of none."""
        begin = chance.randrange(max(1, log.settled - SWEEP_RANGE + 1))
        events = self.parts[0].feed.between(begin, begin + SWEEP_RANGE)
        concerned, _ = self.parts[0].by_document(events)
        return chance.choice(sorted(concerned)) if concerned and begin else ""

    def _range(self, after: str, limit: int) -> dict[str, Document]:
        """Up to `limit` documents above an id, by id."""
        found: dict[str, Document] = {}
        readmodel, into = self.parts[0].readmodel, self.parts[0].generation.collection
        while len(found) < limit:
            page = readmodel.scan(into, after, min(SCANNED, limit - len(found)))
            if not page:
                break
            found |= {str(each["_id"]): each for each in page}
            after = str(page[-1]["_id"])
        return found

    def _compare(
        self, documents: dict[str, Document], after: str, until: str, checkpoints: list[int]
    ) -> list[Finding]:
        """The documents between two ids that differ from the fold, and those that are missing."""
        folded: dict[str, Document] = {}
        lacks: defaultdict[str, int] = defaultdict(int)
        view = self.parts[0].projection
        for part, checkpoint in zip(self.parts, checkpoints, strict=True):
            for key, event in self._events(part):
                if key <= after or (until and key > until):
                    continue
                reached = positions_of(documents.get(key)).get(part.store, 0)
                if event.position <= reached:
                    try:
                        folded[key] = view.apply(folded.get(key), key, event)
                    except Exception:  # noqa: BLE001 - it is skipped, and so differs
                        lacks[key] += 1
                elif event.position <= checkpoint:
                    lacks[key] += 1
        parked = {key for part in self.parts for key in part.parked([*lacks, *documents])}
        found = [
            Finding(key, f"the document lacks {count} events of the log")
            for key, count in lacks.items()
            if key not in parked
        ]
        for key, document in documents.items():
            if key not in lacks and (what := different(document, folded.get(key, {}))):
                found.append(Finding(key, what))
        return found

    def _events(self, part: ViewApplier) -> Iterator[tuple[str, Event]]:
        """The events of a store with the id of each document that they concern."""
        position, until = 0, part.feed.progress().settled
        stopped = set[str]()
        while position < until:
            end = min(position + SWEEP_RANGE, until)
            events = part.feed.between(position, end)
            stopped |= part.parked(map(name_of, events)).keys()
            concerned, unnamed = part.by_document(events, stopped)
            stopped |= unnamed.keys()
            for key, its in concerned.items():
                yield from ((key, event) for event in its)
            position = end
