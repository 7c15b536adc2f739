"""`make clean`: remove the data of `make run`. Refuses while it runs."""

import shutil
import sys
from pathlib import Path

from local.child import CannotStart
from local.lock import sole_use


def clean(data: Path) -> None:
    """Remove the folder; raises CannotStart while somebody runs on it."""
    if not data.exists():
        return
    with sole_use(data):
        shutil.rmtree(data)


if __name__ == "__main__":
    try:
        clean(Path(sys.argv[1]))
    except CannotStart as problem:
        sys.exit(str(problem))
