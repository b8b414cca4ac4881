"""Whether the file of a database is still the one that was opened."""

from pathlib import Path
from types import TracebackType

from prunetune.errors import StudyError


class Watch:
    """Notices that a database file was deleted or replaced: what is written then is lost.

    A process keeps a deleted file, and the next connection makes a new, empty one: without looking
    at the name nobody is told.

    Args:
        path: The file; None for a server's database, which tells by itself.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._first = None if path is None else _identity(path)

    def check(self) -> None:
        """Look.

        Raises:
            StudyError: It is gone, or another one.
        """
        if self._path is not None and _identity(self._path) != self._first:
            raise StudyError(
                f"{self._path} was deleted or replaced while the search ran: its trials are lost; "
                "restore the file and run the same command to resume, or run it to start afresh"
            )

    def __enter__(self) -> "Watch":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # Whatever the database says then, this is why.
        if kind is not None and issubclass(kind, Exception):
            self.check()


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino
