"""Compares two generations of a projection."""

import hashlib
import json
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from heapq import merge
from itertools import groupby, product
from operator import itemgetter
from typing import Any, ParamSpec

from eventcore.model.projection import Document, event_id_of, version_of
from eventcore.model.view import AnyProjection, View
from eventcore.readmodel.port import SCANNED, SLOTS, ReadModel
from eventcore.readmodel.records import Generation, parts_of, skipped_versions
from eventcore.store.feed import Feed, read_whole_streams

Given = ParamSpec("Given")

SLOTS_AT_ONCE = SLOTS // 64
"""Slots of the parked list that are read at once."""

_WAITS = 20
"""Waits of 0.2 s in one comparison, while either generation may still catch up."""

IDS_SHOWN = 10
"""Ids that a comparison names of each kind."""

Pair = tuple[Document | None, Document | None]
"""The documents of one stream in the generation that serves and in the new one."""


@dataclass(slots=True)
class Parity:
    """How two generations compare: documents that both have alike, and what else there is.

    Streams that are parked in both are left out; `newly_parked` are those of the new one alone. Ids
    are those of the first few. The digests are sums over all documents, in any order.
    """

    serving: int = 0
    new: int = 0
    alike: int = 0
    different: int = 0
    missing: int = 0
    added: int = 0
    parked: int = 0
    newly_parked: int = 0
    ids: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    serving_digest: int = 0
    new_digest: int = 0

    @property
    def agrees(self) -> bool:
        """Whether both hold the same, and the new one could apply all that the other could."""
        return not (self.different or self.missing or self.added or self.newly_parked)

    def note(self, kind: str, stream: str) -> None:
        """Count one more stream of a kind, and name it if it is among the first."""
        setattr(self, kind, getattr(self, kind) + 1)
        if kind != "alike" and len(self.ids[kind]) < IDS_SHOWN:
            self.ids[kind].append(stream)


def digest_of(document: Document | None) -> int:
    """Of all that a fold makes; 0 where there is no document."""
    if document is None:
        return 0
    text = json.dumps(document, sort_keys=True, default=str)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8])


def alike(old: Document | None, new: Document | None) -> bool:
    if old is None or new is None:
        return False
    if not (event_id_of(old) and event_id_of(new)):  # an older version kept no id
        old, new = ({**each, "eventId": ""} for each in (old, new))
    return old == new


def kind_of(old: Document | None, new: Document | None) -> str:
    """The field of Parity that counts such a pair."""
    if alike(old, new):
        return "alike"
    if new is None:
        return "missing"
    return "different" if old is not None else "added"


@dataclass(eq=False)
class Comparison:
    """Compares the documents of a new generation with those of the one that serves.

    Both go on meanwhile. Documents at two versions are compared again, once both have caught up.
    Where a stream never rests, the serving document is compared with the fold of the stream up to
    its version; in a view, whose documents cannot be folded alone, such a document is different.
    """

    projection: AnyProjection
    readmodel: ReadModel
    serving: Generation
    new: Generation
    feed: Feed
    catch_up: Callable[[], object]
    retrying: Callable[..., Any]
    """Calls its first argument with the others until the servers answer."""
    wait: Callable[[float], object]

    def run(self) -> Parity:
        """Compares all documents."""
        parity, self._waits = Parity(), _WAITS
        self._note_parked(parity)
        unsure: list[str] = []
        for stream, (old, new) in self._pairs():
            parity.serving += old is not None
            parity.new += new is not None
            parity.serving_digest += digest_of(old)
            parity.new_digest += digest_of(new)
            if alike(old, new):
                parity.alike += 1
            else:
                unsure.append(stream)
            if len(unsure) == SCANNED:
                self._compare_again(unsure, parity)
                unsure = []
        self._compare_again(unsure, parity)
        return parity

    def _note_parked(self, parity: Parity) -> None:
        olds, news = (parts_of(self.projection, g.number) for g in (self.serving, self.new))
        pairs = zip(olds, news, strict=True)
        for (was, now), begin in product(pairs, range(0, SLOTS, SLOTS_AT_ONCE)):
            slots = range(begin, begin + SLOTS_AT_ONCE)
            parked = self.retrying(self.readmodel.parked_in, now.name, slots)
            before = self.retrying(self.readmodel.parked, was.name, parked)
            for stream in parked:
                parity.note("parked" if stream in before else "newly_parked", stream)

    def _pairs(self) -> Iterator[tuple[str, Pair]]:
        """The documents of both generations, side by side, by id."""
        by_id = itemgetter("_id")
        olds = ((by_id(each), 0, each) for each in self._scan(self.serving.collection))
        news = ((by_id(each), 1, each) for each in self._scan(self.new.collection))
        for stream, both in groupby(merge(olds, news, key=itemgetter(0)), key=itemgetter(0)):
            found = {side: document for _, side, document in both}
            yield stream, (found.get(0), found.get(1))

    def _scan(self, collection: str) -> Iterator[Document]:
        after = ""
        while page := self.retrying(self.readmodel.scan, collection, after, SCANNED):
            yield from page
            after = str(page[-1]["_id"])

    def _compare_again(self, unsure: list[str], parity: Parity) -> None:
        """Notes streams that still differ after both have caught up, except parked ones."""
        stopped = set[str]()
        for part in parts_of(self.projection, self.serving.number):
            stopped |= self.retrying(self.readmodel.parked, part.name, unsure).keys()
        left = [stream for stream in unsure if stream not in stopped]
        while left:
            self.catch_up()
            olds, news = (
                self.retrying(self.readmodel.find, each.collection, left)
                for each in (self.serving, self.new)
            )
            still = []
            for stream in left:
                old, new = olds.get(stream), news.get(stream)
                if self._waits and version_of(old) != version_of(new):
                    still.append(stream)
                else:
                    parity.note(kind_of(old, self._at_version_of(old, new)), stream)
            left = still
            if left:
                self._waits -= 1
                self.wait(0.2)

    def _at_version_of(self, old: Document | None, new: Document | None) -> Document | None:
        """The new document, at the version of the old one if that can be had."""
        if isinstance(self.projection, View) or not old or not new:
            return new
        if (version := version_of(old)) == version_of(new):
            return new
        stream = str(old["_id"])
        events = self.retrying(read_whole_streams, self.feed, [stream])[stream][:version]
        try:
            skips = self.readmodel.skips(self.projection.name)
            return self.projection.fold(events, skipped_versions(skips, stream))
        except Exception:  # noqa: BLE001 - whatever a step raises: this code cannot fold it
            return new
