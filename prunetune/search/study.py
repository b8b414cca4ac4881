"""The study: create or resume it, run its trials, end with the best config."""

import hashlib
import logging
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import optuna
from optuna import Study
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from prunetune.errors import ConfigError, StudyError
from prunetune.search import selection
from prunetune.search.front import COST_NAMES, best_complete, metric_of, on_plateau
from prunetune.search.leases import identity
from prunetune.search.loop import Loop, finished
from prunetune.search.pareto import FrontResult, conclude_front
from prunetune.search.samplers import make_sampler, sampler_seed
from prunetune.search.scores import Measures
from prunetune.search.space import Space
from prunetune.search.spec import StudySpec, difference
from prunetune.search.starts import starts
from prunetune.search.stopping import MeanWilcoxonPruner
from prunetune.search.storage import (
    BatchedStorage,
    check_folder,
    open_storage,
    quiet,
    redact,
    storage_url,
    sweep,
)
from prunetune.search.summary import SearchResult
from prunetune.search.trials import Objective, TrialLog, presets_at

logger = logging.getLogger(__name__)

SPEC_FILE, CONFIG_FILE, LOG_FILE = "spec.toml", "config.json", "log.jsonl"
_CREATION_SECONDS = 30.0


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

    Raises:
        StudyError: The study cannot be used or resumed, its trials keep failing, or none finished.
        ConfigError: The budget cannot be met in this space.
        KeyboardInterrupt: Interrupted; the study can be resumed by the same call.
    """
    begun = time.monotonic()
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
    )
    if spec.pareto:
        return conclude_front(study, spec, evaluator, held_out, out, begun)
    return selection.conclude(study, spec, evaluator, held_out, out / CONFIG_FILE, begun)


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
) -> Study:
    """Create or resume a study and run trials until it has enough; see ``run_search``.

    Args:
        records: Write ``spec.toml`` and ``log.jsonl``; of a command's workers only one does.
        stopped: Tells that no further trial is to be started.
    """
    space = Space.of(spec, evaluator.facts())
    check_folder(out)
    url = storage_url(out, storage)
    opened = open_storage(url)
    try:
        study = _create(
            spec, space, opened, study_name or spec.study_name, resume, _Seat(worker, bool(storage))
        )
        if records:
            spec.save(out / SPEC_FILE)
        log = TrialLog(out / LOG_FILE) if records else _no_log
        log(study)
        objective = Objective(space, evaluator, spec.metric, study)

        def after(trial: FrozenTrial) -> None:
            log(study)
            if on_progress is not None:
                on_progress(_progress(study, trial, spec.trials))

        with others or nullcontext():
            Loop(
                study,
                opened,
                objective,
                total=spec.trials,
                timeout=spec.timeout,
                after=after,
                stopped=lambda: stopped() or on_plateau(study, spec.patience),
            ).run()
        sweep(study)
        log(study)
    except optuna.exceptions.OptunaError as error:
        reason = redact(" ".join(str(error.__cause__ or error).split()))[:200]
        raise StudyError(
            f"the study database {redact(url)} failed: {reason}; finished trials are kept, "
            "run the same command to resume"
        ) from error
    return study


def _no_log(study: Study) -> None:
    """Write nothing: another process writes this study's log."""


@dataclass(frozen=True)
class _Seat:
    """Which of a study's workers this is.

    Attributes:
        worker: Number among those that one command starts.
        shared: Whether commands elsewhere may work on the study.
    """

    worker: int
    shared: bool

    def seed(self, seed: int, created: bool, trials: Sequence[FrozenTrial]) -> int:
        """Return a sampler seed that no other worker has.

        One worker on its own gets the same one every time; among several no order is kept anyway.
        """
        alone = created or not (
            self.shared or any(trial.state is TrialState.RUNNING for trial in trials)
        )
        if alone:
            return sampler_seed(seed, self.worker, len(trials))
        name = hashlib.sha256(f"{identity()}/{self.worker}".encode()).digest()
        return sampler_seed(seed, int.from_bytes(name[:8], "big"), len(trials))


