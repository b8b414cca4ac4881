"""What a config is worth on held-out data, as numbers: against unpruned, then the baselines."""

import math
from collections import Counter
from collections.abc import Sequence
from typing import cast

from prunetune.config import PruningConfig
from prunetune.measure.scores import Measures, SampleScore, accuracy, image_ids
from prunetune.provenance import Judged, Loss, Outcome, Problem, Rival, Unpruned
from prunetune.study.outcome.intervals import bootstrap_ci
from prunetune.study.outcome.promise import Loses, lost
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
    compared = [(_rival(tuned, row), row) for row in others]
    known = [rival for rival, _ in compared if rival is not None]
    # On the samples before the time was up a rival may look like the best: the fewer, the sooner.
    most = max((row.scores.samples for rival, row in compared if rival and row.scores), default=0)
    whole = [rival for rival, row in compared if rival and not row.stopped] or [
        rival for rival, row in compared if rival and row.scores and row.scores.samples == most
    ]
    outcomes: dict[Outcome, tuple[str, ...]] = {}
    for rival, row in compared:
        if rival is not None or row.beaten:
            said: Outcome = "better" if rival is None else rival.outcome
            outcomes[said] = (*outcomes.get(said, ()), row.name)
    problem = _problem(tuned, unpruned, len(set(images)), bool(known) or promise_kept is not None)
    outcome = _outcome(outcomes) if problem in (None, "answers_nothing") else "unknown"
    if outcome == "unknown" and known:
        # Too little is known of each of them, too.
        known = [rival.model_copy(update={"outcome": "unknown"}) for rival in known]
        whole = [rival.model_copy(update={"outcome": "unknown"}) for rival in whole]
        outcomes = {"unknown": tuple(r.name for rival, r in compared if rival or r.beaten)}
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
        best_baseline=_best(whole),
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
    """Compare with a baseline on the samples it ran on, by accuracy where there are answers.

    None where it was not measured, and where it was left for what it did on its samples: an
    interval that ends when it says something says nothing.
    """
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


def beaten(
    tuned: Sequence[SampleScore], first: Sequence[SampleScore], images: Sequence[str], seed: int
) -> bool:
    """Tell whether the whole split will say "better" than a rival, whatever it does on the rest.

    The rest is set in the rival's favour: answered right, or with a gap of 0. Each draw of the
    gap's bootstrap is then at its highest, so its interval is; see ``_slack`` for answers.

    Args:
        tuned: The tuned config's results on all samples.
        first: The rival's on the first ones.
        images: The picture that each sample shows.
        seed: Of the bootstrap's draws.
    """
    count = len(first)
    if all(ours.correct is None for ours in tuned):
        apart = [ours.gap - theirs.gap for ours, theirs in zip(tuned, first)]
        return bootstrap_ci([*apart, *(ours.gap for ours in tuned[count:])], images, seed)[1] < 0
    right = [*(theirs.correct for theirs in first), *[True] * (len(tuned) - count)]
    answered = [i for i, ours in enumerate(tuned) if None not in (ours.correct, right[i])]
    shown = [images[i] for i in answered]
    found = lost([float(bool(tuned[i].correct)) - float(bool(right[i])) for i in answered], shown)
    return found.low > _slack(found, shown, [images[i] for i in answered if i >= count])


def _slack(found: Loses, shown: Sequence[str], rest: Sequence[str]) -> float:
    """Return by how much the interval's lower end may fall where the rest is answered wrong.

    N samples, n of them about each of k pictures, at most m of these in the rest; the end is t
    errors below the mean. T wrong answers raise the mean by T/N. They raise the error, a norm of
    the pictures' sums, by at most sqrt(k/(k-1)) L sqrt(mT)/N, L = sqrt(k sum n^2)/N being that of
    taking the mean away. T/N less t of these is lowest at -t^2 k/(k-1) L^2 m/4N.
    """
    sizes, count = Counter(shown), len(shown)
    pictures, most = len(sizes), max(Counter(rest).values(), default=0)
    errors = (found.high - found.mean) / found.error
    spread = pictures * sum(size * size for size in sizes.values()) / count**2
    return errors**2 * pictures / max(1, pictures - 1) * spread * most / (4 * count)


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
