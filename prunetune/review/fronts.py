"""What pruning costs against what it keeps: all trials, the front, its knee and what ships."""

from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go

from prunetune.review.facts import StudyFacts, TrialFacts
from prunetune.review.points import hover, log_if_wide
from prunetune.review.theme import (
    BLUE,
    GREEN,
    GREY,
    SKY,
    VERMILLION,
    figure,
    number,
    percent,
    plain,
)

SHARES = ("mean_retention", "flops_ratio")
"""Costs that are shares of the unpruned one."""


def front(facts: StudyFacts) -> go.Figure | None:
    """Draw all trials' metric against their cost; the front is marked.

    The cost is the second objective; where there is one objective only, the mean retention.
    """
    if len(facts.metrics) > 1:
        return _objectives(facts)
    trials = [t for t in facts.trials if t.measured and t.retention is not None]
    if not trials:
        return None
    shares = [float(t.retention or 0.0) for t in trials]
    narrow = max(shares) - min(shares) < 1e-4
    x_title = "cost: mean retention (share of image tokens)"
    found = figure(_front_title(facts, trials, narrow), x_title, facts.axis())
    if narrow:
        # All at one place: spread sideways, so that they can be told apart.
        low, high = max(0.0, shares[0] - 0.1), min(1.0, shares[0] + 0.1)
        found.update_xaxes(range=[low, high], tickvals=[shares[0]])
        places = {t.number: shares[0] + 0.07 * _sideways(t.number) for t in trials}
    else:
        places = {t.number: share for t, share in zip(trials, shares)}
    found.update_xaxes(tickformat=".3~%")
    _add_clouds(found, facts, trials, places)
    log_if_wide(found, [t.values[0] for t in trials])
    return found


def _sideways(index: int) -> float:
    """Return a place in [-1, 1] that spreads neighbours, the same every time (golden ratio)."""
    return 2.0 * ((index * 0.6180339887) % 1.0) - 1.0


def _front_title(facts: StudyFacts, trials: Sequence[TrialFacts], narrow: bool) -> str:
    best, name = facts.best, facts.short()
    value = number(best.values[0]) if best and best.values else "-"
    if narrow:
        share = percent(trials[0].retention)
        return (
            f"Every trial costs the same, mean retention {share}; they differ in the {name}, which "
            f"is {value} at best (trials are spread sideways)"
        )
    count = len(facts.front)
    return f"What fewer tokens do to the {name}: {count} trials on the front, {value} at best"


def cost_shown(facts: StudyFacts, trial: TrialFacts) -> str:
    """Return a trial's cost as a sentence calls it."""
    name, value = facts.metrics[1], trial.values[1]
    if name in SHARES:
        return f"{facts.short(1)} {percent(value)}"
    return f"{facts.short(1)} {number(value)}"


def _objectives(facts: StudyFacts) -> go.Figure | None:
    trials = [t for t in facts.trials if t.measured]
    if not trials:
        return None
    found = figure(_objectives_title(facts), f"cost: {facts.axis(1)}", facts.axis(0))
    _add_clouds(found, facts, trials, {t.number: t.values[1] for t in trials})
    values = [t.values[0] for t in trials] + _add_held_out(found, facts)
    _add_named(found, facts)
    if facts.metrics[1] in SHARES:
        found.update_xaxes(tickformat=".3~%")
    log_if_wide(found, values)
    return found


def _objectives_title(facts: StudyFacts) -> str:
    bend, along = facts.knee, facts.along
    if bend is None or len(along) < 3:
        count = len(along)
        return f"{count} of {len(facts.complete)} complete trials: no other is better in both"
    cheap, dear, name = along[0], along[-1], facts.short()
    return (
        f"The knee is {bend.name}: {name} {number(bend.values[0])} at {cost_shown(facts, bend)}. "
        f"The front's {len(along)} trials go from {name} {number(cheap.values[0])} at "
        f"{cost_shown(facts, cheap)} to {number(dear.values[0])} at {cost_shown(facts, dear)}"
    )


def _add_held_out(found: go.Figure, facts: StudyFacts) -> list[float]:
    """Draw what held-out data say of the front's points; return their values."""
    points = (facts.result or {}).get("points") or []
    if facts.metrics[0] != "cosine" or not points:
        return []
    points = sorted(points, key=lambda p: p["cost"])
    found.add_trace(
        go.Scatter(
            x=[p["cost"] for p in points],
            y=[p["held_out_gap"] for p in points],
            error_y={
                "type": "data",
                "symmetric": False,
                "array": [p["held_out_ci"][1] - p["held_out_gap"] for p in points],
                "arrayminus": [p["held_out_gap"] - p["held_out_ci"][0] for p in points],
                "thickness": 1.5,
                "width": 4,
            },
            name="on held-out data, 95%",
            mode="markers",
            marker={"symbol": "square", "color": GREEN, "size": 8},
            text=[f"trial {p['trial']}, held-out gap {number(p['held_out_gap'])}" for p in points],
            hovertemplate="%{text}<extra></extra>",
        )
    )
    return [p["held_out_gap"] for p in points]


