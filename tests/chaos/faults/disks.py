"""A server's folder on a small file system, which can be filled."""

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from local.servers import OwnServer
from tests.chaos.fault import Skipped

MEGABYTE = 1 << 20


@contextmanager
def small_disk(server: OwnServer, folder: Path, room: int) -> Iterator[Path]:
    """Stop a server and start it with `folder` on a file system with so many MB to spare.

    A file of that path takes all of it once it is filled; afterwards the folder is back.
    """
    small = folder.with_name(f"{folder.name}-small")
    small.mkdir()
    server.stop()
    size = sum(each.stat().st_size for each in folder.rglob("*") if each.is_file()) // MEGABYTE
    options = f"size={size + room}m,mode=777"
    mount = ("mount", "-t", "tmpfs", "-o", options, "tmpfs", str(small))
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        small.rmdir()
        server.start()
        raise Skipped("no file system can be mounted here")
    try:
        kept, filler = small / folder.name, small / "filler"
        _move(folder, kept)
        folder.symlink_to(kept)
        server.start()
        yield filler
        filler.unlink(missing_ok=True)
        server.stop()
        server.start()  # once more where it was, so that it mends what it could not write
        server.stop()
        folder.unlink()
        _move(kept, folder)
        server.start()
    finally:
        subprocess.run(("umount", "-l", str(small)), check=False)
        small.rmdir()


def fill(file: Path) -> None:
    """Write until there is no room."""
    with file.open("wb", buffering=0) as out:
        try:
            while True:
                out.write(bytes(MEGABYTE))
        except OSError:
            return


def _move(source: Path, target: Path) -> None:
    """Copy a folder with its owners, and remove it."""
    subprocess.run(("cp", "-a", str(source), str(target)), check=True)
    shutil.rmtree(source)
