"""What a config is worth on held-out data, as numbers: against unpruned, then the baselines."""

import math
from collections.abc import Sequence
from typing import cast

from prunetune.config import PruningConfig
from prunetune.measure.scores import Measures, SampleScore, accuracy, image_ids
from prunetune.provenance import Judged, Loss, Outcome, Problem, Rival, Unpruned
from prunetune.study.outcome.intervals import bootstrap_ci
from prunetune.study.outcome.promise import lost
from prunetune.study.outcome.summary import Baseline

FEWEST_PICTURES = 5
"""Pictures are what is drawn independently: an interval over one has no width at all."""


def judge(
    tuned: Sequence[SampleScore],
    unpruned: Sequence[bool | None],
    images: Sequence[str],
    baselines: Sequence[Baseline] = (),
    *,
    costs: tuple[float, float],
    promise_kept: bool | None = None,
    seed: int = 0,
) -> Judged:
    """Return what a config is worth.

    Args:
        tuned: Its results on the held-out samples.
        unpruned: Whether the unpruned model answers each of them; None without an answer.
        images: The picture that each shows.
        baselines: On the same samples, of the same cost.
        costs: Share of the visual KV cache, and of the prefill FLOPs.
        promise_kept: Whether it keeps a promise; None where there is none.
        seed: Of the bootstrap's draws.
    """
    against = _unpruned(tuned, unpruned, images, seed)
    others = [row for row in baselines if not row.is_tuned]
    compared = [(_rival(tuned, row), row) for row in others if row.scores is not None]
    known = [rival for rival, _ in compared if rival is not None]
    # What was left early can't be the best; on its own samples it may look so.
    whole = [rival for rival, row in compared if rival is not None and not row.stopped]
    outcomes: dict[Outcome, tuple[str, ...]] = {}
    for rival in known:
        outcomes[rival.outcome] = (*outcomes.get(rival.outcome, ()), rival.name)
    problem = _problem(tuned, unpruned, len(set(images)), bool(known) or promise_kept is not None)
    outcome = _outcome(outcomes) if problem in (None, "answers_nothing") else "unknown"
    if outcome == "unknown" and known:
        # Too little is known of each of them, too.
        known = [rival.model_copy(update={"outcome": "unknown"}) for rival in known]
        whole = [rival.model_copy(update={"outcome": "unknown"}) for rival in whole]
        outcomes = {"unknown": tuple(rival.name for rival in known)}
    itself = tuple(row.name for row in baselines if row.is_tuned)
    success = outcome == "better" and not itself
    if promise_kept is not None:
        success = promise_kept and outcome != "worse"
    return Judged(
        outcome=outcome,
        tick=success and problem is None,
        problem=problem,
        pictures=len(set(images)),
        unpruned=against,
        kv_ratio=costs[0],
        flops_ratio=costs[1],
        best_baseline=_best(whole or known),
        baselines=outcomes,
        itself=itself,
        promise_kept=promise_kept,
    )


def _unpruned(
    tuned: Sequence[SampleScore],
    unpruned: Sequence[bool | None],
    images: Sequence[str],
    seed: int,
) -> Unpruned:
    gaps = [result.gap for result in tuned]
    mean = math.fsum(gaps) / len(gaps)
    answered = [
        (float(before) - float(bool(after.correct)), image)
        for before, after, image in zip(unpruned, tuned, images, strict=True)
        if before is not None
    ]
    low, high = bootstrap_ci(gaps, images, seed)
    found = None
    if answered:
        values, shown = zip(*answered, strict=True)
        found = lost(values, shown).within(accuracy(unpruned))
    return Unpruned(
        accuracy=found,
        gap=Loss(mean=mean, interval=(low, high), beyond_noise=low > 0),
        agreement=lost([float(not r.agrees) for r in tuned], images).within(1.0),
    )


def _rival(tuned: Sequence[SampleScore], row: Baseline) -> Rival | None:
    """Compare with a baseline on the samples it ran on, by accuracy where there are answers."""
    if row.scores is None or row.gap_difference is None:
        return None
    same = tuned[: row.scores.samples]
    gap = math.fsum(result.gap for result in same) / len(same)
    measure, difference = "accuracy", row.accuracy_difference
    if difference is None:
        low, high = row.gap_difference
        measure, difference = "gap", (row.scores.gap - gap, -high, -low)
    ahead, low, high = difference
    outcome: Outcome = "better" if low > 0 else "worse" if high < 0 else "tie"
    return Rival.model_validate(
        {
            "name": row.name,
            "measure": measure,
            "ahead": ahead,
            "interval": (low, high),
            "outcome": outcome,
            "gap": row.scores.gap,
            "accuracy": row.scores.accuracy,
        }
    )


def _best(rivals: Sequence[Rival]) -> Rival | None:
    """Return the strongest rival; of equal ones the one with the lower gap."""
    return min(rivals, key=lambda rival: (rival.ahead, rival.gap), default=None)


def _outcome(found: dict[Outcome, tuple[str, ...]]) -> Outcome:
    if found.get("worse"):
        return "worse"
    if found.get("tie"):
        return "tie"
    return "better" if found.get("better") else "unknown"


def _problem(
    tuned: Sequence[SampleScore], unpruned: Sequence[bool | None], pictures: int, compared: bool
) -> Problem | None:
    if accuracy(unpruned) == 0.0:
        return "unpruned_answers_nothing"
    if accuracy([result.correct for result in tuned]) == 0.0:
        return "answers_nothing"
    if pictures < FEWEST_PICTURES:
        return "too_few_pictures"
    return None if compared else "no_baseline"


def accuracy_difference(
    tuned: Sequence[SampleScore], other: Sequence[SampleScore], images: Sequence[str]
) -> tuple[float, float, float] | None:
    """Return the difference in accuracy and its 95% interval; None where there are no answers."""
    pairs = [
        (float(mine.correct) - float(theirs.correct), image)
        for mine, theirs, image in zip(tuned, other, images, strict=True)
        if mine.correct is not None and theirs.correct is not None
    ]
    if not pairs:
        return None
    values, shown = zip(*pairs, strict=True)
    found = lost(values, shown)
    return found.mean, found.low, found.high


def worth(config: PruningConfig, judged: Judged) -> PruningConfig:
    """Return a config whose provenance says what it is worth."""
    made = config.provenance.model_copy(update={"judged": judged})
    return config.model_copy(update={"provenance": made})


def judge_config(
    config: PruningConfig,
    tuned: Sequence[SampleScore],
    held_out: Measures,
    baselines: Sequence[Baseline] = (),
    promise_kept: bool | None = None,
) -> Judged:
    """Return what a config with provenance is worth on the split that it was measured on."""
    made = config.provenance
    return judge(
        tuned,
        held_out.unpruned_correct,
        image_ids(held_out.samples),
        baselines,
        costs=(cast(float, made.kv_ratio), cast(float, made.flops_ratio)),
        promise_kept=promise_kept,
        seed=made.seed or 0,
    )
