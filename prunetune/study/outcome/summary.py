"""What a search found, as numbers, as JSON and as a plain-text table."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from prunetune.measure.scores import Scores
from prunetune.provenance import Judged, Saving

if TYPE_CHECKING:
    from prunetune.config import PruningConfig

RESIZE = "resize"
"""The baseline that sends smaller pictures and prunes nothing."""


@dataclass(frozen=True)
class Baseline:
    """A preset on the held-out split, at the tuned config's budget.

    Attributes:
        name: Of the preset.
        scores: None where the preset cannot be run at this budget; ``note`` says why.
        mean_retention: Over all decoder layers.
        flops_ratio: Prefill FLOPs of the language model, pruned over unpruned.
        note: What had to change to meet the budget.
        gap_difference: 95% interval of the tuned config's gap minus this one's, sample by sample.
        accuracy_difference: The tuned config's accuracy minus this one's, and the interval's ends;
            None where there are no answers.
        p_value: Of a one-sided Wilcoxon test over pictures that the tuned config's gap is lower.
        is_tuned: Whether the search's best config is this preset itself.
        stopped: After how many samples it was left, and why; empty where it ran on all.
        beaten: Whether it was left since the tuned config is better on the whole split whatever the
            rest is; there is no interval then.
        late: Whether it has no scores because the time was up.
    """

    name: str
    scores: Scores | None
    mean_retention: float | None = None
    flops_ratio: float | None = None
    note: str = ""
    gap_difference: tuple[float, float] | None = None
    accuracy_difference: tuple[float, float, float] | None = None
    p_value: float | None = None
    is_tuned: bool = False
    stopped: str = ""
    beaten: bool = False
    late: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Return a row of what ``search --json`` prints."""
        return {
            "name": self.name,
            "held_out_gap": self.scores and self.scores.gap,
            "top1_agreement": self.scores and self.scores.top1_agreement,
            "accuracy": self.scores and self.scores.accuracy,
            "mean_retention": self.mean_retention,
            "flops_ratio": self.flops_ratio,
            "notes": self.note,
            "is_tuned": self.is_tuned,
            "samples": self.scores and self.scores.samples,
            "stopped": self.stopped or None,
        }


@dataclass(frozen=True)
class SearchResult:
    """What a search ends with.

    Attributes:
        study: Name of the study.
        budget: What every config meets: kind to value.
        trials: Number of trials by outcome: complete, pruned, failed.
        seconds: Wall time of this run.
        sample_evaluations: Samples that configs were run on, over all of the study.
        trial: Number of the best trial.
        calibration: Its scores on the calibration split; accuracy is not looked at there.
        held_out: Its scores on the held-out split.
        held_out_ci: Bootstrap 95% interval of the held-out gap.
        mean_retention: Over all decoder layers.
        flops_ratio: Prefill FLOPs of the language model, pruned over unpruned.
        kv_ratio: Visual KV-cache share.
        unpruned_accuracy: On the held-out split, without pruning.
        baselines: All presets at the same budget.
        judged: What it is worth: against unpruned, then against the baselines.
        verdict: The same in words.
        config: Where the best config was written.
        best: The best config.
        report: Where the report was written, if one was.
        saving: What the config saves on this device, where that was measured.
        stopped: What ended the search before it had all its trials; None where nothing did.
    """

    study: str
    budget: dict[str, Any]
    trials: dict[str, int]
    seconds: float
    sample_evaluations: int
    trial: int
    calibration: Scores
    held_out: Scores
    held_out_ci: tuple[float, float]
    mean_retention: float
    flops_ratio: float
    kv_ratio: float
    unpruned_accuracy: float | None
    baselines: tuple[Baseline, ...]
    judged: Judged
    verdict: str
    config: str
    best: "PruningConfig" = field(repr=False)
    report: str | None = None
    saving: Saving | None = None
    stopped: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return what ``search --json`` prints."""
        return {
            "study": self.study,
            "budget": self.budget,
            "trials": self.trials,
            "stopped": self.stopped,
            "seconds": round(self.seconds, 2),
            "sample_evaluations": self.sample_evaluations,
            "best": {
                "trial": self.trial,
                "gap": self.calibration.gap,
                "held_out_gap": self.held_out.gap,
                "held_out_ci": list(self.held_out_ci),
                "top1_agreement": self.held_out.top1_agreement,
                "accuracy": self.held_out.accuracy,
                "mean_retention": self.mean_retention,
                "flops_ratio": self.flops_ratio,
                "flops": self.best.provenance.flops,
                "kv_ratio": self.kv_ratio,
            },
            "unpruned": {"accuracy": self.unpruned_accuracy},
            "baselines": [row.to_dict() for row in self.baselines],
            "judged": self.judged.model_dump(mode="json"),
            "tick": self.judged.tick,
            "verdict": self.verdict,
            "config": self.config,
            "saving": self.saving and self.saving.to_dict(),
            "report": self.report,
        }


def percent(value: float | None) -> str:
    """Return a share as a percentage; a dash where there is none."""
    return "-" if value is None else f"{100 * value:.1f}%"


def table_rows(result: SearchResult) -> list[tuple[str, ...]]:
    """Return the held-out table, heading first: tuned, baselines by gap, unpruned."""
    low, high = result.held_out_ci
    rows: list[tuple[str, ...]] = [
        ("", "gap", "95% interval", "top-1", "accuracy", "retention", "FLOPs", "")
    ]
    tuned = result.held_out
    costs = result.mean_retention, result.flops_ratio
    rows.append(_row("tuned", tuned, f"{low:.4f}-{high:.4f}", costs, ""))
    known = sorted(
        (b for b in result.baselines if b.scores is not None),
        key=lambda b: b.scores.gap if b.scores else 0.0,
    )
    known += [b for b in result.baselines if b.scores is None]
    rows += [_row(b.name, b.scores, "", (b.mean_retention, b.flops_ratio), b.note) for b in known]
    rows.append(("unpruned", "0", "", "100.0%", percent(result.unpruned_accuracy), "1", "1", ""))
    return rows


def _row(
    name: str,
    scores: Scores | None,
    interval: str,
    costs: tuple[float | None, float | None],
    note: str,
) -> tuple[str, ...]:
    if scores is None:
        return (name, "-", "", "-", "-", "-", "-", note)
    return (
        name,
        f"{scores.gap:.4f}",
        interval,
        percent(scores.top1_agreement),
        percent(scores.accuracy),
        *("-" if cost is None else f"{cost:.4g}" for cost in costs),
        note,
    )
