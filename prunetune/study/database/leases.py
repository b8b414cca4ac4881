"""Who runs a trial: taken, counted and judged dead or alive.

A trial is taken in one transaction with the count of trials that run or have finished, so however
many workers share a study it never ends with more trials than it was asked for.
"""

import hashlib
import json
import os
import socket
import uuid
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any, Protocol

from sqlalchemy import text

OWNER = "worker"
"""User attribute of a trial: the process that runs it."""

_LOCK = text("SELECT study_id FROM studies WHERE study_id = :study FOR UPDATE")
_STUDY = text("SELECT study_id FROM trials WHERE trial_id = :trial")
_START = text(
    "UPDATE trials SET state = 'RUNNING', datetime_start = :now "
    "WHERE trial_id = :trial AND state = 'WAITING'"
)
_FAIL = text(
    "UPDATE trials SET state = 'FAIL', datetime_complete = :now "
    "WHERE trial_id = :trial AND state = 'RUNNING'"
)
# What other programs put into the study is none of its trials: see `foreign`.
_COUNT = text(
    "SELECT count(*) FROM trials t WHERE t.study_id = :study AND ("
    "(t.state = 'RUNNING' AND (EXISTS (SELECT 1 FROM trial_user_attributes a "
    "WHERE a.trial_id = t.trial_id AND a.key = :owner) "
    "OR EXISTS (SELECT 1 FROM trial_heartbeats h WHERE h.trial_id = t.trial_id))) "
    "OR (t.state IN ('COMPLETE', 'PRUNED') AND EXISTS (SELECT 1 FROM trial_user_attributes a "
    "WHERE a.trial_id = t.trial_id AND a.key IN ('config', :owner))))"
)
_OWNERS = text(
    "SELECT t.trial_id, a.value_json FROM trials t JOIN trial_user_attributes a "
    "ON a.trial_id = t.trial_id AND a.key = :key "
    "WHERE t.study_id = :study AND t.state = 'RUNNING'"
)
_UNSIGN = text("DELETE FROM trial_user_attributes WHERE trial_id = :trial AND key = :key")
_SIGN = text(
    "INSERT INTO trial_user_attributes (trial_id, key, value_json) VALUES (:trial, :key, :value)"
)
_STILL = text("DELETE FROM trial_heartbeats WHERE trial_id = :trial")
_BEAT = text(
    "INSERT INTO trial_heartbeats (trial_id, heartbeat) VALUES (:trial, CURRENT_TIMESTAMP)"
)


class StudyFull(Exception):
    """As many trials run or have finished as the study may have."""


class Connection(Protocol):
    """What SQLAlchemy's connections and sessions have in common."""

    def execute(self, statement: Any, parameters: Any = None, /) -> Any: ...  # noqa: D102


@cache
def _home() -> str:
    """Return the process table that this process is in: a pid means nothing in another one."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        table = os.readlink("/proc/self/ns/pid")
    except OSError:
        return uuid.uuid4().hex[:16]
    return hashlib.sha256(f"{socket.gethostname()}/{boot}/{table}".encode()).hexdigest()[:16]


def _started(pid: int) -> str | None:
    """Return when a process started, ``""`` if it is a zombie, None if that cannot be read."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return "" if fields[0] in "ZX" else fields[19]


def identity() -> str:
    """Return a name of this process that no other process anywhere has."""
    return f"{_home()}:{os.getpid()}:{_started(os.getpid()) or ''}"


def is_dead(owner: str) -> bool:
    """Tell whether a process has surely ended; False where that cannot be seen from here."""
    home, _, process = owner.partition(":")
    pid, _, started = process.partition(":")
    if home != _home() or not pid.isdigit():
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    now = _started(int(pid))
    return now is not None and now != started


def owners(connection: Connection, study: int) -> dict[int, str]:
    """Return the owner of each running trial, by trial id."""
    rows = connection.execute(_OWNERS, {"study": study, "key": OWNER})
    return {trial: str(json.loads(value)) for trial, value in rows}


def sign(connection: Connection, study: int, trial: int, room: int | None) -> None:
    """Make a trial that this transaction started this process's own.

    Raises:
        StudyFull: One more would be too many; the transaction has to be rolled back.
    """
    key = {"trial": trial, "key": OWNER}
    connection.execute(_UNSIGN, key)
    connection.execute(_SIGN, {**key, "value": json.dumps(identity())})
    connection.execute(_STILL, {"trial": trial})
    connection.execute(_BEAT, {"trial": trial})
    if room is not None:
        counted = connection.execute(_COUNT, {"study": study, "owner": OWNER}).scalar()
        if counted > room:
            raise StudyFull


def take(connection: Connection, dialect: str, trial: int, room: int | None) -> bool:
    """Start a waiting trial; False if another worker was faster.

    Raises:
        StudyFull: See ``sign``.
    """
    study = connection.execute(_STUDY, {"trial": trial}).scalar()
    _lock(connection, dialect, study)
    if not connection.execute(_START, {"trial": trial, "now": now()}).rowcount:
        return False
    sign(connection, study, trial, room)
    return True


def fail(connection: Connection, dialect: str, study: int, trial: int) -> bool:
    """End a running trial as failed; False if it does not run any more.

    The study is locked until the transaction ends: a trial may be added in it.
    """
    _lock(connection, dialect, study)
    return bool(connection.execute(_FAIL, {"trial": trial, "now": now()}).rowcount)


def _lock(connection: Connection, dialect: str, study: int) -> None:
    # SQLite has one writer at a time: the update that follows is its lock.
    if dialect != "sqlite":
        connection.execute(_LOCK, {"study": study})


def now() -> datetime:
    """Return the time as Optuna keeps it: in UTC, without a zone."""
    return datetime.now(UTC).replace(tzinfo=None)
