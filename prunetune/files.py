"""Files that appear whole or not at all."""

import os
import tempfile
from pathlib import Path

SQLITE = b"SQLite format 3\0"
"""What every SQLite file starts with."""


def write_atomically(path: Path, content: bytes) -> Path:
    """Write beside, fsync, rename: after a crash the old file or the new one is there.

    Raises:
        OSError: The folder cannot be made or written, or the disk is full; nothing is left behind.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return path
