"""Figures of single samples' results: how gaps are spread, and which questions suffer."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import plotly.graph_objects as go

from prunetune.review.facts import StudyFacts
from prunetune.review.theme import (
    BLUE,
    GREY,
    VERMILLION,
    figure,
    number,
    percent,
    plain,
)
from prunetune.study.outcome.intervals import bootstrap_ci

_BINS = 24
_MOST_TYPES = 14


@dataclass(frozen=True)
class TypeRow:
    """Results on one kind of question.

    Attributes:
        name: Of the kind.
        count: Samples.
        shares: By config (``tuned``, a baseline, ``unpruned``): share of right answers or of
            agreement, with its 95% interval.
    """

    name: str
    count: int
    shares: dict[str, tuple[float, float, float]]


def best_baseline(facts: StudyFacts) -> str | None:
    """Return the name of the preset with the lowest held-out gap."""
    configs = (facts.detail or {}).get("configs", {})
    names = [name for name in configs if name != "tuned"]
    return min(names, key=lambda n: float(np.mean(configs[n]["gap"])), default=None)


def by_type(facts: StudyFacts) -> tuple[str, list[TypeRow]]:
    """Return what was measured (``accuracy`` or ``top-1 agreement``) and a row a question type.

    Rows are empty where the held-out data has no types, or was not measured.
    """
    if facts.detail is None:
        return "", []
    types = facts.detail["samples"]["type"]
    # Studies of before do not say: then each sample counts as a picture of its own.
    pictures = facts.detail["samples"].get("picture") or range(len(types))
    configs = facts.detail["configs"]
    has_answers = any(c is not None for c in configs["tuned"]["correct"])
    column, name = ("correct", "accuracy") if has_answers else ("agrees", "top-1 agreement")
    other = best_baseline(facts)
    sources = {"tuned": configs["tuned"][column]}
    if other is not None:
        sources[other] = configs[other][column]
    if has_answers:
        sources["unpruned"] = facts.detail["samples"]["unpruned"]
    rows = []
    for kind in sorted({t for t in types if t}):
        shares, count = {}, 0
        for source, values in sources.items():
            known = [
                (float(value), str(picture))
                for type_, value, picture in zip(types, values, pictures)
                if type_ == kind and value is not None
            ]
            if known:
                found, groups = zip(*known)
                shares[source] = (sum(found) / len(found), *bootstrap_ci(found, groups))
                count = len(found)
        if "tuned" in shares:
            rows.append(TypeRow(kind, count, shares))
    return name, rows


def types_figure(facts: StudyFacts) -> go.Figure | None:
    """Draw accuracy or agreement by type of question: tuned, best baseline, unpruned."""
    name, rows = by_type(facts)
    if not rows:
        return None
    rows = sorted(rows, key=lambda r: -r.count)[:_MOST_TYPES]
    lowest = min(rows, key=lambda r: r.shares["tuned"][0])
    title = (
        f"Held-out {name} of the tuned config is lowest on “{lowest.name}” questions: "
        f"{percent(lowest.shares['tuned'][0])}"
    )
    chart = figure(title, f"{name} (share of samples, 95% interval)", "type of question")
    labels = [f"{plain(r.name, 24)} (n = {r.count})" for r in rows]
    colours = {"tuned": VERMILLION, "unpruned": GREY}
    shapes = {"tuned": "circle", "unpruned": "line-ns-open"}
    sources = list(dict.fromkeys(s for r in rows for s in r.shares))
    for k, source in enumerate(sources):
        held = [(i, r.shares[source]) for i, r in enumerate(rows) if source in r.shares]
        chart.add_trace(
            go.Scatter(
                x=[s[0] for _, s in held],
                y=[i + 0.18 * (k - (len(sources) - 1) / 2) for i, _ in held],
                name=plain(source if source in colours else f"{source} (best baseline)"),
                mode="markers",
                marker={
                    "color": colours.get(source, BLUE),
                    "symbol": shapes.get(source, "square"),
                    "size": 12 if source in shapes else 9,
                    "line": {"width": 3, "color": colours.get(source, BLUE)},
                },
                error_x={
                    "type": "data",
                    "symmetric": False,
                    "array": [s[2] - s[0] for _, s in held],
                    "arrayminus": [s[0] - s[1] for _, s in held],
                    "width": 0,
                    "thickness": 2,
                },
                text=[f"{labels[i]}: {percent(s[0])}" for i, s in held],
                hovertemplate="%{text}<extra>%{fullData.name}</extra>",
            )
        )
    chart.update_xaxes(tickformat=".0%", range=[-0.02, 1.02])
    chart.update_yaxes(
        tickvals=list(range(len(rows))), ticktext=labels, autorange="reversed", zeroline=False
    )
    chart.update_layout(height=190 + 44 * len(rows))
    return chart


def gaps(facts: StudyFacts) -> tuple[str, dict[str, list[float]], str]:
    """Return each sample's value by config, the axis, and the split it is from.

    From the held-out split where it was measured, else the metric on the calibration split.
    """
    if facts.detail is not None:
        configs = facts.detail["configs"]
        found = {"tuned": list(configs["tuned"]["gap"])}
        if (other := best_baseline(facts)) is not None:
            found[other] = list(configs[other]["gap"])
        return "held-out", found, "gap (1 - cosine)"
    best = facts.best
    if best is None or not best.samples:
        return "", {}, ""
    found = {best.name: list(best.samples.values())}
    presets = [t for t in facts.ranked if t.attrs.get("preset") and t.number != best.number]
    if presets and presets[0].samples:
        found[str(presets[0].attrs["preset"])] = list(presets[0].samples.values())
    return "calibration", found, facts.axis()


def gap_distribution(facts: StudyFacts) -> go.Figure | None:
    """Draw how many samples have which gap, tuned against the best baseline."""
    split, found, axis = gaps(facts)
    values = next(iter(found.values()), [])
    if not values:
        return None
    half, worst = float(np.median(values)), float(np.quantile(values, 0.95))
    title = (
        f"Half of the {len(values)} {split} samples stay below {number(half)}, "
        f"95% below {number(worst)}; the tail is where to look"
    )
    edges = _edges([v for held in found.values() for v in held])
    chart = figure(title, axis, "samples (share of the split)", barmode="overlay")
    for k, (name, held) in enumerate(found.items()):
        shares = np.histogram(np.minimum(held, edges[-1]), edges)[0] / len(held)
        if k == 0:
            chart.add_trace(
                go.Bar(
                    x=(edges[:-1] + edges[1:]) / 2,
                    y=shares,
                    width=np.diff(edges),
                    name=plain(name),
                    marker={"color": VERMILLION, "opacity": 0.65, "line": {"width": 0}},
                    hovertemplate="%{y:.3~%} of the samples near %{x:.3~g}<extra></extra>",
                )
            )
        else:
            chart.add_trace(
                go.Scatter(
                    x=edges,
                    y=[*shares, shares[-1]],
                    name=plain(f"{name} (best baseline)"),
                    mode="lines",
                    line={"color": BLUE, "width": 2.5, "shape": "hv"},
                    hoverinfo="skip",
                )
            )
    chart.update_yaxes(tickformat=".0%", rangemode="tozero")
    return chart


def _edges(values: Sequence[float]) -> np.ndarray:
    # One sample far out must not leave everything else in a single bar.
    high = max(float(np.quantile(values, 0.995)) * 1.05, 1e-9)
    return np.linspace(0.0, high, _BINS + 1)
