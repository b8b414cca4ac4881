"""Two studies side by side: what each is worth, in numbers that can be held against each other."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from prunetune.provenance import Loss
from prunetune.review.facts import StudyFacts
from prunetune.review.report.report import chosen_config
from prunetune.review.report.tables import Table
from prunetune.review.saved import saved_rows
from prunetune.review.theme import number, percent, tenths
from prunetune.review.words import verdict
from prunetune.study.outcome.promise import lost
from prunetune.study.resumed import differing

NAMES = ("A", "B")


@dataclass(frozen=True)
class Side:
    """One of two studies.

    Attributes:
        name: ``A`` or ``B``.
        facts: The study.
        shown: Folder or storage URL, without a password.
    """

    name: str
    facts: StudyFacts
    shown: str

    @property
    def trial(self) -> int | None:
        """The trial that it is about."""
        return chosen_config(self.facts)[1]


@dataclass(frozen=True)
class Apart:
    """What B answers more than A, or the gap that it has less, sample by sample.

    Attributes:
        measure: ``accuracy`` or ``gap``.
        mean: B's lead.
        low: Lower end of its 95% interval, over pictures.
        high: Upper end.
    """

    measure: str
    mean: float
    low: float
    high: float


def apart(one: StudyFacts, other: StudyFacts) -> Apart | None:
    """Compare the studies' results, paired; None where they are not of the same samples."""
    if one.detail is None or other.detail is None:
        return None
    samples = one.detail["samples"]
    same = ("id", "picture", "unpruned")
    if any(samples.get(key) != other.detail["samples"].get(key) for key in same):
        return None
    mine, theirs = one.detail["configs"]["tuned"], other.detail["configs"]["tuned"]
    images = [str(picture) for picture in samples["picture"]]
    if any(right is not None for right in samples["unpruned"]):
        values = [
            math.nan if a is None or b is None else float(b) - float(a)
            for a, b in zip(mine["correct"], theirs["correct"], strict=True)
        ]
        found = lost(values, images)
        return Apart("accuracy", found.mean, found.low, found.high)
    found = lost([a - b for a, b in zip(mine["gap"], theirs["gap"], strict=True)], images)
    return Apart("gap", found.mean, found.low, found.high)


def words(one: Side, other: Side) -> str:
    """Return what the two are worth against each other, in a sentence or two."""
    found = apart(one.facts, other.facts)
    costs = _costs(one, other)
    if found is None:
        missing = [side.name for side in (one, other) if side.facts.detail is None]
        if missing:
            return f"{' and '.join(missing)} has no result on held-out data yet.{costs}"
        return (
            "Their held-out samples, or the unpruned answers to them, are not the same (another "
            "model, other data, another --match), so their figures cannot be paired: a difference "
            f"may be theirs.{costs}"
        )
    unit, scale = ("points of accuracy", 100.0) if found.measure == "accuracy" else ("of gap", 1.0)
    form = ".1f" if scale > 1 else ".4f"
    lead, low, high = scale * found.mean, scale * found.low, scale * found.high
    span = f"({low:+{form}} to {high:+{form}})"
    if found.low > 0:
        return f"B is better than A, by {lead:{form}} {unit} {span}.{costs}"
    if found.high < 0:
        back = f"({-high:+{form}} to {-low:+{form}})"
        return f"A is better than B, by {-lead:{form}} {unit} {back}.{costs}"
    return f"A and B tie: B is {lead:+{form}} {unit} {span} apart, which is within noise.{costs}"


def _costs(one: Side, other: Side) -> str:
    judged = one.facts.judged, other.facts.judged
    if judged[0] is None or judged[1] is None:
        return ""
    kept = [f"{100 * j.kv_ratio:.3g}%" for j in judged if j is not None]
    flops = [f"{j.flops_ratio:.2g}x" for j in judged if j is not None]
    return (
        f" A keeps {kept[0]} of the visual KV cache, B {kept[1]}; of the prefill FLOPs A needs "
        f"{flops[0]}, B {flops[1]}."
    )


def figures_table(one: Side, other: Side) -> Table:
    """Return the figures of both, a row a figure."""
    columns = [_figures(side) for side in (one, other)]
    names = list(dict.fromkeys(name for column in columns for name in column))
    rows = tuple((name, *(column.get(name, "-") for column in columns)) for name in names)
    return Table(
        "Held-out data, where a search has ended. Intervals are 95%, over pictures.",
        ("figure", ">A", ">B"),
        rows,
    )


def _figures(side: Side) -> dict[str, str]:
    facts, judged = side.facts, side.facts.judged
    out = {"trial": "-" if side.trial is None else str(side.trial)}
    if judged is not None:
        lost_ = judged.unpruned
        if lost_.accuracy is not None:
            out["accuracy lost, points"] = _span(lost_.accuracy, 100.0, ".1f")
            out["unpruned accuracy"] = tenths(lost_.accuracy.of)
        out["gap"] = _span(lost_.gap, 1.0, ".4f")
        out["another next token"] = _span(lost_.agreement, 100.0, ".1f") + " %"
        out["against its best baseline"] = _beside(judged.model_dump(mode="json"))
        out["visual KV cache"] = percent(judged.kv_ratio)
        out["prefill FLOPs"] = percent(judged.flops_ratio)
    elif facts.best is not None:
        out |= {facts.axis(k): number(v) for k, v in enumerate(facts.best.values)}
        out["mean retention"] = percent(facts.best.retention)
    if (saving := facts.saving(side.trial)) is not None:
        out |= {name: f"{after} (unpruned {before})" for name, before, after in saved_rows(saving)}
        out["timed on"] = f"{saving.device}, {saving.dtype}"
    out["trials"] = f"{facts.finished} of {facts.spec.trials}"
    return out


def _span(loss: Loss, scale: float, form: str) -> str:
    low, high = loss.interval
    return f"{scale * loss.mean:{form}} ({scale * low:{form}} to {scale * high:{form}})"


def _beside(judged: Mapping[str, Any]) -> str:
    best = judged["best_baseline"]
    return "-" if best is None else f"{best['outcome']} ({best['name']})"


def spec_table(one: Side, other: Side) -> Table | None:
    """Return the fields in which the specs differ; None where they do in nothing."""
    rows = tuple(
        (field, _value(before), _value(after))
        for field, before, after in differing(one.facts.spec, other.facts.spec)
    )
    if not rows:
        return None
    return Table("What the two searches were told differently.", ("field", "A", "B"), rows)


def _value(value: Any) -> str:
    return "-" if value is None else str(value)


def verdicts(one: Side, other: Side) -> list[tuple[str, str, str, str]]:
    """Return name, study, verdict and tone of both."""
    return [(side.name, side.facts.name, *verdict(side.facts)) for side in (one, other)]
