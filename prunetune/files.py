"""Files that appear whole or not at all."""

import errno
import os
import secrets
import sqlite3
import stat
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import IO

MOST_BYTES = 256 << 20
"""Of a file that is read as a whole."""
MOST_TABLE = 4 << 30
"""Of one that may hold a set of pictures."""


@contextmanager
def appearing(path: Path) -> Iterator[Path]:
    """Yield a new file beside ``path`` to write; at the end of the block it takes its name.

    Fsync, then rename: after a crash the old file or the new one is there. For writers that want a
    path; whoever has bytes calls ``write_atomically``. A new file has the mode that the process's
    umask gives, a file that is replaced keeps its own; a link is replaced, not followed.

    Raises:
        OSError: The folder cannot be made or written, the disk is full, or ``path`` is a device, a
            pipe, a folder or a link to one; nothing is left behind.
    """
    kept = _mode_of(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_urlsafe(6)}")
    # Not mkstemp, which knows no umask. What is kept from others is so while it is written, too.
    mode = 0o666 if kept is None else 0o600 | kept & 0o777
    handle = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_RDWR, mode)
    mode = stat.S_IMODE(os.fstat(handle).st_mode) if kept is None else kept
    os.close(handle)
    try:
        yield temporary
        # The writer may have put another file in its place.
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.chmod(mode)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _mode_of(path: Path) -> int | None:
    """Return the mode that a file's successor keeps; None where a new one comes."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    if not stat.S_ISREG(found.st_mode):
        raise OSError(errno.EINVAL, "not a plain file, so it is not replaced", str(path))
    return None if path.is_symlink() else stat.S_IMODE(found.st_mode)


def read_plain(path: Path, most: int = MOST_BYTES) -> bytes:
    """Return the content of a plain file.

    Raises:
        OSError: It cannot be read, is a pipe or a device, which may never end, or is too large.
    """
    with open_plain(path) as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise OSError(errno.EFBIG, f"larger than {most >> 20} MiB", str(path))
    return data


def open_plain(path: Path, how: int = os.O_RDONLY) -> IO[bytes]:
    """Open a plain file, by flags of ``os.open``; to write, a new one is its owner's alone.

    Raises:
        OSError: It cannot be opened, or is a pipe or a device.
    """
    # A pipe without somebody at its other end would keep us waiting.
    handle = os.open(path, how | getattr(os, "O_NONBLOCK", 0), 0o600)
    file = os.fdopen(handle, "ab" if how & os.O_APPEND else "rb")
    try:
        check_plain(file)
    except OSError:
        file.close()
        raise
    return file


def check_plain(file: IO[bytes]) -> None:
    """Refuse an open file that may never end, or takes what is written for something else.

    Raises:
        OSError: It is a pipe or a device.
    """
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        raise OSError(errno.EINVAL, "not a plain file; copy it into one", str(file.name))


def write_atomically(path: Path, content: bytes) -> Path:
    """Write a file, whole or not at all; see ``appearing``."""
    with appearing(path) as temporary:
        temporary.write_bytes(content)
    return path


@contextmanager
def alone_in(folder: Path, seconds: float) -> Iterator[bool]:
    """Keep other processes that ask for the same out of a folder while the block runs.

    It leaves no file behind, and ends with the process. Where the file system knows no locks, or
    another process keeps the folder for longer (it may be stopped), the block runs all the same.

    Args:
        folder: An existing folder.
        seconds: That are waited.

    Yields:
        Whether the folder is this process's alone.
    """
    try:
        import fcntl

        handle = os.open(folder, os.O_RDONLY)
    except (ImportError, OSError):
        yield False
        return
    deadline, alone = time.monotonic() + seconds, False
    try:
        while not alone and time.monotonic() < deadline:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                alone = True
            except BlockingIOError:
                time.sleep(0.05)
            except OSError:
                break
        yield alone
    finally:
        os.close(handle)


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
