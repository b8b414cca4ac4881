"""Where a stored study is: answered without loading what reads it."""

import sqlite3
from pathlib import Path

from prunetune.errors import StudyError
from prunetune.files import is_database, looked_at
from prunetune.hub.uris import is_uri
from prunetune.secrets import redact
from prunetune.study.database.urls import COLUMNS, DATABASE, TABLE, file_url, storage_url


def locate(target: str) -> tuple[str, Path | None]:
    """Return the URL of a study's database, and the run's folder; None for a storage URL.

    Args:
        target: A run's folder, its ``study.db``, or a storage URL.

    Raises:
        StudyError: There is no such file.
    """
    folder = None
    if is_uri(target):
        raise StudyError(
            f"no study at {target!r}: on the hub are configs, not studies; give a folder that "
            "`prunetune search` wrote, its study.db, or a storage URL"
        )
    if "://" in target:
        url = storage_url(Path(), target)
        file = url.removeprefix("sqlite:///")
        if file != url and not Path(file).is_file():
            raise StudyError(
                f"no study at {redact(target)!r}: {file} does not exist; give its study.db"
            )
    else:
        path = Path(target)
        path = path / DATABASE if path.is_dir() else path
        _check_database(path, target)
        url, folder = file_url(path), path.parent
    return url, folder


def _check_database(path: Path, target: str) -> None:
    """Refuse what is no database file of a study, in words about what was asked for.

    Raises:
        StudyError: It is not.
    """
    wanted = "give a folder that `prunetune search` wrote, its study.db, or a storage URL"
    if not path.is_file():
        study, colon, trial = target.rpartition(":")
        if colon and trial.isdecimal() and Path(study).exists():
            wanted = (
                f"give {study!r}; a trial is named by --trial {trial} in export, and by STUDY:N in "
                "show and diff only"
            )
        there = "is no file" if path.exists() else "does not exist"
        raise StudyError(f"no study at {target!r}: {path} {there}; {wanted}")
    # An empty file is what SQLite leaves where a search was killed before its first write.
    if not is_database(path):
        raise StudyError(f"no study at {target!r}: {path} is not a database; {wanted}")
    if _is_foreign(path):
        # Optuna would make its tables in it.
        raise StudyError(f"no study at {target!r}: {path} is another program's database; {wanted}")


def _is_foreign(path: Path) -> bool:
    """Tell whether an SQLite database surely holds tables, but none of studies."""
    try:
        with looked_at(path) as database:
            (tables,) = database.execute("SELECT count(*) FROM sqlite_master").fetchone()
            columns = {row[1] for row in database.execute(f"PRAGMA table_info({TABLE})")}
    except sqlite3.Error:
        return False
    return bool(tables) and not columns >= COLUMNS
