"""Figures of a study's trials: pure functions from facts to plotly; page and dashboard use them.

Each returns None where the study has nothing to draw. Titles are sentences that say what to see.
"""

from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go

from prunetune.budget import retention_by_layer
from prunetune.review.facts import StudyFacts, TrialFacts
from prunetune.review.fronts import cost_shown, front, growth
from prunetune.review.points import hover, log_if_wide
from prunetune.review.theme import (
    BLUE,
    DASHES,
    GREY,
    ORANGE,
    SERIES,
    SKY,
    VERMILLION,
    figure,
    number,
    percent,
    plain,
)

__all__ = ["front", "growth", "history", "importance", "schedules", "shown_schedules"]


def history(facts: StudyFacts, objective: int = 0) -> go.Figure | None:
    """Draw every trial's value in the order of trials, and the best so far."""
    trials = [t for t in facts.trials if t.measured]
    if not trials:
        return None
    found = figure(_history_title(facts, objective), "trial (number)", facts.axis(objective))
    groups: list[tuple[str, list[TrialFacts], dict[str, Any]]] = [
        (
            "stopped early (estimate)",
            [t for t in trials if not t.complete],
            {"symbol": "triangle-down-open", "color": GREY, "size": 7},
        ),
        (
            "complete",
            [t for t in trials if t.complete and not t.attrs.get("preset")],
            {"symbol": "circle", "color": SKY, "size": 7},
        ),
        (
            "preset (published method or control)",
            [t for t in trials if t.complete and t.attrs.get("preset")],
            {"symbol": "diamond", "color": ORANGE, "size": 9},
        ),
    ]
    for name, members, marker in groups:
        if members:
            found.add_trace(_points(facts, name, members, objective, marker))
    _add_best_so_far(found, facts, objective)
    log_if_wide(found, [t.values[objective] for t in trials])
    return found


def _history_title(facts: StudyFacts, objective: int) -> str:
    name = facts.short(objective)
    line = _best_so_far(facts, objective)
    if not line:
        return f"No trial is complete yet: estimates of the {name} so far"
    first, (last_number, last) = line[0][1], line[-1]
    if len(line) == 1 or first == last:
        return f"The best {name} is {number(last)}, from trial {last_number}"
    verb = "rose" if facts.maximised[objective] else "fell"
    return (
        f"The best {name} {verb} from {number(first)} to {number(last)}, "
        f"last improved by trial {last_number}"
    )


def _best_so_far(facts: StudyFacts, objective: int) -> list[tuple[int, float]]:
    """Return (trial, value) wherever the best improved."""
    out: list[tuple[int, float]] = []
    least = float("inf")
    for trial in facts.complete:
        if (loss := facts.loss(trial, objective)) < least:
            least = loss
            out.append((trial.number, trial.values[objective]))
    return out


def _add_best_so_far(found: go.Figure, facts: StudyFacts, objective: int) -> None:
    line = _best_so_far(facts, objective)
    if not line:
        return
    end = max(t.number for t in facts.trials if t.measured)
    x, y = [n for n, _ in line] + [end], [v for _, v in line] + [line[-1][1]]
    found.add_trace(
        go.Scatter(
            x=x,
            y=y,
            name="best so far",
            mode="lines",
            line={"color": VERMILLION, "width": 2.5, "shape": "hv"},
            hoverinfo="skip",
        )
    )


def _points(
    facts: StudyFacts,
    name: str,
    members: Sequence[TrialFacts],
    objective: int,
    marker: dict[str, Any],
) -> go.Scatter:
    return go.Scatter(
        x=[t.number for t in members],
        y=[t.values[objective] for t in members],
        text=[hover(facts, t) for t in members],
        name=name,
        mode="markers",
        marker=marker,
        hovertemplate="%{text}<extra></extra>",
    )


