"""What a search for the front of metric and cost ends with."""

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optuna import Study
from optuna.trial import FrozenTrial

from prunetune.budget.bounds import short
from prunetune.errors import StudyError
from prunetune.measure.scores import Measures, SampleScore, Scores, accuracy, image_ids, measure
from prunetune.presets import preset_names
from prunetune.space.space import Space
from prunetune.spec import StudySpec
from prunetune.study.outcome.baselines import compare_preset, resize_at
from prunetune.study.outcome.intervals import bootstrap_ci
from prunetune.study.outcome.record import write_front
from prunetune.study.outcome.selection import (
    Winner,
    count_evaluations,
    count_trials,
    why_stopped,
    with_provenance,
)
from prunetune.study.outcome.summary import Baseline
from prunetune.study.outcome.verdict import too_few, unbeaten, within_noise
from prunetune.study.trials.best import COST_NAMES, cost_of, front, metric_of, spread
from prunetune.study.trials.trials import config_of, presets_at

if TYPE_CHECKING:
    from prunetune.config import PruningConfig

logger = logging.getLogger(__name__)

FOLDER = "front"


@dataclass(frozen=True)
class Point:
    """A point of the front that was measured on held-out data.

    Attributes:
        trial: Number of the trial.
        cost: Mean retention, FLOPs share or MiB, as the study bounds it.
        calibration: Scores on the calibration split; accuracy is not looked at there.
        held_out: Scores on the held-out split.
        held_out_ci: Bootstrap 95% interval of the held-out gap.
        baselines: All presets at the point's own cost.
        file: Where its config was written.
        config: The config.
    """

    trial: int
    cost: float
    calibration: Scores
    held_out: Scores
    held_out_ci: tuple[float, float]
    baselines: tuple[Baseline, ...]
    file: str
    config: "PruningConfig" = field(repr=False)

    @property
    def wins(self) -> bool:
        """Whether it beats every baseline at its cost, in gap and in accuracy."""
        return unbeaten(self.held_out, self.baselines) == ([], [])

    @property
    def in_doubt(self) -> bool:
        """Whether a baseline's gap is higher by no more than chance explains."""
        return bool(within_noise(self.baselines))

    def to_dict(self) -> dict[str, Any]:
        """Return a row of what ``search --json`` prints."""
        made = self.config.provenance
        return {
            "trial": self.trial,
            "cost": self.cost,
            "gap": self.calibration.gap,
            "held_out_gap": self.held_out.gap,
            "held_out_ci": list(self.held_out_ci),
            "top1_agreement": self.held_out.top1_agreement,
            "accuracy": self.held_out.accuracy,
            "mean_retention": made.mean_retention,
            "flops_ratio": made.flops_ratio,
            "flops": made.flops,
            "kv_ratio": made.kv_ratio,
            "baselines": [row.to_dict() for row in self.baselines],
            "config": self.file,
        }


@dataclass(frozen=True)
class FrontResult:
    """What a search for a front ends with.

    Attributes:
        study: Name of the study.
        budget: The range of budgets: kind to its bounds.
        cost: Name of the second objective.
        metric: Name of the first one.
        trials: Number of trials by outcome: complete, pruned, failed.
        seconds: Wall time of this run.
        sample_evaluations: Samples that configs were run on, over all of the study.
        front: Trial, metric and cost of every trial that none beats in both, by rising cost.
        points: Some of them, measured on held-out data.
        unpruned_accuracy: On the held-out split, without pruning.
        verdict: One sentence that says at how many points the search paid.
        stopped: What ended the search before it had all its trials; None where nothing did.
        report: Where the report was written, if one was.
    """

    study: str
    budget: Mapping[str, Any]
    cost: str
    metric: str
    trials: dict[str, int]
    seconds: float
    sample_evaluations: int
    front: tuple[tuple[int, float, float], ...]
    points: tuple[Point, ...]
    unpruned_accuracy: float | None
    verdict: str
    stopped: str | None = None
    report: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return what ``search --json`` prints."""
        return {
            "study": self.study,
            "budget": dict(self.budget),
            "trials": self.trials,
            "stopped": self.stopped,
            "seconds": round(self.seconds, 2),
            "sample_evaluations": self.sample_evaluations,
            "objectives": [self.metric, self.cost],
            "front": [
                {"trial": trial, self.metric: metric, self.cost: cost}
                for trial, metric, cost in self.front
            ],
            "points": [point.to_dict() for point in self.points],
            "unpruned": {"accuracy": self.unpruned_accuracy},
            "verdict": self.verdict,
            "report": self.report,
        }


def conclude_front(
    study: Study,
    spec: StudySpec,
    evaluator: Measures,
    held_out: Measures,
    out: Path,
    begun: float,
) -> FrontResult:
    """Measure points of the front on both splits and write their configs.

    Args:
        study: With all its trials.
        spec: Of the study.
        evaluator: On the calibration split.
        held_out: On the held-out split.
        out: The run's folder; configs are written into ``front`` there.
        begun: ``time.monotonic()`` when the run began.

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
    chosen = spread(best, spec.rescored)
    points = _points(study, spec, space, chosen, evaluator, held_out, out / FOLDER)
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
        verdict=_verdict(points, len(set(image_ids(held_out.samples)))),
        stopped=why_stopped(study, spec),
    )
    write_front(study, result.to_dict())
    return result


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
) -> tuple[Point, ...]:
    """Measure what can be; a config that gives no number on other data is left out, and said."""
    points: list[Point] = []
    for trial in trials:
        try:
            points.append(_point(study, spec, space, trial, evaluator, held_out, folder))
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
) -> Point:
    config = config_of(trial)
    results = measure(evaluator, config, answers=False)
    winner = Winner(trial.number, config, results, len(evaluator.samples))
    measured: dict[str, list[SampleScore]] = {"tuned": measure(held_out, config)}
    config = with_provenance(study, spec, space, winner, evaluator, measured["tuned"])
    file = config.save(front_file(folder, trial.number))
    spent = space.spent(config)
    controls = [resize_at(space, evaluator, spent), *presets_at(preset_names(), space, spent)]
    baselines = tuple(
        compare_preset(control, measured, held_out, space.facts, spec.seed, config)
        for control in controls
    )
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
