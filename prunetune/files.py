"""Files that appear whole or not at all."""

import errno
import os
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path


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


@contextmanager
def looked_at(path: Path) -> Iterator[sqlite3.Connection]:
    """Yield a connection to an SQLite file that only reads.

    A process that opens and closes the file by other means loses all its locks on it (POSIX), and
    with them whatever database it has open there: the next process that closes that database takes
    itself for the last one, and removes the write-ahead log in use.

    Raises:
        sqlite3.Error: It cannot be opened.
    """
    url = f"{path.resolve().as_uri()}?mode=ro"
    with closing(sqlite3.connect(url, uri=True)) as connection:
        yield connection


def is_database(path: Path) -> bool:
    """Tell whether a file can be an SQLite database, by its start; an empty one can.

    Raises:
        OSError: There is no such file, or it cannot be read.
    """
    if path.stat().st_size == 1:  # which SQLite takes for an empty one
        return False
    if not os.access(path, os.R_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
    try:
        with looked_at(path) as database:
            database.execute("PRAGMA schema_version")
    except sqlite3.Error as error:
        return error.sqlite_errorcode != sqlite3.SQLITE_NOTADB
    return True
