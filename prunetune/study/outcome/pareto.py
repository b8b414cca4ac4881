"""What a search for the front of metric and cost ends with."""

import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from optuna import Study
from optuna.trial import FrozenTrial

from prunetune.budget.bounds import short
from prunetune.errors import StudyError
from prunetune.measure.scores import Measures, SampleScore, Scores, accuracy, image_ids, measure
from prunetune.presets import preset_names
from prunetune.space.space import Space
from prunetune.spec import StudySpec
from prunetune.study.clock import Clock
from prunetune.study.outcome.baselines import compare_presets, resize_at
from prunetune.study.outcome.decision import Decision, decide
from prunetune.study.outcome.front_summary import FrontResult, Point
from prunetune.study.outcome.intervals import bootstrap_ci
from prunetune.study.outcome.record import write_front
from prunetune.study.outcome.selection import (
    Winner,
    count_evaluations,
    count_trials,
    why_stopped,
    with_provenance,
)
from prunetune.study.outcome.table import fitting
from prunetune.study.outcome.verdict import too_few
from prunetune.study.trials.best import COST_NAMES, cost_of, front, metric_of, spread
from prunetune.study.trials.trials import config_of, presets_at

if TYPE_CHECKING:
    pass

logger = logging.getLogger(__name__)

FOLDER = "front"


def conclude_front(
    study: Study,
    spec: StudySpec,
    evaluator: Measures,
    held_out: Measures,
    out: Path,
    begun: float,
    ship: Path | None = None,
    clock: Clock | None = None,
) -> FrontResult:
    """Measure points of the front on both splits and write their configs.

    Where something is promised, points are tested in turn, and the one to ship is measured whole.

    Args:
        study: With all its trials.
        spec: Of the study.
        evaluator: On the calibration split.
        held_out: On the held-out split.
        out: The run's folder; configs are written into ``front`` there.
        begun: ``time.monotonic()`` when the run began.
        ship: Where the config that keeps the spec's promise is written.
        clock: Of the run: where its end is near, less is measured.

    Raises:
        StudyError: No trial has finished.
        ConfigError: A config cannot be written.
    """
    best = front(study)
    if not best:
        raise StudyError(
            f"study {study.study_name!r} has no finished trial, so there is nothing to export; "
            "run it longer (--trials, --timeout)"
        )
    space = Space.of(spec, evaluator.facts())
    seen: dict[int, list[SampleScore]] = {}
    clock = clock or Clock()
    decision = _decision(spec, best, held_out, seen, clock, len(evaluator.samples))
    chosen = spread(best, spec.rescored)
    if decision is not None:
        chosen = [trial for trial in best if trial.number == decision.trial]
    else:
        held_out = _fitting(held_out, clock, len(chosen), len(evaluator.samples))
    points = _points(study, spec, space, chosen, evaluator, held_out, out / FOLDER, seen, clock)
    config = None
    if decision is not None and points and ship is not None:
        config = str(points[0].config.save(ship))
    trials = study.get_trials(deepcopy=False)
    result = FrontResult(
        study=study.study_name,
        budget=spec.budget,
        cost=COST_NAMES[spec.kind],
        metric=spec.metric,
        trials=count_trials(trials),
        seconds=time.monotonic() - begun,
        sample_evaluations=count_evaluations(trials) + len(points) * len(evaluator.samples),
        front=tuple((t.number, metric_of(t), cost_of(t)) for t in best),
        points=points,
        unpruned_accuracy=accuracy(held_out.unpruned_correct),
        verdict=_verdict(points, len(set(image_ids(held_out.samples))))
        if decision is None
        else decision.words(COST_NAMES[spec.kind].replace("_", " ")),
        stopped=why_stopped(study, spec),
        decision=decision,
        config=config,
    )
    write_front(study, result.to_dict())
    return result


def _fitting(held_out: Measures, clock: Clock, points: int, calibration: int) -> Measures:
    """Return as much of the split as there is time to compare every point on."""
    first = clock.left / points - calibration * (clock.pace or 0.0)
    return fitting(held_out, clock, 1 + len(preset_names()), first)


