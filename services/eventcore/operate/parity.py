"""Two generations of a projection, compared."""

import hashlib
import json
from collections import defaultdict
from dataclasses import dataclass, field
from typing import ParamSpec

from eventcore.model.projection import Document, event_id_of

Given = ParamSpec("Given")

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
    if new is None:
        return "missing"
    return "different" if old is not None else "added"
