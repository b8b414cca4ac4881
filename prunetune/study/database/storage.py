"""Where a study lives: SQLite in the run's folder, or PostgreSQL."""

import logging
import random
import re
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import event
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, IntegrityError, ProgrammingError, SQLAlchemyError
from sqlalchemy.orm import Session

from prunetune.errors import StudyError
from prunetune.study.database import leases
from prunetune.study.database.pending import Pending
from prunetune.study.database.persistent import PersistentStorage, check_optuna

logger = logging.getLogger(__name__)

DATABASE = "study.db"
# Longer than a database takes to restart: a live trial must not be taken for a dead one.
HEARTBEAT_SECONDS, GRACE_SECONDS = 60, 300
PATIENCE_SECONDS = 120.0
_LOCK_SECONDS = 60
_REPORT_SECONDS = 5
_MOST_RETRIES = 2
_SECRET = re.compile(r"(://[^:/@\s]*:)\S*(?=@)|((?:password|passwd|token)=)[^&\s]+", re.I)


class BatchedStorage(PersistentStorage):
    """Optuna's database storage for workers that come and go, and databases that restart.

    A trial's parameters, attributes and reports are written many at a time: one transaction each
    costs more than a small model's forward (measured: 2 ms, 25 ms with SQLite's default journal,
    some 45 of them a trial). They are written at least every few seconds, before anything is read
    and when the trial ends; a killed process loses those of its running trial only. Finite
    reports only.

    Every trial that runs has an owner and a heartbeat from the moment it starts; see ``leases``.

    Attributes:
        room: Trials of a study that may run or have finished; None: no limit.
        running: Id of the trial that this process runs.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.room: int | None = None
        self.running: int | None = None
        super().__init__(*args, **kwargs)
        self._pending: dict[int, Pending] = {}
        self._written = time.monotonic()

    def _get_prepared_new_trial(
        self, study_id: int, template_trial: FrozenTrial | None, session: Any
    ) -> Any:
        trial: Any = super()._get_prepared_new_trial(study_id, template_trial, session)
        if trial.state is TrialState.RUNNING:
            session.flush()
            leases.sign(session, study_id, trial.trial_id, self.room)
        return trial

    def _set_trial_param(
        self,
        trial_id: int,
        param_name: str,
        param_value_internal: float,
        distribution: BaseDistribution,
        previous_distribution: BaseDistribution | None,
    ) -> None:
        pending = self._pending.setdefault(trial_id, Pending())
        pending.parameters[param_name] = param_value_internal, distribution

    def set_trial_user_attr(self, trial_id: int, key: str, value: Any) -> None:
        """Keep an attribute, to be written soon."""
        self._pending.setdefault(trial_id, Pending()).attributes[key] = value

    def set_trial_intermediate_value(
        self, trial_id: int, step: int, intermediate_value: float
    ) -> None:
        """Keep a report, to be written soon."""
        self._pending.setdefault(trial_id, Pending()).reports[step] = intermediate_value
        if time.monotonic() - self._written > _REPORT_SECONDS:
            self._write(trial_id)

    def get_trial(self, trial_id: int) -> FrozenTrial:
        """Return a trial with all that was set."""
        self._write(trial_id)
        return self.persist(lambda: super(BatchedStorage, self).get_trial(trial_id))

    def _get_trials(self, *args: Any, **kwargs: Any) -> list[FrozenTrial]:
        if self.running is not None:
            self._write(self.running)
        return super()._get_trials(*args, **kwargs)

    def set_trial_state_values(
        self, trial_id: int, state: TrialState, values: Sequence[float] | None = None
    ) -> bool:
        """Start a waiting trial, or write what is kept and end one.

        Raises:
            StudyFull: One more would be too many.
            UpdateFinishedTrialError: Another worker took the trial for dead and ended it.
        """
        if state is TrialState.RUNNING:
            return self.persist(lambda: self._take(trial_id))
        self._write(trial_id)
        tries = 0

        def end() -> bool:
            nonlocal tries
            tries += 1
            try:
                return RDBStorage.set_trial_state_values(self, trial_id, state, values)
            except optuna.exceptions.UpdateFinishedTrialError:
                # The database may have gone away after it did what was asked.
                if tries > 1 and RDBStorage.get_trial(self, trial_id).state is state:
                    return True
                raise

        return self.persist(end)

    def _take(self, trial_id: int) -> bool:
        with self.engine.begin() as connection:
            return leases.take(connection, self.engine.dialect.name, trial_id, self.room)

    def _get_stale_trial_ids(self, study_id: int) -> list[int]:
        def find() -> list[int]:
            with self.engine.connect() as connection:
                owners = leases.owners(connection, study_id)
            me = leases.identity()
            dead = {t for t, owner in owners.items() if owner == me or leases.is_dead(owner)}
            return sorted({*dead, *RDBStorage._get_stale_trial_ids(self, study_id)})

        return [trial for trial in self.persist(find) if trial != self.running]

    def sweep(self, study_id: int) -> None:
        """Queue again every trial whose process died, or that this one left unfinished."""
        for trial_id in self._get_stale_trial_ids(study_id):
            try:
                self._queue_again(study_id, self.get_trial(trial_id))
            except optuna.exceptions.UpdateFinishedTrialError:
                logger.debug("trial %d has ended meanwhile", trial_id)

    def _queue_again(self, study_id: int, trial: FrozenTrial) -> None:
        """End a running trial and add a waiting copy, in one transaction: neither is lost.

        The copy measures anew, so it has no reports. A trial that took its worker down three times
        is not run again; one that was given up in an orderly way counts nothing.
        """
        history = [*trial.system_attrs.get("retry_history", [])]
        if trial.user_attrs.get(leases.OWNER) != leases.identity():
            history.append(trial.number)
        attrs = {"failed_trial": trial.number, **trial.system_attrs, "retry_history": history}
        waiting = optuna.create_trial(
            state=TrialState.WAITING,
            params=trial.params,
            distributions=trial.distributions,
            user_attrs={k: v for k, v in trial.user_attrs.items() if k != leases.OWNER},
            system_attrs=attrs,
        )

        def swap() -> None:
            with Session(self.engine) as session, session.begin():
                if not leases.fail(session, self.engine.dialect.name, study_id, trial._trial_id):
                    return
                if len(history) > _MOST_RETRIES:
                    logger.warning(
                        "trial %d is not run again: its worker died each of %d times",
                        *(trial.number, len(history)),
                    )
                    return
                self._get_prepared_new_trial(study_id, waiting, session)

        self.persist(swap)

    def _write(self, trial_id: int) -> None:
        pending = self._pending.get(trial_id)
        self._written = time.monotonic()
        if pending is None:
            return

        def write() -> None:
            with self.engine.begin() as connection:
                pending.write(connection, trial_id)

        try:
            self.persist(write)
        except optuna.exceptions.UpdateFinishedTrialError:
            self._pending.pop(trial_id, None)
            raise
        self._pending.pop(trial_id, None)


def redact(message: str) -> str:
    """Return ``message`` (a storage URL, or a message that holds one) with passwords replaced."""
    return _SECRET.sub(lambda found: f"{found[1] or found[2]}***", message)


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


def storage_url(out: Path, storage: str | None) -> str:
    """Return the URL of the database: the one given, or SQLite in the run's folder."""
    if storage is None:
        return file_url(out / DATABASE)
    # The drivers that SQLAlchemy would take for these names are not what prunetune installs.
    return re.sub(r"^postgres(ql)?://", "postgresql+psycopg://", storage)


