"""What a search for the front of metric and cost found, as numbers and as JSON."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from prunetune.measure.scores import Scores
from prunetune.provenance import Judged, Saving
from prunetune.study.outcome.decision import Decision
from prunetune.study.outcome.summary import Baseline

if TYPE_CHECKING:
    from prunetune.config import PruningConfig


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
        judged: What it is worth.
        file: Where its config was written.
        config: The config.
    """

    trial: int
    cost: float
    calibration: Scores
    held_out: Scores
    held_out_ci: tuple[float, float]
    baselines: tuple[Baseline, ...]
    judged: Judged
    file: str
    config: "PruningConfig" = field(repr=False)

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
            "judged": self.judged.model_dump(mode="json"),
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
        knee: The trial at the front's bend, for whom no budget binds.
        unpruned_accuracy: On the held-out split, without pruning.
        verdict: In words what the point to ship, or the knee, is worth, and the other points.
        stopped: What ended the search before it had all its trials; None where nothing did.
        report: Where the report was written, if one was.
        saving: What the config saves on this device, where that was measured.
        decision: What to ship; None where nothing was promised.
        config: Where the config to ship was written; None where there is none.
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
    knee: int
    unpruned_accuracy: float | None
    verdict: str
    stopped: str | None = None
    report: str | None = None
    saving: Saving | None = None
    decision: Decision | None = None
    config: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return what ``search --json`` prints."""
        shown = self.shown
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
            "knee": self.knee,
            "unpruned": {"accuracy": self.unpruned_accuracy},
            "judged": shown and shown.judged.model_dump(mode="json"),
            "tick": self.tick,
            "verdict": self.verdict,
            "saving": self.saving and self.saving.to_dict(),
            "report": self.report,
            **self._decided(),
        }

    @property
    def shown(self) -> Point | None:
        """The point that the verdict is about: the one to ship, or the knee."""
        wanted = self.knee if self.decision is None else self.decision.trial
        return next((point for point in self.points if point.trial == wanted), None)

    @property
    def tick(self) -> bool:
        """Whether the search may be called a success: what ships, or every point."""
        if self.decision is not None:
            return self.shown is not None and self.shown.judged.tick
        return bool(self.points) and all(point.judged.tick for point in self.points)

    def _decided(self) -> dict[str, Any]:
        if self.decision is None:
            return {}
        return {"decision": self.decision.to_dict(), "config": self.config}
