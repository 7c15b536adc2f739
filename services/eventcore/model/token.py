"""The token of what a client has seen: versions of streams, and the epochs of their logs. Pure.

It names versions: a document of a projection belongs to one stream, so a reader needs to know only
how far that stream is. For views, which are folded in the order of positions, it names the highest
position in each log. It is the base64url of lines: `user@EPOCH` names the epoch of a log,
`user#12` a position in it, `user/ID/3` a version, newest first. It is not signed: whoever forges
one delays only their own requests.
"""

import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from dataclasses import dataclass, field
from typing import TypeVar
from uuid import UUID

from eventcore.errors import InvalidToken

SEEN_HEADER = "Consistency-Token"
"""The header that carries a token, in a request and in the answer of a command."""

STREAMS = 8
"""Streams that one token names at most."""

SIZE = 1024
"""Characters of a token at most."""

_LINE = re.compile(
    "([a-z][a-z0-9_]{0,62})(?:@([0-9A-Za-z -]{1,64})|#([1-9][0-9]{0,18})"
    "|/([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})/([1-9][0-9]{0,18}))",
    re.ASCII,
)


_Key = TypeVar("_Key", str, tuple[str, str])


@dataclass(frozen=True, slots=True)
class Token:
    """Versions by aggregate type and id, newest first; each type's log's epoch and position."""

    streams: dict[tuple[str, str], int] = field(default_factory=dict)
    epochs: dict[str, str] = field(default_factory=dict)
    positions: dict[str, int] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: str) -> "Token":
        """The token in a header; raises InvalidToken for anything else."""
        token = cls()
        try:
            if len(text) > SIZE:
                raise ValueError("too long")
            lines = _decoded(text).split("\n")
            for kind, epoch, position, id, version in map(_parts, lines):
                if epoch:
                    token.epochs[kind] = epoch
                elif position:
                    token.positions[kind] = int(position)
                else:
                    token.streams[kind, id] = int(version)
        except ValueError as error:
            raise InvalidToken(
                "Consistency-Token must be as a command's answer has it. Leave it out, or send the"
                " newest one unchanged. Nothing was done."
            ) from error
        return token

    def of(self, aggregate_type: str) -> dict[str, int]:
        """The versions of one type's streams, by id."""
        return {id: version for (kind, id), version in self.streams.items()
                if kind == aggregate_type}  # fmt: skip

    def version(self, aggregate_type: str, aggregate_id: object) -> int:
        """The version of one stream; 0 if the token does not name it."""
        return self.streams.get((aggregate_type, str(aggregate_id)), 0)

    def is_of(self, aggregate_type: str, epoch: str) -> bool:
        """Whether it can name events of a log; "" and a token without an epoch are of any."""
        return len({self.epochs.get(aggregate_type, ""), epoch} - {""}) < 2

    def over(self, older: "Token") -> "Token":
        """Both tokens as one: the greater version of each stream, the epochs of this one."""
        return Token(
            _greater(self.streams, older.streams),
            {**older.epochs, **self.epochs},
            _greater(self.positions, older.positions),
        )

    def __str__(self) -> str:
        """The text for a header: as many of the newest streams as it may have."""
        kept = [f"{kind}/{id}/{version}" for (kind, id), version in self.streams.items()][:STREAMS]
        while True:
            kinds = dict.fromkeys(line.partition("/")[0] for line in kept)
            lines = [f"{kind}@{self.epochs[kind]}" for kind in kinds if kind in self.epochs]
            lines += [f"{kind}#{self.positions[kind]}" for kind in kinds if kind in self.positions]
            text = _encoded("\n".join(lines + kept))
            if len(text) <= SIZE:
                return text
            kept.pop()


def token_of(aggregate_type: str, aggregate_id: UUID, version: int, position: int = 0) -> str:
    """The text of a token of one version of one stream, without the epoch of its log.

    `position` is that of the version's event, or 0 if it is not known.
    """
    at = f"{aggregate_type}#{position}\n" if position else ""
    return _encoded(f"{at}{aggregate_type}/{aggregate_id}/{version}")


def with_epoch(text: str, aggregate_type: str, epoch: str) -> str:
    """The text of a token without epochs, with that of one log."""
    return _encoded(f"{aggregate_type}@{epoch}\n{_decoded(text)}")


def _greater(newer: dict[_Key, int], older: dict[_Key, int]) -> dict[_Key, int]:
    """The greater number under each key, the keys of the newer first."""
    return {each: max(newer.get(each, 0), older.get(each, 0)) for each in {**newer, **older}}


def _encoded(lines: str) -> str:
    return urlsafe_b64encode(lines.encode()).decode().rstrip("=")


def _decoded(text: str) -> str:
    return urlsafe_b64decode(text.encode("ascii") + b"=" * (-len(text) % 4)).decode("ascii")


def _parts(line: str) -> tuple[str, ...]:
    if not (found := _LINE.fullmatch(line)):
        raise ValueError(line)
    return found.groups(default="")
