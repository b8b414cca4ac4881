"""Opens a study's database: SQLite in the run's folder, or PostgreSQL."""

import random
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import optuna
from sqlalchemy import create_engine, event, inspect
from sqlalchemy.engine import make_url
from sqlalchemy.exc import (
    ArgumentError,
    IntegrityError,
    OperationalError,
    ProgrammingError,
    SQLAlchemyError,
)

from prunetune.errors import StudyError
from prunetune.files import alone_in
from prunetune.secrets import redact, remember
from prunetune.study.database.persistent import check_optuna
from prunetune.study.database.postgres import connector
from prunetune.study.database.storage import BatchedStorage
from prunetune.study.database.urls import COLUMNS, TABLE

# Longer than a database takes to restart: a live trial must not be taken for a dead one.
HEARTBEAT_SECONDS, GRACE_SECONDS = 60, 300
PATIENCE_SECONDS = 120.0
# SQLite itself heeds no signal while it waits for another process; calls are made again.
_LOCK_SECONDS = 10
_OPENING_SECONDS = 60.0


def check_folder(out: Path) -> Path:
    """Make a run's folder and prove that files can be written there.

    Raises:
        StudyError: It cannot be made or written.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            pass
    except OSError as error:
        reason = error.strerror or error
        raise StudyError(
            f"cannot write to output folder {str(out)!r}: {reason}; choose another one with --out"
        ) from None
    return out


def open_storage(url: str, *, reading: bool = False) -> BatchedStorage:
    """Open a database, making its tables where there are none.

    Args:
        url: Of the database.
        reading: Leave it as it is: one without tables of studies is refused.

    Raises:
        StudyError: It cannot be reached, is no study database, or the URL is malformed; or Optuna
            is one that this release does not work with.
    """
    check_optuna()
    remember([url])
    refused = StudyError(
        f"storage: received {redact(url)!r}, which is no database URL that a study can use; "
        "allowed: sqlite:///FILE or postgresql://USER@HOST/DATABASE"
    )
    try:
        # What `leases` and `pending` say to the database, these two understand.
        backend = make_url(url).get_backend_name()
    except (ArgumentError, ValueError):  # a port that is no number
        raise refused from None
    if backend not in ("sqlite", "postgresql"):
        raise refused
    try:
        storage = _open(url, reading)
    except ArgumentError:
        raise refused from None
    except (SQLAlchemyError, optuna.exceptions.OptunaError, RuntimeError, ImportError) as error:
        raise StudyError(_unusable(url, error)) from None
    storage.patience = PATIENCE_SECONDS
    return storage


def _check_tables(url: str, reading: bool) -> None:
    """Refuse a database that holds another program's, before anything could be written to it.

    Args:
        url: Of the database.
        reading: Refuse one that holds no studies, too.

    Raises:
        StudyError: It does.
    """
    engine = create_engine(url, **_options(url))
    try:
        found = inspect(engine)
        tables = found.get_table_names()
        columns = {one["name"] for one in found.get_columns(TABLE)} if TABLE in tables else set()
    finally:
        engine.dispose()
    if TABLE in tables and not columns >= COLUMNS:
        raise StudyError(
            f"{redact(url)!r} is another program's database: it has a table {TABLE!r} of its own; "
            "name another one with --storage or --out"
        )
    if reading and TABLE not in tables:
        what = "is another program's database" if tables else "holds no study yet"
        raise StudyError(
            f"no study at {redact(url)!r}: it {what}; `prunetune search --storage` makes one"
        )


def _options(url: str) -> dict[str, Any]:
    parsed = make_url(url)
    if parsed.get_backend_name() == "sqlite":
        return {"connect_args": {"timeout": _LOCK_SECONDS}}
    ours = parsed.get_driver_name() == "psycopg"
    return {"pool_pre_ping": True} | ({"creator": connector(url)} if ours else {})


def _open(url: str, reading: bool) -> BatchedStorage:
    path = make_url(url).database if make_url(url).get_backend_name() == "sqlite" else None
    if not path or path == ":memory:" or reading:
        return _opened(url, reading)
    # Commands that start together would each make the same tables, and fall over each other.
    with alone_in(Path(path).absolute().parent, _OPENING_SECONDS):
        return _opened(url, reading)


def _opened(url: str, reading: bool) -> BatchedStorage:
    sqlite = make_url(url).get_backend_name() == "sqlite"
    engine = _options(url)
    deadline = time.monotonic() + _OPENING_SECONDS
    while True:
        try:
            _check_tables(url, reading)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                storage = BatchedStorage(
                    # Optuna puts its own version where the URL asks for it, by str.format.
                    url.replace("{", "{{").replace("}", "}}"),
                    engine_kwargs=engine,
                    heartbeat_interval=HEARTBEAT_SECONDS,
                    grace_period=GRACE_SECONDS,
                )
            break
        except (IntegrityError, ProgrammingError, OperationalError) as error:
            # Workers that start together in an empty database all make its tables.
            if time.monotonic() > deadline or not _is_race(error):
                raise
            time.sleep(random.uniform(0.1, 0.5))
    if not (sqlite and reading):
        event.listen(storage.engine, "connect", _fast_commits if sqlite else _in_utc)
    storage.engine.dispose()
    storage.patience = _OPENING_SECONDS if sqlite else 0.0
    storage.get_all_studies()
    return storage


def _is_race(error: SQLAlchemyError) -> bool:
    """Tell whether another process that makes the same tables can be why one was not made."""
    if isinstance(error, IntegrityError):
        return True
    words = ("already exists", "locked", "duplicate key", "no such table", "does not exist")
    return any(word in str(error.__cause__ or error) for word in words)


def _in_utc(connection: Any, _record: Any) -> None:
    # Heartbeats are kept without a zone and compared with the session's time: two sessions in
    # different zones, or one over a change of the clock, would take the living for dead.
    with connection.cursor() as cursor:
        cursor.execute("SET TIME ZONE 'UTC'")
    connection.commit()


def _fast_commits(connection: Any, _record: Any) -> None:
    # With the default journal every commit waits for the disk three times (measured 25 ms against
    # 2 ms). A killed process loses nothing; a power cut at most the last trials.
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=NORMAL")


def _unusable(url: str, error: BaseException) -> str:
    if "@" in (make_url(url).host or ""):
        return "storage: the password holds an '@'; write it as %40"
    cause = getattr(error, "orig", None) or error.__cause__ or error
    reason = redact(" ".join(str(getattr(cause, "orig", None) or cause).split()))
    advice = "move it away to start afresh, or name another one with --storage or --out"
    if isinstance(error, ImportError):
        advice = "install its driver: pip install 'prunetune[search]'"
    elif make_url(url).get_backend_name() != "sqlite":
        # Whatever is wrong there, a server is nothing to move away.
        advice = "check the URL, the server and your rights there, or name another with --storage"
    elif "unable to open" in reason:
        advice = "check that its folder exists and your rights there, or name another one"
    elif "disk" in reason and "malformed" not in reason:
        # Full, or over a quota: nothing is wrong with what the database holds.
        advice = "check the disk's space and rights; what the database holds is kept"
    return f"cannot use the study database {redact(url)}: {reason[:200]}; {advice}"