def schedules(facts: StudyFacts, count: int = 5) -> go.Figure | None:
    """Draw the share of image tokens that each decoder layer computes on, for the best trials."""
    trials = shown_schedules(facts, count)
    if not trials or facts.num_layers == 0:
        return None
    depth = facts.num_layers
    found = figure(
        _schedule_title(facts, trials),
        f"decoder layer (0 to {depth - 1})",
        "retention (share of image tokens)",
    )
    for rank, trial in enumerate(trials):
        shares = retention_by_layer(trial.config.stages if trial.config else (), depth)
        found.add_trace(
            go.Scatter(
                # A layer is a span, so that the last one has a width too.
                x=[k - 0.5 for k in range(depth + 1)],
                y=[*shares, shares[-1]],
                name=_ranked_name(facts, trial),
                mode="lines",
                line={
                    "color": SERIES[rank % len(SERIES)],
                    "dash": DASHES[rank % len(DASHES)],
                    "width": 6 if rank == 0 else 2.5,
                    "shape": "hv",
                },
                hovertemplate="%{y:.3~%}<extra>%{fullData.name}</extra>",
            )
        )
    most = max(max(trace.y) for trace in found.data)
    found.update_yaxes(range=[0, min(1.04, 1.2 * most)], tickformat=".0%")
    found.update_xaxes(range=[-0.6, depth - 0.4], dtick=max(1, round(depth / 16)), tick0=0)
    return found


def _ranked_name(facts: StudyFacts, trial: TrialFacts) -> str:
    if len(facts.metrics) == 2 and len(trial.values) == 2:
        return f"{plain(trial.name)}: {number(trial.values[0])} at {cost_shown(facts, trial)}"
    about = "" if trial.complete else "about "
    return f"{plain(trial.name)}: {about}{number(trial.values[0] if trial.values else None)}"


def shown_schedules(facts: StudyFacts, count: int = 5) -> list[TrialFacts]:
    """Return the chosen trial and the next best ones of other configs, ``count`` at most."""
    best = facts.best
    if best is None or best.config is None:
        return []
    order = facts.ranked
    if len(facts.metrics) == 2:
        # Points of a front have other costs: shown from the cheapest to the dearest.
        along, most = facts.along, max(1, min(count, len(facts.along)) - 1)
        order = tuple(along[round(k * (len(along) - 1) / most)] for k in range(most + 1))
    others = [t for t in order if t.number != best.number and t.config is not None]
    digest = best.attrs.get("config_digest")
    others = [t for t in others if digest is None or t.attrs.get("config_digest") != digest]
    return [best, *others][:count]


def _schedule_title(facts: StudyFacts, trials: Sequence[TrialFacts]) -> str:
    steps = ", then ".join(
        f"{percent(share)}{'' if k else ' of the image tokens'} from layer {layer}"
        for k, (layer, share) in enumerate(trials[0].schedule)
    )
    beside = "other points of the front" if len(facts.metrics) == 2 else "the next best"
    more = f"; beside it {beside}" if len(trials) > 1 else ""
    return f"{trials[0].name.capitalize()} keeps {steps}{more}"


def importance(facts: StudyFacts, found: dict[str, float], count: int = 12) -> go.Figure | None:
    """Draw PED-ANOVA importances (from ``decoded.importances``), the largest on top."""
    if not found:
        return None
    shown = list(found.items())[:count][::-1]
    name, share = max(found.items(), key=lambda item: item[1])
    title = (
        f"“{name}” matters most for being among the best tenth ({percent(share, 2)} of the "
        "importance; PED-ANOVA on decoded parameters)"
    )
    chart = figure(title, "PED-ANOVA importance (share, sums to 100%)", "decoded parameter")
    chart.add_trace(
        go.Bar(
            x=[share for _, share in shown],
            y=[plain(name) for name, _ in shown],
            orientation="h",
            marker={"color": BLUE},
            text=[percent(share, 2) for _, share in shown],
            textposition="outside",
            cliponaxis=False,
            hovertemplate="%{y}: %{x:.3~%}<extra></extra>",
        )
    )
    chart.update_xaxes(tickformat=".0%", rangemode="tozero")
    chart.update_layout(height=140 + 26 * len(shown), margin={"r": 48}, bargap=0.35)
    return chart
