"""What a search was worth, in words: against unpruned first, then against the best baseline.

Numbers come from ``judging``; terminal, page and notes have their words here.
"""

from collections.abc import Sequence

from prunetune.provenance import Judged, Loss, Rival
from prunetune.study.clock import Clock
from prunetune.study.outcome.summary import RESIZE, Baseline

TOO_FEW = "too few to tell"
"""Part of a verdict on held-out pictures that are."""
WRONG_DATA = (
    "so the data or the form of its answers is wrong and accuracy tells nothing; look at them "
    "with: prunetune data check"
)


def verdict(judged: Judged) -> str:
    """Return sentences: what is lost, what is left of the cost, whether a baseline does as well."""
    first = f"Against unpruned it {losses(judged)}, {savings(judged)}."
    return " ".join([*problem_words(judged), first, *rest(judged)])


def hurried(baselines: Sequence[Baseline], clock: Clock, said: str) -> str:
    """Return a verdict with words on what the run had no time to compare.

    Args:
        baselines: Rows of the table.
        clock: Of the run.
        said: The verdict on what was compared.
    """
    left = [row.name for row in baselines if row.late]
    if not left or clock.seconds is None:
        return said
    if any(row.scores for row in baselines):
        return f"{said} Not compared, since the time was up: {', '.join(left)}."
    return (
        f"Not compared: the timeout of {clock.seconds:g} s left no time to measure any baseline on "
        "held-out data, so nothing is known about the gain; run the same command with a longer one."
    )


def losses(judged: Judged) -> str:
    """Return what is lost against unpruned: accuracy where there are answers, else the gap."""
    lost = judged.unpruned
    if lost.accuracy is not None and judged.problem != "unpruned_answers_nothing":
        return accuracy_lost(lost.accuracy)
    low, high = lost.agreement.interval
    gap_low, gap_high = lost.gap.interval
    return (
        f"has a gap of {lost.gap.mean:.4f} ({gap_low:.4f} to {gap_high:.4f}) and another next "
        f"token on {100 * lost.agreement.mean:.1f}% of the samples "
        f"({100 * low:.1f}% to {100 * high:.1f}%)"
    )


def accuracy_lost(loss: Loss) -> str:
    """Return the accuracy that is lost, or gained, in points."""
    mean, (low, high) = loss.mean, loss.interval
    verb = "loses"
    if mean < 0:
        verb, mean, low, high = "gains", -mean, -high, -low
    of = "" if loss.of is None else f" of {100 * loss.of:.1f}%"
    doubt = "" if loss.beyond_noise else ", which is within noise"
    interval = f"({100 * low:.1f} to {100 * high:.1f})"
    return f"{verb} {100 * mean:.1f} points of accuracy {interval}{of}{doubt}"


def savings(judged: Judged) -> str:
    """Return what is left of cache and prefill."""
    kept = f"keeps {100 * judged.kv_ratio:.3g}% of the visual KV cache"
    return f"{kept} and needs {judged.flops_ratio:.2g}x the prefill FLOPs"


def problem_words(judged: Judged) -> list[str]:
    """Return a sentence on why nothing follows from the figures; none where something does."""
    lost = judged.unpruned.accuracy
    if judged.problem == "unpruned_answers_nothing":
        return [f"The unpruned model gives none of the expected answers, {WRONG_DATA}."]
    if judged.problem == "answers_nothing" and lost is not None and lost.of is not None:
        right = f"{100 * lost.of:.1f}%"
        return [f"Do not ship it: it answers nothing right, where unpruned answers {right}."]
    if judged.problem == "too_few_pictures":
        count = judged.pictures
        return [f"{count} held-out picture{'s are' if count > 1 else ' is'} {TOO_FEW}."]
    return []


def rest(judged: Judged) -> list[str]:
    """Return the sentences about the baselines."""
    found = []
    if judged.itself:
        names = " and ".join(judged.itself)
        found.append(f"It is the preset {names} itself: nothing better than it was found.")
    best = judged.best_baseline
    if best is None:
        if not judged.itself:
            found.append("No baseline was measured at this budget: of the gain nothing is known.")
        return found
    found.append(f"{_against(judged, best)}: {_figures(judged, best)}.")
    level = {*judged.baselines.get("tie", ()), *judged.baselines.get("worse", ())}
    if RESIZE in level and best.name != RESIZE and judged.outcome != "unknown":
        found.append("Sending smaller pictures, with nothing pruned, is no worse.")
    return found


def _against(judged: Judged, best: Rival) -> str:
    name = best.name
    if name == RESIZE:
        name = f"{RESIZE} (smaller pictures, nothing pruned)"
    if judged.outcome == "unknown":
        return f"The best baseline is {name}"
    if best.outcome == "tie":
        return f"It ties with the best baseline, {name}"
    if best.outcome == "worse":
        return f"The best baseline, {name}, is better"
    every = ", and than every other" if judged.outcome == "better" else ""
    return f"It is better than the best baseline, {name}{every}"


def _figures(judged: Judged, best: Rival) -> str:
    gaps = f"gap {judged.unpruned.gap.mean:.4f} against {best.gap:.4f}"
    low, high = best.interval
    if best.measure == "gap":
        return f"{gaps} (lower by {best.ahead:.4f}, {low:.4f} to {high:.4f})"
    interval = f"({100 * low:+.1f} to {100 * high:+.1f})"
    return f"{100 * best.ahead:+.1f} points of accuracy {interval}, {gaps}"
