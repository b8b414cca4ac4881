"""One worker's loop: ask, measure, tell, until the study has enough; nothing it does is lost."""

import logging
import threading
import time
from collections.abc import Callable, Sequence

from optuna import Study, Trial, TrialPruned
from optuna.exceptions import OptunaError, StorageInternalError, UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState

from prunetune.errors import StudyError
from prunetune.interrupts import check
from prunetune.study.clock import Clock, OutOfTime
from prunetune.study.database.leases import StudyFull
from prunetune.study.database.storage import BatchedStorage, quiet
from prunetune.study.trials.best import FINISHED
from prunetune.study.trials.trials import Objective

logger = logging.getLogger(__name__)

_MOST_FAILURES = 5
_FIRST_PAUSE, _LONGEST_PAUSE = 0.05, 2.0
_CLEAN_UP_SECONDS = 5.0


def finished(study: Study) -> int:
    """Return how many trials are complete or pruned."""
    return len(study.get_trials(deepcopy=False, states=FINISHED))


class Heartbeat:
    """Tells the database that the running trial's process lives; outlives a database restart.

    Optuna's own thread ends for good at the first error, and nobody is told.
    """

    def __init__(self, storage: BatchedStorage) -> None:
        self._storage = storage
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)

    def __enter__(self) -> "Heartbeat":
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        # While the database is away a connection attempt may hang; the thread is a daemon.
        self._thread.join(timeout=_CLEAN_UP_SECONDS)

    def _beat(self) -> None:
        interval = float(self._storage.get_heartbeat_interval() or 60)
        pause = interval
        while not self._ended.wait(pause):
            trial, pause = self._storage.running, interval
            if trial is None:
                continue
            try:
                self._storage.record_heartbeat(trial)
            except Exception as error:
                logger.debug("heartbeat: %s", error)
                pause = min(interval, 1.0)
        self._storage.remove_session()


class Loop:
    """Runs trials of a study that other workers may share.

    Args:
        study: With its sampler and trial pruner.
        storage: Its database.
        objective: Measures a trial.
        total: Finished trials the study ends with.
        clock: When trials have to end; one that runs then is queued again.
        after: Called with every trial that ended here.
        stopped: Tells that no further trial is to be started.
    """

    def __init__(
        self,
        study: Study,
        storage: BatchedStorage,
        objective: Objective,
        *,
        total: int,
        clock: Clock | None = None,
        after: Callable[[FrozenTrial], None] = lambda trial: None,
        stopped: Callable[[], bool] = lambda: False,
    ) -> None:
        self._study, self._storage, self._objective = study, storage, objective
        self._total, self._clock = total, clock or Clock()
        self._after, self._stopped = after, stopped

    def run(self) -> None:
        """Run until enough trials have finished, those of other workers included.

        Raises:
            StudyError: Trials fail one after the other.
            OptunaError: The database stays away.
            KeyboardInterrupt: Interrupted; the running trial is queued again.
        """
        self._storage.room = self._total
        pause = _FIRST_PAUSE
        with quiet(), Heartbeat(self._storage):
            try:
                while finished(self._study) < self._total and not self._stopped():
                    check()
                    if self._clock.trials_left <= 0:
                        break
                    self._storage.sweep(self._study._study_id)
                    if self._step():
                        pause = _FIRST_PAUSE
                        continue
                    # What others run may be enough; if one of them dies its trial is run here.
                    time.sleep(pause)
                    pause = min(2 * pause, _LONGEST_PAUSE)
            except OutOfTime:
                # What the trial was is measured by whoever goes on with the study.
                self._give_up()
            except BaseException:
                self._give_up()
                raise

    def _step(self) -> bool:
        """Run one trial; False where no more may be started now."""
        try:
            trial = self._study.ask()
        except StudyFull:
            return False
        self._storage.running = trial._trial_id
        try:
            self._run(trial)
        except UpdateFinishedTrialError:
            logger.warning(
                "trial %d was taken over by another worker; it is dropped here", trial.number
            )
        finally:
            self._storage.running = None
        self._after(self._study.get_trials(deepcopy=False)[trial.number])
        self._check_failures()
        return True

    def _run(self, trial: Trial) -> None:
        try:
            value: float | Sequence[float] | None = self._objective(trial)
            state = TrialState.COMPLETE
        except TrialPruned:
            value, state = None, TrialState.PRUNED
        except (UpdateFinishedTrialError, StorageInternalError, OutOfTime):
            raise
        except Exception:
            # The objective has logged and stored it.
            value, state = None, TrialState.FAIL
        try:
            self._study.tell(trial, value, state)
        except ValueError:
            # So says Optuna where the trial had ended before it was told.
            if not self._storage.get_trial(trial._trial_id).state.is_finished():
                raise
            raise UpdateFinishedTrialError(f"trial {trial.number}") from None

    def _check_failures(self) -> None:
        reasons = self._objective.reasons
        if len(reasons) >= _MOST_FAILURES:
            raise StudyError(
                f"{_MOST_FAILURES} trials in a row failed, the last with {reasons[-1]}; "
                "finished trials are kept, mend the cause and run the same command to resume"
            )

    def _give_up(self) -> None:
        """Queue again what this process leaves unfinished, wherever it was interrupted."""
        self._storage.patience = _CLEAN_UP_SECONDS
        self._storage.running = None
        try:
            self._storage.sweep(self._study._study_id)
        except OptunaError as error:
            logger.warning("a running trial is left; it is run again later: %s", error)
