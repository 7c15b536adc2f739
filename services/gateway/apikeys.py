"""python -m gateway.apikeys FILE COMMAND: API keys of machines, kept as SHA-256 alone.

A key is `shop_<id>_<256 bits>`. FILE has a line for each: id, SHA-256, scopes, and the id of the
user to whom the key is limited, unless it has the scope `admin`. In a cluster FILE is a Secret's.
"""

import hashlib
import hmac
import logging
import os
import re
import secrets
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

import click

from eventcore.web.caller import ADMIN, SCOPES, Caller, user_id_of
from gateway.tokens import NotVerified

log = logging.getLogger(__name__)

PREFIX = "shop_"

_KEY = re.compile("shop_([a-z0-9]{1,32})_([A-Za-z0-9_-]{43})")


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A key as the file has it."""

    id: str
    sha256: str
    scopes: frozenset[str]
    user: str = ""

    def __str__(self) -> str:
        scopes = ",".join(each for each in SCOPES if each in self.scopes)
        return f"{self.id} {self.sha256} {scopes} {self.user}".rstrip()


def parse(text: str) -> dict[str, ApiKey]:
    """The keys of a file by their ids; a line that is no key is logged and left out."""
    found = {}
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        key = _parse_line(line)
        if key is None:
            log.error("Line of the API keys not read", extra={"line": number})
        else:
            found[key.id] = key
    return found


def _parse_line(line: str) -> ApiKey | None:
    match line.split():
        case [id, sha256, scopes, *user] if len(user) <= 1:
            names = frozenset(scopes.split(","))
            is_valid = re.fullmatch("[0-9a-f]{64}", sha256) and names <= set(SCOPES)
            if is_valid and all(map(user_id_of, user)):
                return ApiKey(id, sha256, names, user_id_of(user[0]) if user else "")
    return None


def verify(token: str, keys: Mapping[str, ApiKey]) -> Caller:
    """The caller whose key this is; raises NotVerified."""
    form = _KEY.fullmatch(token)
    known = keys.get(form[1]) if form else None
    digest = hashlib.sha256(token.encode()).hexdigest()
    if not hmac.compare_digest(digest, known.sha256 if known else "0" * 64) or not known:
        raise NotVerified("The API key is not known, or it was revoked.")
    return Caller(f"key:{known.id}", known.user, known.scopes)


def make(scopes: Iterable[str], user: str = "") -> tuple[str, ApiKey]:
    """A new key as its owner has it, and as the file has it."""
    id = secrets.token_hex(5)
    token = f"{PREFIX}{id}_{secrets.token_urlsafe(32)}"
    digest = hashlib.sha256(token.encode()).hexdigest()
    return token, ApiKey(id, digest, frozenset(scopes), user)


def _write(file: Path, lines: Iterable[str]) -> None:
    """Replaces a file in one step; its owner alone reads it."""
    draft = file.with_name(f".{file.name}.{os.getpid()}")
    draft.touch(mode=0o600)
    draft.write_text("".join(f"{line}\n" for line in lines))
    draft.rename(file)


def _lines(file: Path) -> list[str]:
    return file.read_text().splitlines() if file.exists() else []


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@click.pass_context
def main(context: click.Context, file: Path) -> None:
    """Make, list and revoke the API keys in FILE."""
    context.obj = file


@main.command("make")
@click.option("--scope", "scopes", multiple=True, required=True, type=click.Choice(SCOPES))
@click.option("--user", type=click.UUID, help="The user to whom the key is limited.")
@click.pass_obj
def make_key(file: Path, scopes: tuple[str, ...], user: UUID | None) -> None:
    """Make a key, and show it once."""
    if not user and ADMIN not in scopes:
        raise click.UsageError("Name a --user, or give the key --scope admin.")
    token, key = make(scopes, str(user or ""))
    _write(file, [*_lines(file), str(key)])
    click.echo(f"Key {key.id} is in {file} as SHA-256. It is shown this once:", err=True)
    click.echo(token)


@main.command("list")
@click.pass_obj
def list_keys(file: Path) -> None:
    """List the keys: id, scopes, and the user of each that is limited to one."""
    for key in parse("\n".join(_lines(file))).values():
        click.echo(f"{key.id} {','.join(sorted(key.scopes))} {key.user}".rstrip())


@main.command("revoke")
@click.argument("id")
@click.pass_obj
def revoke_key(file: Path, id: str) -> None:
    """Revoke the key with this ID."""
    lines = _lines(file)
    kept = [line for line in lines if line.split()[:1] != [id]]
    if len(kept) == len(lines):
        sys.exit(f"{file} has no key {id}.")
    _write(file, kept)
    click.echo(f"Key {id} is revoked. A gateway knows it within some seconds.")


if __name__ == "__main__":
    main()