def file_url(path: Path) -> str:
    """Return the URL of an SQLite file, whatever characters its path holds."""
    url = URL.create("sqlite", database=str(path.resolve()))
    return url.render_as_string(hide_password=False)


def open_storage(url: str) -> BatchedStorage:
    """Open a database, making its tables where there are none.

    Raises:
        StudyError: It cannot be reached, is no study database, or the URL is malformed; or Optuna
            is one that this release does not work with.
    """
    check_optuna()
    refused = StudyError(
        f"storage: received {redact(url)!r}, which is no database URL that a study can use; "
        "allowed: sqlite:///FILE or postgresql://USER@HOST/DATABASE"
    )
    try:
        # What `leases` and `pending` say to the database, these two understand.
        if make_url(url).get_backend_name() not in ("sqlite", "postgresql"):
            raise refused
        storage = _open(url)
    except ArgumentError:
        raise refused from None
    except (SQLAlchemyError, optuna.exceptions.OptunaError, RuntimeError, ImportError) as error:
        raise StudyError(_unusable(url, error)) from None
    storage.patience = PATIENCE_SECONDS
    return storage


def _open(url: str) -> BatchedStorage:
    sqlite = make_url(url).get_backend_name() == "sqlite"
    engine: dict[str, Any] = (
        {"connect_args": {"timeout": _LOCK_SECONDS}} if sqlite else {"pool_pre_ping": True}
    )
    for last in (False,) * 9 + (True,):
        try:
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
        except (IntegrityError, ProgrammingError):
            # Workers that start together in an empty database all make its tables.
            if last:
                raise
            time.sleep(random.uniform(0.1, 0.5))
    event.listen(storage.engine, "connect", _fast_commits if sqlite else _in_utc)
    storage.engine.dispose()
    storage.get_all_studies()
    return storage


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


@contextmanager
def quiet() -> Iterator[None]:
    """Keep Optuna from writing to stderr: what matters is logged by prunetune."""
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            # Heartbeats are sent by ``loop``; a trial that an older release queued has reports.
            warnings.filterwarnings("ignore", message="Heartbeat of storage is supposed")
            warnings.filterwarnings("ignore", message="The reported value is ignored")
            warnings.filterwarnings("ignore", message="WilcoxonPruner finds steps existing")
            yield
    finally:
        optuna.logging.set_verbosity(verbosity)


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
