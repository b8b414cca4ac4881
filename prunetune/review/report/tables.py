"""Tables of the report: held-out figures, presets, all trials."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from prunetune.promise import Promise
from prunetune.provenance import Saving
from prunetune.review.facts import UNITS, StudyFacts, TrialFacts
from prunetune.review.saved import saved_rows, where
from prunetune.review.theme import number, percent, tenths

_MOST_TRIALS = 2000


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        caption: What it says.
        heads: Titles; those that start with ``>`` are of numbers, aligned to the right.
        rows: Cells as text.
        strong: Index of the row that stands out; -1 for none.
    """

    caption: str
    heads: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    strong: int = -1


def shown_point(result: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Return the figures of the config that a result is about; None where nothing ships."""
    if "best" in result:
        best: Mapping[str, Any] = result["best"]
        return best
    decision = result.get("decision")
    wanted = decision["trial"] if decision else result.get("knee")
    return next((point for point in result["points"] if point["trial"] == wanted), None)


def held_out_table(facts: StudyFacts) -> Table | None:
    """Return the tuned config against every baseline on held-out data; None before it is known."""
    best = shown_point(facts.result) if facts.result is not None else None
    if facts.detail is None or best is None:
        return None
    result, intervals = facts.detail["result"], facts.detail["intervals"]
    rivals, rows = best.get("baselines", result.get("baselines", [])), []
    rows.append(
        (
            "tuned",
            number(best["held_out_gap"]),
            _interval(intervals.get("tuned")),
            "",
            "",
            tenths(best["top1_agreement"]),
            tenths(best["accuracy"]),
            percent(best["mean_retention"]),
            f"trial {best['trial']}",
        )
    )
    known = [row for row in rivals if row["held_out_gap"] is not None]
    for row in sorted(known, key=lambda row: row["held_out_gap"]):
        apart = facts.detail.get("differences", {}).get(row["name"], {})
        rows.append(
            (
                str(row["name"]),
                number(row["held_out_gap"]),
                _interval(intervals.get(row["name"])),
                _interval(apart.get("gap_difference"), signed=True),
                _p_value(apart.get("p_value")),
                tenths(row["top1_agreement"]),
                tenths(row["accuracy"]),
                percent(row["mean_retention"]),
                str(row["notes"] or ""),
            )
        )
    rows += [
        (str(row["name"]), *("-",) * 7, str(row["notes"] or ""))
        for row in rivals
        if row["held_out_gap"] is None
    ]
    accuracy = tenths(result["unpruned"]["accuracy"])
    rows.append(("unpruned", "0", "", "", "", "100.0%", accuracy, "100%", ""))
    count = len(facts.detail["samples"]["id"])
    heads: tuple[str, ...] = ("config", ">gap", ">95% interval", ">tuned minus this, 95% interval")
    heads += (">p", ">top-1 agreement", ">accuracy", ">mean retention", "note")
    caption = (
        f"{count} held-out samples. Intervals: bootstrap over pictures. A difference whose "
        "interval is below 0 is more than chance. p: one-sided Wilcoxon test that pictures have "
        "a lower gap; beside such a difference, a large p says that few pictures gain much."
    )
    if any("stopped after" in row[-1] for row in rows):
        caption += (
            " A rival without an interval that was stopped is one that the tuned config beats on "
            "all samples beyond noise, and that is not the best, whatever the rest were; its row "
            "is about the samples that it was measured on."
        )
    return Table(caption, heads, tuple(rows), strong=0)


def front_table(facts: StudyFacts) -> Table | None:
    """Return the points of a front that were measured on held-out data; None for one objective."""
    if facts.front_record is None or not facts.front_record["result"]["points"]:
        return None
    result, shares = facts.front_record["result"], facts.metrics[1] == "mean_retention"
    rows = []
    for point in result["points"]:
        known = [b for b in point["baselines"] if b["held_out_gap"] is not None]
        best = min(known, key=lambda b: b["held_out_gap"], default=None)
        low, high = point["held_out_ci"]
        rows.append(
            (
                f"trial {point['trial']}",
                percent(point["cost"]) if shares else number(point["cost"]),
                number(point["held_out_gap"]),
                _interval((low, high)),
                _beside(point, best),
                tenths(point["top1_agreement"]),
                tenths(point["accuracy"]),
                *([] if shares else [percent(point["mean_retention"])]),
            )
        )
    cost = "mean retention" if shares else UNITS.get(facts.metrics[1], facts.metrics[1])
    heads: tuple[str, ...] = ("point", f">{cost}", ">gap", ">95% interval")
    heads += (
        ">against the best baseline of that cost",
        ">top-1 agreement",
        ">accuracy",
        *([] if shares else [">mean retention"]),
    )
    accuracy = tenths(result["unpruned"]["accuracy"])
    caption = (
        f"Held-out data; unpruned accuracy {accuracy}. Points of the front's "
        f"{len(result['front'])} trials; baselines are moved onto each point's cost."
    )
    decision = result.get("decision")
    shown = decision["trial"] if decision else result.get("knee")
    places = [k for k, point in enumerate(result["points"]) if point["trial"] == shown]
    return Table(caption, heads, tuple(rows), strong=places[0] if places else -1)


def tested_table(facts: StudyFacts) -> Table | None:
    """Return the candidates that were held against a promise; None where nothing was promised."""
    decision = (facts.result or {}).get("decision")
    if not decision or not decision["tested"]:
        return None
    promise = Promise.model_validate(decision["promise"])
    cost = "ms to the first token" if promise.cheapest == "ms" else facts.axis(1)
    rows = tuple(
        (
            f"trial {one['trial']}",
            number(one["cost"]),
            promise.shown(one["loses"]["mean"]),
            " to ".join(promise.shown(end) for end in one["loses"]["interval"]),
            promise.shown(one["loses"]["bound"]),
            "kept" if one["passed"] else "not kept",
        )
        for one in decision["tested"]
    )
    heads = "candidate", f">{cost}", ">loses", ">95% interval", ">at most (95%)", "promise"
    ships = [k for k, one in enumerate(decision["tested"]) if one["trial"] == decision["trial"]]
    strong = ships[0] if ships else -1
    caption = (
        f"The promise: a config that {promise.words}. Calibration data order the candidates from "
        "safest to cheapest, held-out data test them in that order and stop at the first that may "
        "lose more: the last that passed ships."
    )
    return Table(caption, heads, rows, strong=strong)


def _beside(point: Mapping[str, Any], best: Mapping[str, Any] | None) -> str:
    """Return what a point is against the best baseline of its cost."""
    rival = (point.get("judged") or {}).get("best_baseline")
    if rival is None:
        return "-" if best is None else f"gap {number(best['held_out_gap'])} ({best['name']})"
    (low, high), ahead = rival["interval"], rival["ahead"]
    if rival["measure"] == "gap":
        return f"{rival['outcome']} ({rival['name']}): gap {ahead:+.4f} ({low:+.4f} to {high:+.4f})"
    span = f"({100 * low:+.1f} to {100 * high:+.1f})"
    return f"{rival['outcome']} ({rival['name']}): {100 * ahead:+.1f} points {span}"


def saved_table(saving: Saving) -> Table:
    """Return what a config saves on a device."""
    heads = "on this device", ">unpruned", ">pruned"
    return Table(where(saving), heads, tuple(saved_rows(saving)))


def presets_table(facts: StudyFacts) -> Table | None:
    """Return the presets that ran as trials, on calibration data; None where there are none."""
    presets = [t for t in facts.trials if t.attrs.get("preset") and t.measured]
    best = facts.best
    if not presets or best is None:
        return None
    members = [best, *(t for t in presets if t.number != best.number)]
    rows = tuple(
        (
            t.name,
            number(t.values[0]) + ("" if t.complete else " (estimate)"),
            tenths(t.number_of("top1_agreement")),
            tenths(t.number_of("accuracy")),
            percent(t.retention),
            f"{t.attrs.get('samples_used', '-')}",
            str(t.attrs.get("note", "")),
        )
        for t in [members[0], *sorted(members[1:], key=facts.loss)]
    )
    heads: tuple[str, ...] = ("trial", f">{facts.axis()}", ">top-1 agreement", ">accuracy")
    heads += (">mean retention", ">samples", "note")
    caption = (
        "Calibration data, not held-out: the search was tuned on it. A trial that was stopped "
        "early is measured on some of the samples."
    )
    return Table(caption, heads, rows, strong=0)


def trials_table(facts: StudyFacts) -> Table:
    """Return all trials; of very large studies the best ones."""
    shown = facts.trials
    caption = f"All {len(shown)} trials, in their order."
    if len(shown) > _MOST_TRIALS:
        kept = sorted(shown, key=lambda t: (facts.loss(t), t.number))[:_MOST_TRIALS]
        shown = tuple(sorted(kept, key=lambda t: t.number))
        caption = f"The best {_MOST_TRIALS} of {len(facts.trials)} trials, in their order."
    best = facts.best
    values = tuple(f">{facts.axis(k)}" for k in range(len(facts.metrics)))
    heads = (">trial", "state", *values, ">mean retention", "layer: retention", "score weights")
    heads += (">samples", ">seconds", "note")
    return Table(
        caption,
        heads,
        tuple(_trial_row(facts, t) for t in shown),
        strong=next((i for i, t in enumerate(shown) if best and t.number == best.number), -1),
    )


def _trial_row(facts: StudyFacts, t: TrialFacts) -> tuple[str, ...]:
    notes = [f"{kind} {t.attrs[kind]}" for kind in ("preset", "start") if t.attrs.get(kind)]
    if "repeats" in t.attrs:
        notes.append(f"the config of trial {t.attrs['repeats']}")
    if "failure" in t.attrs:
        notes.append(str(t.attrs["failure"])[:200])
    mark = "" if t.complete or not t.measured else "~"
    values = [f"{mark}{number(v)}" for v in t.values] or ["-"] * len(facts.metrics)
    return (
        str(t.number),
        t.state,
        *values,
        percent(t.retention),
        str(t.attrs.get("schedule", "-")),
        str(t.attrs.get("weights", "-")),
        str(t.attrs.get("samples_used", "-")),
        "-" if t.seconds is None else f"{t.seconds:.1f}",
        "; ".join(notes),
    )


def _interval(found: Sequence[float] | None, *, signed: bool = False) -> str:
    if not found:
        return "-"
    low, high = found
    return f"{low:+.4f} to {high:+.4f}" if signed else f"{low:.4f} to {high:.4f}"


def _p_value(value: float | None) -> str:
    if value is None:
        return "-"
    return "< 0.001" if value < 0.001 else f"{value:.3f}"
