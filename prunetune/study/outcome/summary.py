"""What a search found, as numbers, as JSON and as a plain-text table."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from prunetune.measure.scores import Scores

if TYPE_CHECKING:
    from prunetune.config import PruningConfig

_DRAWS = 2000
_FEWEST_PICTURES = 5
TOO_FEW = "too few to tell"
"""Part of a verdict on held-out pictures that are."""


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
        p_value: Of a one-sided Wilcoxon test over pictures that the tuned config's gap is lower.
        is_tuned: Whether the search's best config is this preset itself.
    """

    name: str
    scores: Scores | None
    mean_retention: float | None = None
    flops_ratio: float | None = None
    note: str = ""
    gap_difference: tuple[float, float] | None = None
    p_value: float | None = None
    is_tuned: bool = False

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
        verdict: One sentence that says whether the search paid.
        config: Where the best config was written.
        best: The best config.
        report: Where the report was written, if one was.
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
    verdict: str
    config: str
    best: "PruningConfig" = field(repr=False)
    report: str | None = None
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
                "kv_ratio": self.kv_ratio,
            },
            "unpruned": {"accuracy": self.unpruned_accuracy},
            "baselines": [row.to_dict() for row in self.baselines],
            "verdict": self.verdict,
            "config": self.config,
            "report": self.report,
        }


def bootstrap_ci(
    values: Sequence[float], groups: Sequence[str] | None = None, seed: int = 0
) -> tuple[float, float]:
    """Return the bootstrap 95% interval of the mean.

    Args:
        values: One a sample.
        groups: Samples of one group are drawn together: questions on one picture are not
            independent. None draws samples one by one.
        seed: Of the draws.
    """
    names = list(groups) if groups is not None else [str(i) for i in range(len(values))]
    sums, counts = _by_group(values, names)
    drawn = np.random.default_rng(seed).integers(len(sums), size=(_DRAWS, len(sums)))
    means = sums[drawn].sum(1) / counts[drawn].sum(1)
    low, high = np.quantile(means, (0.025, 0.975))
    return float(low), float(high)


def group_means(values: Sequence[float], groups: Sequence[str]) -> "np.ndarray[Any, Any]":
    """Return the mean of each group of samples, in order of their first ones."""
    sums, counts = _by_group(values, groups)
    means: np.ndarray[Any, Any] = sums / counts
    return means


def _by_group(
    values: Sequence[float], groups: Sequence[str]
) -> "tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]":
    """Return the sum and the number of samples of each group."""
    index = {name: i for i, name in enumerate(dict.fromkeys(groups))}
    member = np.array([index[name] for name in groups])
    return np.bincount(member, weights=np.asarray(values, dtype=float)), np.bincount(member)


def too_few(pictures: int) -> str | None:
    """Return words on held-out pictures that tell nothing; None for enough of them.

    Pictures are what is drawn independently: an interval over one has no width at all.
    """
    if pictures >= _FEWEST_PICTURES:
        return None
    return f"{pictures} held-out picture{'s are' if pictures > 1 else ' is'} {TOO_FEW}"


def verdict(tuned: Scores, baselines: Sequence[Baseline], pictures: int = _FEWEST_PICTURES) -> str:
    """Return one sentence: does the tuned config beat every baseline, in gap and in accuracy?

    Where it is one of them itself, it says so, and compares it with the others.

    Args:
        tuned: Scores of the tuned config on held-out samples.
        baselines: All presets on the same samples.
        pictures: How many pictures these samples show; few of them tell nothing.
    """
    itself = [row.name for row in baselines if row.is_tuned]
    baselines = [row for row in baselines if not row.is_tuned]
    found = (
        f"The best config found is the preset {' and '.join(itself)} itself: nothing better than "
        "it was found"
    )
    rows = [(row, row.scores) for row in baselines if row.scores is not None]
    if not rows:
        nothing = "No baseline could be run at this budget, so nothing is known about the gain."
        return f"{found}." if itself else nothing
    numbers = _compared(tuned, rows)
    if few := too_few(pictures):
        if itself:
            return f"{found}; {few} how it compares with the others: {numbers}."
        return f"{few} whether the tuned config beats every baseline: {numbers}."
    lower, better = unbeaten(tuned, baselines)
    reasons = [f"{', '.join(lower)}: no higher gap"] if lower else []
    reasons += [f"{', '.join(better)}: higher accuracy"] if better else []
    because = f" ({'; '.join(reasons)})" if reasons else ""
    if itself:
        others = f"does not beat every other{because}" if reasons else "beats every other"
        return f"{found}; on held-out data it {others}: {numbers}."
    if reasons:
        return (
            f"The tuned config does not beat every baseline on held-out data{because}: {numbers}."
        )
    unsure = within_noise(baselines)
    doubt = f"; the gap's difference to {', '.join(unsure)} is within noise" if unsure else ""
    return f"The tuned config beats every baseline on held-out data: {numbers}{doubt}."


def within_noise(baselines: Sequence[Baseline]) -> list[str]:
    """Return the baselines, but the tuned config itself, whose interval of the gap reaches 0."""
    others = (row for row in baselines if not row.is_tuned)
    return [row.name for row in others if row.gap_difference and row.gap_difference[1] >= 0]


def _compared(tuned: Scores, rows: Sequence[tuple[Baseline, Scores]]) -> str:
    """Return the tuned config's figures beside the best ones of the baselines."""
    next_row, best = min(rows, key=lambda item: item[1].gap)
    accuracies = ""
    if tuned.accuracy is not None:
        top, other = max(rows, key=lambda item: item[1].accuracy or 0.0)
        accuracies = (
            f"; accuracy {_percent(tuned.accuracy)} against {_percent(other.accuracy)} ({top.name})"
        )
    return f"gap {tuned.gap:.4f} against {best.gap:.4f} ({next_row.name}){accuracies}"


def unbeaten(tuned: Scores, baselines: Sequence[Baseline]) -> tuple[list[str], list[str]]:
    """Return the baselines with no higher gap than the tuned config, and with more accuracy."""
    rows = [(row.name, row.scores) for row in baselines if row.scores is not None]
    lower = [name for name, scores in rows if not tuned.gap < scores.gap]
    better = [name for name, scores in rows if _more(scores.accuracy, tuned.accuracy)]
    return lower, better


def _more(one: float | None, other: float | None) -> bool:
    return one is not None and other is not None and one > other


def _percent(value: float | None) -> str:
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
    rows.append(("unpruned", "0", "", "100.0%", _percent(result.unpruned_accuracy), "1", "1", ""))
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
        _percent(scores.top1_agreement),
        _percent(scores.accuracy),
        *("-" if cost is None else f"{cost:.4g}" for cost in costs),
        note,
    )


def render_table(result: SearchResult) -> str:
    """Return the held-out table and the verdict as plain text."""
    rows = table_rows(result)
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        "  ".join(
            cell.ljust(width) if i in (0, len(widths) - 1) else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths))
        ).rstrip()
        for row in rows
    ]
    return "\n".join([*lines, "", result.verdict])