def _add_named(found: go.Figure, facts: StudyFacts) -> None:
    """Name the knee and what ships."""
    ships = ((facts.result or {}).get("decision") or {}).get("trial")
    named = [(facts.knee, "knee", GREY)] if facts.knee else []
    chosen = next((t for t in facts.trials if t.number == ships and t.measured), None)
    if chosen is not None:
        same = named and named[0][0] is chosen
        named = [*([] if same else named), (chosen, "ships, knee" if same else "ships", BLUE)]
    for trial, word, colour in named:
        found.add_trace(
            go.Scatter(
                x=[trial.values[1]],
                y=[trial.values[0]],
                name=f"{word}: {plain(trial.name)}",
                mode="markers+text",
                text=[f"<b>{word}</b>"],
                textposition="top right",
                textfont={"size": 14},
                marker={
                    "symbol": "circle-open",
                    "color": colour,
                    "size": 20,
                    "line": {"width": 3},
                },
                hoverinfo="skip",
                cliponaxis=False,
            )
        )


def _add_clouds(
    found: go.Figure,
    facts: StudyFacts,
    trials: Sequence[TrialFacts],
    places: dict[int, float],
) -> None:
    kinds: tuple[tuple[str, Any, dict[str, Any]], ...] = (
        (
            "stopped early (estimate)",
            lambda t: not t.complete,
            {"symbol": "triangle-down-open", "color": GREY, "size": 7},
        ),
        (
            "complete",
            lambda t: t.complete and t.number not in facts.front,
            {"symbol": "circle", "color": SKY, "size": 6, "opacity": 0.6},
        ),
        (
            "front",
            lambda t: t.complete and t.number in facts.front,
            {"symbol": "circle", "color": VERMILLION, "size": 9},
        ),
    )
    for name, member, marker in kinds:
        chosen = sorted(
            ((places[t.number], t.values[0], t) for t in trials if member(t)),
            key=lambda item: item[:2],
        )
        if not chosen:
            continue
        line = name == "front" and len(chosen) > 1
        found.add_trace(
            go.Scatter(
                x=[x for x, _, _ in chosen],
                y=[y for _, y, _ in chosen],
                text=[hover(facts, t) for _, _, t in chosen],
                name=name,
                mode="lines+markers" if line else "markers",
                marker=marker,
                # A step: between two costs nothing better than the cheaper one is known.
                line={"color": VERMILLION, "width": 2, "shape": "hv"} if line else None,
                hovertemplate="%{text}<extra></extra>",
            )
        )


def growth(facts: StudyFacts) -> go.Figure | None:
    """Draw how much of its present area the front of two objectives had after each trial."""
    trials = [t for t in facts.complete if len(t.values) == 2]
    if not trials:
        return None
    losses = [(facts.loss(t, 1), facts.loss(t)) for t in trials]
    corner = max(c for c, _ in losses), max(m for _, m in losses)
    areas = [dominated(losses[: k + 1], corner) for k in range(len(losses))]
    whole = areas[-1] or 1.0
    last = max((k for k in range(1, len(areas)) if areas[k] > areas[k - 1]), default=0)
    half = areas[max(0, len(areas) // 2 - 1)] / whole
    title = (
        f"The front last grew with trial {trials[last].number}; after half of its trials it had "
        f"{percent(half)} of what it has now"
    )
    found = figure(title, "trial (number)", "area that the front dominates (share of now)")
    found.add_trace(
        go.Scatter(
            x=[t.number for t in trials],
            y=[area / whole for area in areas],
            name="front so far",
            mode="lines",
            line={"color": VERMILLION, "width": 2.5, "shape": "hv"},
            hovertemplate="after trial %{x}: %{y:.1%}<extra></extra>",
        )
    )
    found.update_yaxes(tickformat=".0%", rangemode="tozero")
    found.update_layout(showlegend=False)
    return found


def dominated(points: Sequence[tuple[float, float]], corner: tuple[float, float]) -> float:
    """Return the area between points and a corner that is worse than all of them.

    Args:
        points: Cost and metric, lower is better.
        corner: The largest of each.
    """
    area, least = 0.0, corner[1]
    for cost, value in sorted(points):
        if value < least:
            area += (corner[0] - cost) * (least - value)
            least = value
    return area
