"""What pruning costs against what it keeps: all trials, the front marked."""

from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go

from prunetune.review.facts import StudyFacts, TrialFacts
from prunetune.review.points import hover, log_if_wide
from prunetune.review.theme import GREY, SKY, VERMILLION, figure, number, percent


def front(facts: StudyFacts) -> go.Figure | None:
    """Draw all trials' metric against their mean retention, or two objectives; the front marked."""
    if len(facts.metrics) > 1:
        return _objectives(facts)
    trials = [t for t in facts.trials if t.measured and t.retention is not None]
    if not trials:
        return None
    shares = [float(t.retention or 0.0) for t in trials]
    narrow = max(shares) - min(shares) < 1e-4
    x_title = "mean retention over all decoder layers (share of image tokens)"
    found = figure(_front_title(facts, trials, narrow), x_title, facts.axis())
    if narrow:
        # All at one place: spread sideways, so that they can be told apart.
        low, high = max(0.0, shares[0] - 0.1), min(1.0, shares[0] + 0.1)
        found.update_xaxes(range=[low, high], tickvals=[shares[0]])
        places = {t.number: shares[0] + 0.07 * _sideways(t.number) for t in trials}
    else:
        places = {t.number: share for t, share in zip(trials, shares)}
    found.update_xaxes(tickformat=".3~%")
    _add_clouds(found, facts, trials, places, [t.values[0] for t in trials])
    log_if_wide(found, [t.values[0] for t in trials])
    return found


def _sideways(index: int) -> float:
    """Return a place in [-1, 1] that spreads neighbours, the same every time (golden ratio)."""
    return 2.0 * ((index * 0.6180339887) % 1.0) - 1.0


def _front_title(facts: StudyFacts, trials: Sequence[TrialFacts], narrow: bool) -> str:
    best = facts.best
    value = number(best.values[0]) if best and best.values else "-"
    if narrow:
        share = percent(trials[0].retention)
        return (
            f"Every trial meets the budget: mean retention {share}; they differ in what it costs, "
            f"at best {value} (trials are spread sideways)"
        )
    return f"What fewer tokens cost: {len(facts.front)} trials on the front, at best {value}"


def _objectives(facts: StudyFacts) -> go.Figure | None:
    trials = [t for t in facts.trials if t.measured]
    if not trials:
        return None
    title = (
        f"{len(facts.front)} of {len(facts.complete)} complete trials are on the front: "
        "no other trial is better in every objective"
    )
    found = figure(title, facts.axis(1), facts.axis(0))
    places = {t.number: t.values[1] for t in trials}
    _add_clouds(found, facts, trials, places, [t.values[0] for t in trials])
    return found


def _add_clouds(
    found: go.Figure,
    facts: StudyFacts,
    trials: Sequence[TrialFacts],
    places: dict[int, float],
    values: Sequence[float],
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
            {"symbol": "circle", "color": SKY, "size": 8},
        ),
        (
            "Pareto front",
            lambda t: t.complete and t.number in facts.front,
            {"symbol": "star", "color": VERMILLION, "size": 13},
        ),
    )
    for name, member, marker in kinds:
        chosen = sorted(
            ((places[t.number], v, t) for t, v in zip(trials, values) if member(t)),
            key=lambda item: item[:2],
        )
        if not chosen:
            continue
        line = name == "Pareto front" and len(chosen) > 1
        found.add_trace(
            go.Scatter(
                x=[x for x, _, _ in chosen],
                y=[y for _, y, _ in chosen],
                text=[hover(facts, t) for _, _, t in chosen],
                name=name,
                mode="lines+markers" if line else "markers",
                marker=marker,
                line={"color": VERMILLION, "dash": "dot", "width": 1.5} if line else None,
                hovertemplate="%{text}<extra></extra>",
            )
        )
