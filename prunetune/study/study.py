"""The study: create or resume it, run its trials, end with the best config."""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path

import optuna
from optuna import Study, get_all_study_names
from optuna.trial import FrozenTrial

from prunetune.errors import StudyError
from prunetune.files import alone_in
from prunetune.measure.scores import Measures
from prunetune.secrets import redact
from prunetune.space.space import Space
from prunetune.spec import StudySpec
from prunetune.study.clock import Clock
from prunetune.study.database.connect import check_folder, open_storage
from prunetune.study.database.urls import DATABASE, storage_url
from prunetune.study.database.watch import Watch
from prunetune.study.opening import Seat, open_study
from prunetune.study.outcome import selection
from prunetune.study.outcome.decision import check_promise
from prunetune.study.outcome.front_summary import FrontResult
from prunetune.study.outcome.pareto import Timer, conclude_front
from prunetune.study.outcome.summary import SearchResult
from prunetune.study.places import known_as
from prunetune.study.resumed import SPEC_FILE, refuse_other
from prunetune.study.trials.best import best_complete, metric_of, on_plateau
from prunetune.study.trials.loop import Loop, finished
from prunetune.study.trials.trial_log import TrialLog
from prunetune.study.trials.trials import Objective

logger = logging.getLogger(__name__)

CONFIG_FILE, LOG_FILE = "config.json", "log.jsonl"
_TOGETHER_SECONDS = 60.0


@dataclass(frozen=True)
class Progress:
    """What a progress bar shows after a trial.

    Attributes:
        trial: Number of the trial that just ended.
        state: ``"COMPLETE"``, ``"PRUNED"`` or ``"FAIL"``.
        finished: Complete and pruned trials of the study.
        total: Trials the study ends with.
        best: Lowest mean of the metric so far; None before a trial is complete.
    """

    trial: int
    state: str
    finished: int
    total: int
    best: float | None


def run_search(
    spec: StudySpec,
    evaluator: Measures,
    held_out: Measures,
    *,
    out: Path,
    storage: str | None = None,
    study_name: str | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    resume: bool = True,
    worker: int = 0,
    others: AbstractContextManager[object] | None = None,
    clock: Clock | None = None,
    timer: Timer | None = None,
) -> SearchResult | FrontResult:
    """Run or resume a study, choose the best config, and write it with the study's files.

    Args:
        spec: What is searched.
        evaluator: On the calibration split.
        held_out: On the held-out split.
        out: Folder for ``study.db``, ``spec.toml``, ``config.json`` and ``log.jsonl``.
        storage: Database URL; None for SQLite in ``out``.
        study_name: None for ``spec.study_name``.
        on_progress: Called after every trial.
        resume: Continue a study of that name; without, its existence is an error.
        worker: Number of this worker among those that a command starts; each draws other points.
        others: Entered once the study exists, left when it has enough trials: other workers.
        clock: Of the run, which may have begun before; None: ``spec.timeout`` from now on.
        timer: Measures milliseconds to the first token of configs, for a promise by them.

    Raises:
        StudyError: The study cannot be used or resumed, its trials keep failing, none finished, or
            the held-out data cannot tell whether a promise is kept.
        ConfigError: The budget cannot be met in this space, or a new study has ranges of parts that
            it does not search.
        KeyboardInterrupt: Interrupted; the study can be resumed by the same call.
    """
    begun = time.monotonic()
    clock = clock or Clock(spec.timeout)
    if spec.promise is not None:
        check_promise(spec.promise, held_out)
    study = run_trials(
        spec,
        evaluator,
        out=out,
        storage=storage,
        study_name=study_name,
        on_progress=on_progress,
        resume=resume,
        worker=worker,
        others=others,
        clock=clock,
    )
    with Watch(out / DATABASE if storage is None else None) as watch:
        file = out / CONFIG_FILE
        result: SearchResult | FrontResult
        if spec.pareto:
            result = conclude_front(
                study, spec, evaluator, held_out, out, begun, file, clock, timer
            )
        else:
            result = selection.conclude(study, spec, evaluator, held_out, file, begun, clock)
        watch.check()
    return result


def run_trials(
    spec: StudySpec,
    evaluator: Measures,
    *,
    out: Path,
    storage: str | None = None,
    study_name: str | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    resume: bool = True,
    worker: int = 0,
    others: AbstractContextManager[object] | None = None,
    records: bool = True,
    stopped: Callable[[], bool] = lambda: False,
    clock: Clock | None = None,
) -> Study:
    """Create or resume a study and run trials until it has enough; see ``run_search``.

    Args:
        records: Write ``spec.toml`` and ``log.jsonl``; of a command's workers only one does.
        stopped: Tells that no further trial is to be started.
        clock: When trials end; None: ``spec.timeout`` from now on.
    """
    clock = clock or Clock(spec.timeout)
    space = Space.of(spec, evaluator.facts())
    check_folder(out)
    url = storage_url(out, storage)
    opened = open_storage(url)
    seat = Seat(worker, bool(storage))
    with _failures_told(url), Watch(out / DATABASE if storage is None else None) as watch:
        # Commands that start together in one folder: the first one's study is the folder's.
        with alone_in(out, _TOGETHER_SECONDS):
            names = get_all_study_names(opened)
            if storage is None and study_name is None:
                refuse_other(out, spec, names)
            name = study_name or known_as(spec, names)
            study = open_study(spec, space, opened, name, resume, seat)
            if records:
                spec.save(out / SPEC_FILE)
        log = TrialLog(out / LOG_FILE) if records else _no_log
        log(study)
        objective = Objective(space, evaluator, spec.metric, study, clock)

        def after(trial: FrozenTrial) -> None:
            watch.check()
            log(study)
            if on_progress is not None:
                on_progress(_progress(study, trial, spec.trials))

        with _seated(seat, study), others or nullcontext():
            Loop(
                study,
                opened,
                objective,
                total=spec.trials,
                clock=clock,
                after=after,
                stopped=lambda: stopped() or on_plateau(study, spec.patience),
            ).run()
        watch.check()
        opened.sweep(study._study_id)
        log(study)
    return study


@contextmanager
def _failures_told(url: str) -> Iterator[None]:
    """Say which database failed, and that nothing is lost."""
    try:
        yield
    except optuna.exceptions.OptunaError as error:
        reason = redact(" ".join(str(error.__cause__ or error).split()))[:200]
        raise StudyError(
            f"the study database {redact(url)} failed: {reason}; finished trials are kept, "
            "run the same command to resume"
        ) from error


@contextmanager
def _seated(seat: Seat, study: Study) -> Iterator[None]:
    """Give the worker's seat up in the end, where the database is there for it."""
    try:
        yield
    finally:
        with suppress(optuna.exceptions.OptunaError):
            seat.leave(study)


def _no_log(study: Study) -> None:
    """Write nothing: another process writes this study's log."""


def _progress(study: Study, trial: FrozenTrial, total: int) -> Progress:
    best = best_complete(study)
    value = None if best is None else metric_of(best)
    return Progress(trial.number, trial.state.name, finished(study), total, value)
