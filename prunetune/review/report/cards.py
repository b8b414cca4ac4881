"""The figures that are read first, and how many of them stand in a row."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from prunetune.provenance import Judged, Loss, Saving
from prunetune.review.facts import StudyFacts
from prunetune.review.fronts import cost_shown
from prunetune.review.report.tables import shown_point
from prunetune.review.saved import NOISE
from prunetune.review.theme import number, percent, tenths

_MOST = 6


@dataclass(frozen=True)
class Card:
    """One figure that is read first."""

    name: str
    value: str
    about: str = ""


def columns(count: int) -> int:
    """Return how many cards stand in a row: rows are as full as can be, none holds one alone."""
    if count <= _MOST:
        return max(1, count)
    wide = range(_MOST, 3, -1)
    return min(wide, key=lambda n: (count % n == 1, -count % n, -n))


def cards(facts: StudyFacts, trial: int | None) -> list[Card]:
    """Return the figures of a study.

    Args:
        facts: The study.
        trial: Whose config the page is about.
    """
    if facts.result is None:
        return [*_so_far(facts), _trials(facts)]
    shown = shown_point(facts.result)
    judged, saving = facts.judged, facts.saving(trial)
    found = _worth(judged) if judged is not None else _of_before(facts, shown)
    if shown is not None:
        found += [
            Card("visual KV cache", percent(shown["mean_retention"]), "of unpruned"),
            Card("prefill FLOPs", percent(shown["flops_ratio"]), "of the unpruned language model"),
        ]
        if flops := shown.get("flops"):
            share = percent(flops["sum"] / flops["unpruned_sum"])
            tower = percent(flops["tower"] / flops["sum"])
            about = f"the vision tower's are {tower} of it"
            found.append(Card("FLOPs, tower included", share, about))
    if saving is not None:
        found += _saved(saving)
    if len(facts.metrics) == 2:
        bend = facts.knee
        about = f"knee: {bend.name}, {cost_shown(facts, bend)}" if bend else ""
        found.append(Card("trials on the front", str(len(facts.front)), about))
    return [*found, _trials(facts)]


def _worth(judged: Judged) -> list[Card]:
    lost = judged.unpruned
    low, high = lost.gap.interval
    found = []
    if lost.accuracy is not None and lost.accuracy.of is not None:
        of, less = lost.accuracy.of, lost.accuracy.mean
        found = [
            Card("against unpruned", f"{-100 * less:+.1f} points", _points(lost.accuracy)),
            Card("accuracy", tenths(of - less), f"unpruned {tenths(of)}"),
        ]
    agrees = tenths(1.0 - lost.agreement.mean)
    return [
        *found,
        Card("gap", number(lost.gap.mean), f"95%: {low:.4f} to {high:.4f}"),
        Card("top-1 agreement", agrees, "with the unpruned model"),
    ]


def _points(loss: Loss) -> str:
    low, high = loss.interval
    doubt = "" if loss.beyond_noise else ", within noise"
    return f"of accuracy; 95%: {-100 * high:+.1f} to {-100 * low:+.1f}{doubt}"


def _of_before(facts: StudyFacts, shown: Mapping[str, Any] | None) -> list[Card]:
    """Return the cards of a result whose release did not say what it is worth."""
    if shown is None or facts.result is None:
        return []
    low, high = shown["held_out_ci"]
    found = [Card("gap", number(shown["held_out_gap"]), f"95%: {low:.4f} to {high:.4f}")]
    if shown["accuracy"] is not None:
        about = f"unpruned {tenths(facts.result['unpruned']['accuracy'])}"
        found.append(Card("accuracy", tenths(shown["accuracy"]), about))
    agrees = tenths(shown["top1_agreement"])
    return [*found, Card("top-1 agreement", agrees, "with the unpruned model")]


def _saved(saving: Saving) -> list[Card]:
    first, money = saving.first_ms, saving.million_requests
    found = [Card("to the first token", f"{first.pruned:.3g} ms", f"unpruned {first.unpruned:.3g}")]
    if money is not None:
        about = f"unpruned {money.unpruned:.3g}, at {saving.price_per_hour:g} an hour"
        value = NOISE if saving.told == NOISE else f"{money.pruned:.3g}"
        found.append(Card("a million requests", value, about))
    return found


def _so_far(facts: StudyFacts) -> list[Card]:
    best = facts.best
    if best is None:
        return []
    about = f"{best.name}, calibration data" + ("" if best.complete else ", an estimate")
    found = [Card(facts.axis(k), number(value), about) for k, value in enumerate(best.values)]
    if "mean_retention" not in facts.metrics:
        found.append(Card("mean retention", percent(best.retention), "over all decoder layers"))
    return found


def _trials(facts: StudyFacts) -> Card:
    """Return the card whose parts add up to all that has begun."""
    ended = {
        "complete": len([t for t in facts.trials if t.complete]),
        "stopped early": sum(t.state == "stopped early" for t in facts.trials),
        "failed": sum(t.state == "failed" for t in facts.trials),
        "running": facts.running,
    }
    shown = {name: count for name, count in ended.items() if count or name == "complete"}
    about = ", ".join(f"{count} {name}" for name, count in shown.items())
    return Card("trials", str(sum(ended.values())), about)