def _create(
    spec: StudySpec, space: Space, storage: BatchedStorage, name: str, resume: bool, seat: _Seat
) -> Study:
    with quiet():
        try:
            directions = [StudyDirection.MINIMIZE] * (2 if spec.pareto else 1)
            study = optuna.create_study(study_name=name, storage=storage, directions=directions)
            created = True
        except optuna.exceptions.DuplicatedStudyError:
            study = optuna.load_study(study_name=name, storage=storage)
            created = not _wait_described(study)
        if created:
            _describe(study, spec, space)
        else:
            _check_resumable(study, spec, space, resume)
        sweep(study)
        trials = study.get_trials(deepcopy=False)
        study.sampler = make_sampler(
            spec.sampler,
            seat.seed(spec.seed, created, trials),
            spec.startup,
            len(study.directions),
        )
        study.pruner = (
            MeanWilcoxonPruner(p_threshold=0.1, n_startup_steps=16)
            if spec.trial_pruner == "wilcoxon"
            else optuna.pruners.NopPruner()
        )
    return study


def _wait_described(study: Study) -> bool:
    """Wait until the worker that made a study has described it; False if it died over that."""
    deadline = time.monotonic() + _CREATION_SECONDS
    while "spec" not in study.user_attrs:
        ours = "model" in study.user_attrs or not study.get_trials(deepcopy=False)
        if not ours or time.monotonic() > deadline:
            return not ours
        time.sleep(0.1)
    return True


def _describe(study: Study, spec: StudySpec, space: Space) -> None:
    for name, value in {
        "model": spec.model,
        "budget": spec.budget,
        "digest": space.facts.calibration_digest,
        "seed": spec.seed,
        "versions": versions(),
    }.items():
        study.set_user_attr(name, value)
    study.set_metric_names([spec.metric, *([COST_NAMES[spec.kind]] if spec.pareto else [])])
    _enqueue(study, spec, space)
    # Last: workers that find it take the study for complete.
    study.set_user_attr("spec", spec.model_dump(mode="json"))


def _check_resumable(study: Study, spec: StudySpec, space: Space, resume: bool) -> None:
    name, attrs = study.study_name, study.user_attrs
    if not resume:
        raise StudyError(
            f"study {name!r} exists already; resume it, or choose another --out or --study"
        )
    if "spec" not in attrs:
        raise StudyError(f"study {name!r} was not made by prunetune; choose another --study")
    try:
        fields = difference(StudySpec.parse(attrs["spec"]), spec)
    except ConfigError as error:
        raise StudyError(f"study {name!r} holds a spec this release cannot read: {error}") from None
    if attrs.get("digest") != space.facts.calibration_digest:
        fields.append("calibration data")
    if fields:
        raise StudyError(
            f"study {name!r} cannot be resumed with another spec: {', '.join(fields)}; give the "
            "stored values, or choose another --out or --study"
        )


def _enqueue(study: Study, spec: StudySpec, space: Space) -> None:
    budgets = [space.least, space.budget, space.most] if space.ranges else [space.budget]
    for preset in (p for budget in budgets for p in presets_at(spec.presets, space, budget)):
        if preset.config is None or not space.holds(preset.config):
            logger.info("preset %s is not enqueued: %s", preset.name, preset.note or "not searched")
            continue
        # What is measured is the preset itself; the point only tells the sampler where it lies.
        attrs = {
            "preset": preset.name,
            "note": preset.note,
            "given": preset.config.model_dump(mode="json"),
        }
        study.enqueue_trial(space.encode(preset.config), user_attrs=attrs, skip_if_exists=True)
    for name, units in starts(space).items():
        study.enqueue_trial(units, user_attrs={"start": name}, skip_if_exists=True)


def _progress(study: Study, trial: FrozenTrial, total: int) -> Progress:
    best = best_complete(study)
    value = None if best is None else metric_of(best)
    return Progress(trial.number, trial.state.name, finished(study), total, value)


def versions() -> dict[str, str]:
    """Return the versions of what decides a study's numbers."""
    found = {}
    for name in ("prunetune", "torch", "transformers", "optuna"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
