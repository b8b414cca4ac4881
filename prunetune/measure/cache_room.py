"""Room in the folder of caches: who takes it, and who has to go."""

import logging
import re
import shutil
import time
from contextlib import suppress
from pathlib import Path

logger = logging.getLogger(__name__)

_KEY = re.compile("[0-9a-f]{32}")
# Whatever reads or writes a cache marks it: one marked so recently belongs to a search that runs.
_IN_USE_SECONDS = 600.0
_LEFTOVER_SECONDS = 3600.0


def make_room(root: Path, keep: Path, size: int, limit: int) -> bool:
    """Delete least recently used caches until ``size`` more bytes fit under ``limit``.

    None goes that was used in the last ten minutes: a search that runs would compute it again in
    every trial. Nothing goes where that would not make room enough.

    Returns:
        Whether they fit now, ``keep`` being left alone.
    """
    taken = {folder: _size(folder) for folder in _folders(root)}
    idle = [folder for folder in taken if folder != keep and not _in_use(folder)]
    total = sum(taken.values()) + size
    if total - sum(taken[folder] for folder in idle) > limit:
        return False
    for folder in sorted(idle, key=_used):
        if total <= limit:
            break
        shutil.rmtree(folder, ignore_errors=True)
        # Measured again: another user's files may still be there.
        total += _size(folder) - taken[folder]
        logger.info("cache %s evicted: %d bytes", folder, taken[folder])
    return total <= limit


def taken_by_others(root: Path, keep: Path) -> int:
    """Return the bytes of the caches that cannot make room."""
    others = (folder for folder in _folders(root) if folder != keep and _in_use(folder))
    return sum(_size(folder) for folder in others)


def _in_use(folder: Path) -> bool:
    return time.time() - _used(folder) < _IN_USE_SECONDS


def remove_leftovers(folder: Path) -> None:
    """Remove what a process that was killed while it wrote has left."""
    for path in folder.glob(".*"):
        try:
            if time.time() - path.stat().st_mtime > _LEFTOVER_SECONDS:
                path.unlink()
        except OSError:
            logger.debug("cannot remove %s", path)


def _used(folder: Path) -> float:
    try:
        return folder.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def _folders(root: Path) -> list[Path]:
    """Return the caches in ``root``; whatever else lies there is not ours to delete."""
    try:
        entries = list(root.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []
    return [e for e in entries if _KEY.fullmatch(e.name) and e.is_dir() and not e.is_symlink()]


def _size(folder: Path) -> int:
    # Other processes write and evict, too: what has gone takes no room.
    try:
        entries = list(folder.iterdir())
    except OSError:
        return 0
    total = 0
    for entry in entries:
        with suppress(FileNotFoundError):
            total += entry.stat().st_size
    return total
