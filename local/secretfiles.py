"""Passwords and tokens that are made once and kept, one file each, for their owner alone."""

import os
import secrets
from pathlib import Path

from eventcore.settings import Secret


def secret_file(folder: Path, name: str, value: str | None = None) -> Secret:
    """The secret in `folder/name`: what is there, or else `value`, or else a random one."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    file = folder / name
    if not file.exists():
        # Renamed in one step when it is complete: no reader sees a part of it.
        draft = folder / f".{name}.{os.getpid()}"
        draft.touch(mode=0o600)
        draft.write_text(value or secrets.token_urlsafe(24))
        draft.rename(file)
    return Secret(file=file)
