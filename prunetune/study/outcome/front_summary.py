"""What a search for the front of metric and cost found, as numbers and as JSON."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from prunetune.measure.scores import Scores
from prunetune.study.outcome.decision import Decision
from prunetune.study.outcome.summary import Baseline
from prunetune.study.outcome.verdict import unbeaten, within_noise

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
    unpruned_accuracy: float | None
    verdict: str
    stopped: str | None = None
    report: str | None = None
    decision: Decision | None = None
    config: str | None = None

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
            **self._decided(),
        }

    def _decided(self) -> dict[str, Any]:
        if self.decision is None:
            return {}
        return {"decision": self.decision.to_dict(), "config": self.config}
