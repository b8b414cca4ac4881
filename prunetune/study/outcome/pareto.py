"""What a search for the front of metric and cost ends with."""

import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from optuna import Study
from optuna.trial import FrozenTrial

from prunetune.budget.bounds import short
from prunetune.config import PruningConfig
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
from prunetune.study.outcome.judging import judge_config, worth
from prunetune.study.outcome.promise import knee
from prunetune.study.outcome.record import write_front
from prunetune.study.outcome.selection import Winner, with_provenance
from prunetune.study.outcome.table import fitting
from prunetune.study.outcome.verdict import verdict
from prunetune.study.trials.best import COST_NAMES, cost_of, front, metric_of, spread
from prunetune.study.trials.counts import count_evaluations, count_trials, why_stopped
from prunetune.study.trials.trials import config_of, presets_at

logger = logging.getLogger(__name__)

FOLDER = "front"
Timer = Callable[[Sequence[PruningConfig]], Sequence[float]]


def conclude_front(
    study: Study,
    spec: StudySpec,
    evaluator: Measures,
    held_out: Measures,
    out: Path,
    begun: float,
    ship: Path | None = None,
    clock: Clock | None = None,
    timer: Timer | None = None,
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
        timer: Measures milliseconds to the first token of configs.

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
    decision = _decision(spec, best, held_out, seen, clock, timer, len(evaluator.samples))
    bend = best[knee([(cost_of(t), metric_of(t)) for t in best])]
    chosen = with_knee(spread(best, spec.rescored), bend)
    if decision is not None:
        chosen = [trial for trial in best if trial.number == decision.trial]
    else:
        held_out = _fitting(held_out, clock, len(chosen), len(evaluator.samples))
    kept = None if decision is None else decision.trial is not None
    measuring = _Measuring(study, spec, space, evaluator, held_out, out / FOLDER, seen, kept, clock)
    points = measuring.points(chosen)
    config = None
    if decision is not None and points and ship is not None:
        config = str(points[0].config.save(ship))
    trials, cost = study.get_trials(deepcopy=False), COST_NAMES[spec.kind].replace("_", " ")
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
        knee=bend.number,
        verdict=_verdict(points, bend.number, cost)
        if decision is None
        else decision.words(_cost_words(decision, cost), points[0].judged if points else None),
        stopped=why_stopped(study, spec),
        decision=decision,
        config=config,
    )
    shown = result.shown
    write_front(
        study,
        result.to_dict(),
        held_out,
        (shown, measuring.measured[shown.trial]) if shown else None,
        spec.seed,
    )
    return result


def _fitting(held_out: Measures, clock: Clock, points: int, calibration: int) -> Measures:
    """Return as much of the split as there is time to compare every point on."""
    first = clock.left / points - calibration * (clock.pace or 0.0)
    return fitting(held_out, clock, 1 + len(preset_names()), first)


def _cost_words(decision: Decision, cost: str) -> str:
    return "ms to the first token" if decision.promise.cheapest == "ms" else cost


def _decision(
    spec: StudySpec,
    best: Sequence[FrozenTrial],
    held_out: Measures,
    seen: dict[int, list[SampleScore]],
    clock: Clock,
    timer: Timer | None,
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

    def timed(trials: Sequence[FrozenTrial]) -> Sequence[float]:
        return timer([config_of(trial) for trial in trials]) if timer else ()

    return decide(spec.promise, best, held_out, measured, timed if timer else None)


def _verdict(points: Sequence[Point], bend: int, cost: str) -> str:
    """Return what the knee is worth, and what the other points are against the baselines."""
    found = []
    for point in points:
        if point.trial == bend:
            where = f"The front's knee is trial {bend} ({cost} {point.cost:.4g}):"
            found.append(f"{where} {verdict(point.judged)}")
    counts = Counter(point.judged.outcome for point in points)
    ways = {"better": "better than", "tie": "level with", "worse": "worse than"}
    said = [f"{counts[way]} {ways[way]} it" for way in ways if counts[way]]  # type: ignore[index]
    if said:
        compared = f"{len(points)} points of the front were compared with the best baseline"
        found.append(f"{compared} of their cost: {', '.join(said)}.")
    return " ".join(found)


def with_knee(chosen: Sequence[FrozenTrial], bend: FrozenTrial) -> list[FrozenTrial]:
    """Return points of a front with its knee among them, in place of the one that is nearest."""
    found = list(chosen)
    if len(found) < 3 or any(trial.number == bend.number for trial in found):
        return found
    inner = range(1, len(found) - 1)
    found[min(inner, key=lambda k: abs(cost_of(found[k]) - cost_of(bend)))] = bend
    return found


@dataclass(frozen=True)
class _Measuring:
    """Measures points of a front whole: on both splits, beside every baseline of their cost."""

    study: Study
    spec: StudySpec
    space: Space
    evaluator: Measures
    held_out: Measures
    folder: Path
    seen: Mapping[int, list[SampleScore]]
    kept: bool | None
    clock: Clock
    measured: dict[int, dict[str, list[SampleScore]]] = field(default_factory=dict)

    def points(self, trials: Sequence[FrozenTrial]) -> tuple[Point, ...]:
        """Measure what can be; a config that gives no number on other data is left out, and said.

        Raises:
            StudyError: None could be measured.
        """
        points: list[Point] = []
        for place, trial in enumerate(trials):
            if points and self.clock.up:
                logger.warning("trial %d is left out: the time is up", trial.number)
                continue
            try:
                points.append(self._point(trial, self.clock.part(1 / (len(trials) - place))))
            except StudyError as error:
                logger.warning("trial %d is left out: %s", trial.number, error)
                if trial is trials[-1] and not points:
                    raise
        return tuple(points)

    def _point(self, trial: FrozenTrial, clock: Clock) -> Point:
        config, spec, space, held_out = config_of(trial), self.spec, self.space, self.held_out
        results = measure(self.evaluator, config, answers=False)
        winner = Winner(trial.number, config, results, len(self.evaluator.samples))
        known = self.seen.get(trial.number)
        tuned = known if known is not None else measure(held_out, config)
        config = with_provenance(self.study, spec, space, winner, self.evaluator, tuned)
        spent = space.spent(config)
        controls = [resize_at(space, self.evaluator, spent)]
        controls += presets_at(preset_names(), space, spent)
        measured = self.measured[trial.number] = {"tuned": tuned}
        baselines = compare_presets(
            controls, measured, held_out, space.facts, spec.seed, config, clock
        )
        images = image_ids(held_out.samples)
        judged = judge_config(config, tuned, held_out, baselines, self.kept)
        config = worth(config, judged)
        file = config.save(front_file(self.folder, trial.number))
        return Point(
            trial=trial.number,
            cost=cost_of(trial),
            calibration=Scores.of(winner.results),
            held_out=Scores.of(tuned),
            held_out_ci=bootstrap_ci([r.gap for r in tuned], images, spec.seed),
            baselines=baselines,
            judged=judged,
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
