"""What a search was worth, in one honest sentence."""

from collections.abc import Sequence

from prunetune.measure.scores import Scores
from prunetune.study.clock import Clock
from prunetune.study.outcome.summary import RESIZE, Baseline, percent
from prunetune.study.outcome.table import TIME_UP

_FEWEST_PICTURES = 5
TOO_FEW = "too few to tell"
"""Part of a verdict on held-out pictures that are."""


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
    return _verdict(tuned, baselines, pictures) + _smaller(tuned, baselines, pictures)


def hurried(baselines: Sequence[Baseline], clock: Clock, said: str) -> str:
    """Return a verdict with words on what the run had no time to compare.

    Args:
        baselines: Rows of the table.
        clock: Of the run.
        said: The verdict on what was compared.
    """
    left = [row.name for row in baselines if row.scores is None and TIME_UP in row.note]
    if not left or clock.seconds is None:
        return said
    if any(row.scores for row in baselines):
        return f"{said} Not compared, since the time was up: {', '.join(left)}."
    return (
        f"Not compared: the timeout of {clock.seconds:g} s left no time to measure any baseline on "
        "held-out data, so nothing is known about the gain; run the same command with a longer one."
    )


def _smaller(tuned: Scores, baselines: Sequence[Baseline], pictures: int) -> str:
    """Say plainly where smaller pictures alone do as well."""
    for row in baselines:
        if row.name != RESIZE or row.scores is None or row.is_tuned or too_few(pictures):
            continue
        if row.scores.gap <= tuned.gap:
            return f" Sending smaller pictures is as good or better: {row.note}, nothing pruned."
    return ""


def _verdict(tuned: Scores, baselines: Sequence[Baseline], pictures: int) -> str:
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
            f"; accuracy {percent(tuned.accuracy)} against {percent(other.accuracy)} ({top.name})"
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
