"""Optuna's database storage, made for many workers and small writes."""

import logging
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.orm import Session

from prunetune.study.database import foreign, leases
from prunetune.study.database.pending import Pending
from prunetune.study.database.persistent import PersistentStorage

logger = logging.getLogger(__name__)

_REPORT_SECONDS = 5
_MOST_RETRIES = 2


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
        found = self.persist(lambda: super(BatchedStorage, self).get_trial(trial_id))
        return foreign.as_failed(found) if foreign.is_foreign(found) else found

    def _get_trials(
        self, study_id: int, states: Any, *args: Any, **kwargs: Any
    ) -> list[FrozenTrial]:
        if self.running is not None:
            self._write(self.running)
        return foreign.shown(super()._get_trials(study_id, None, *args, **kwargs), states)

    def _get_best_trial_id(self, study_id: int, *args: Any, **kwargs: Any) -> int:
        best = super()._get_best_trial_id(study_id, *args, **kwargs)
        found = self.persist(lambda: RDBStorage.get_trial(self, best))
        if not foreign.is_foreign(found):
            return best
        own = [t for t in self.get_all_trials(study_id) if t.state is TrialState.COMPLETE]
        if not own:
            raise ValueError("No trials are completed yet.")
        return min(own, key=lambda t: (t.values[0], t.number))._trial_id

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
                left = foreign.ownerless(connection, study_id, leases.now())
            me = leases.identity()
            dead = {t for t, owner in owners.items() if owner == me or leases.is_dead(owner)}
            return sorted({*dead, *left, *RDBStorage._get_stale_trial_ids(self, study_id)})

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
                if leases.OWNER not in trial.user_attrs and not foreign.was_queued(trial):
                    logger.warning(
                        "trial %d is not the search's: it ran for five minutes with nobody to "
                        "answer for it, and counts as failed",
                        trial.number,
                    )
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
