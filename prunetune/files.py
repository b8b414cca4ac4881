"""Files that appear whole or not at all."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SQLITE = b"SQLite format 3\0"
"""What every SQLite file starts with."""


@contextmanager
def appearing(path: Path) -> Iterator[Path]:
    """Yield a new file beside ``path`` to write; at the end of the block it takes its name.

    Fsync, then rename: after a crash the old file or the new one is there. For writers that want a
    path; whoever has bytes calls ``write_atomically``.

    Raises:
        OSError: The folder cannot be made or written, or the disk is full; nothing is left behind.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        # The writer may have put another file in its place.
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_atomically(path: Path, content: bytes) -> Path:
    """Write a file, whole or not at all; see ``appearing``."""
    with appearing(path) as temporary:
        temporary.write_bytes(content)
    return path