def _decision(
    spec: StudySpec,
    best: Sequence[FrozenTrial],
    held_out: Measures,
    seen: dict[int, list[SampleScore]],
    clock: Clock,
    calibration: int,
) -> Decision | None:
    """Return what to ship, where something is promised; results go into ``seen``."""
    if spec.promise is None:
        return None

    # The one that passes is measured on calibration data, too.
    wanted = (1.5 * len(held_out.samples) + 1.3 * calibration) * (clock.pace or 0.0)

    def measured(trial: FrozenTrial) -> list[SampleScore] | None:
        if clock.left < wanted:
            logger.warning("trial %d and cheaper ones are not tested: the time is up", trial.number)
            return None
        try:
            seen[trial.number] = measure(held_out, config_of(trial))
        except StudyError as error:
            logger.warning("trial %d is not tested: %s", trial.number, error)
            return None
        return seen[trial.number]

    return decide(spec.promise, best, held_out, measured)


def _verdict(points: Sequence[Point], pictures: int) -> str:
    """Return one sentence: at how many points does the tuned config beat every baseline?"""
    wins = sum(point.wins for point in points)
    same = sum(any(row.is_tuned for row in point.baselines) for point in points)
    unsure = sum(point.wins and point.in_doubt for point in points)
    said = [
        f"At {wins} of {len(points)} points of the front the tuned config beats every "
        "baseline of the same cost on held-out data"
    ]
    if same:
        said.append(f"at {same} it is a preset itself")
    if unsure:
        said.append(f"at {unsure} of these the difference of a gap is within noise")
    if few := too_few(pictures):
        said.append(few)
    return f"{'; '.join(said)}."


def _points(
    study: Study,
    spec: StudySpec,
    space: Space,
    trials: Sequence[FrozenTrial],
    evaluator: Measures,
    held_out: Measures,
    folder: Path,
    seen: Mapping[int, list[SampleScore]],
    clock: Clock,
) -> tuple[Point, ...]:
    """Measure what can be; a config that gives no number on other data is left out, and said."""
    points: list[Point] = []
    for place, trial in enumerate(trials):
        if points and clock.up:
            logger.warning("trial %d is left out: the time is up", trial.number)
            continue
        try:
            known, part = seen.get(trial.number), clock.part(1 / (len(trials) - place))
            points.append(
                _point(study, spec, space, trial, evaluator, held_out, folder, known, part)
            )
        except StudyError as error:
            logger.warning("trial %d is left out: %s", trial.number, error)
            if trial is trials[-1] and not points:
                raise
    return tuple(points)


def _point(
    study: Study,
    spec: StudySpec,
    space: Space,
    trial: FrozenTrial,
    evaluator: Measures,
    held_out: Measures,
    folder: Path,
    known: list[SampleScore] | None,
    clock: Clock,
) -> Point:
    config = config_of(trial)
    results = measure(evaluator, config, answers=False)
    winner = Winner(trial.number, config, results, len(evaluator.samples))
    measured: dict[str, list[SampleScore]] = {
        "tuned": known if known is not None else measure(held_out, config)
    }
    config = with_provenance(study, spec, space, winner, evaluator, measured["tuned"])
    file = config.save(front_file(folder, trial.number))
    spent = space.spent(config)
    controls = [resize_at(space, evaluator, spent), *presets_at(preset_names(), space, spent)]
    baselines = compare_presets(controls, measured, held_out, space.facts, spec.seed, config, clock)
    gaps = [result.gap for result in measured["tuned"]]
    return Point(
        trial=trial.number,
        cost=cost_of(trial),
        calibration=Scores.of(winner.results),
        held_out=Scores.of(measured["tuned"]),
        held_out_ci=bootstrap_ci(gaps, image_ids(held_out.samples), spec.seed),
        baselines=baselines,
        file=str(file),
        config=config,
    )


def front_file(folder: Path, trial: int) -> Path:
    """Return where the config of a point of the front is written."""
    return folder / f"trial-{trial}.json"


def choose_point(study: Study, spec: StudySpec, most: float) -> FrozenTrial:
    """Return the trial with the lowest metric among those of the front that cost ``most`` or less.

    Raises:
        StudyError: There is none; the message names the front's range.
    """
    best = front(study)
    # The last digits of a cost are float noise; nobody asks for them.
    fitting = [trial for trial in best if cost_of(trial) <= most + 1e-6]
    if fitting:
        return fitting[-1]
    flag = spec.kind.replace("_", "-")
    if not best:
        raise StudyError(f"study {study.study_name!r} has no finished trial; run the search longer")
    raise StudyError(
        f"--{flag}: received {most:g}, allowed {short(cost_of(best[0]))} or more: the front of "
        f"{study.study_name!r} goes from {cost_of(best[0]):.4g} to {cost_of(best[-1]):.4g}"
    )
