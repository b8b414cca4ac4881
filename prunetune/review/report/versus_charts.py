"""Figures of two studies at once."""

from collections.abc import Sequence

import plotly.graph_objects as go

from prunetune.budget import retention_by_layer
from prunetune.review.facts import StudyFacts, TrialFacts
from prunetune.review.points import hover, log_if_wide
from prunetune.review.report.report import chosen_config
from prunetune.review.report.type_plots import MOST_TYPES, add_losses, by_type, name_kinds
from prunetune.review.report.versus import Side
from prunetune.review.theme import BLUE, VERMILLION, figure, plain

_COLOURS = (VERMILLION, BLUE)
_SHAPES = ("circle", "square")


def both_fronts(one: Side, other: Side) -> go.Figure | None:
    """Draw the trials of both by cost and metric; None where these are not the same."""
    sides = one, other
    if one.facts.metrics[0] != other.facts.metrics[0]:
        return None
    shared = one.facts.metrics == other.facts.metrics and len(one.facts.metrics) == 2
    name = one.facts.axis(1) if shared else "mean retention (share of image tokens)"
    title = "What each found at which cost; on a line no other trial of that study is better"
    found = figure(title, f"cost: {name}", one.facts.axis(0))
    values: list[float] = []
    for side, colour, shape in zip(sides, _COLOURS, _SHAPES):
        known = [(_cost(side.facts, t, shared), t) for t in side.facts.complete]
        points = sorted(((c, t) for c, t in known if c is not None), key=lambda x: x[0])
        if not points:
            return None
        values += [t.values[0] for _, t in points]
        front = [(c, t) for c, t in points if t.number in side.facts.front]
        for group, size, opacity, mode in (
            (points, 6, 0.35, "markers"),
            (front, 10, 1.0, "lines+markers"),
        ):
            found.add_trace(_points(side, group, colour, shape, size, opacity, mode))
    found.update_xaxes(tickformat=".3~%" if name.endswith(")") and "MiB" not in name else None)
    log_if_wide(found, values)
    return found


def _cost(facts: StudyFacts, trial: TrialFacts, shared: bool) -> float | None:
    return trial.values[1] if shared else trial.retention


def _points(
    side: Side,
    points: Sequence[tuple[float, TrialFacts]],
    colour: str,
    shape: str,
    size: int,
    opacity: float,
    mode: str,
) -> go.Scatter:
    front = "lines" in mode
    return go.Scatter(
        x=[c for c, _ in points],
        y=[t.values[0] for _, t in points],
        text=[f"{side.name}: {hover(side.facts, t)}" for _, t in points],
        name=f"{side.name}, front" if front else f"{side.name}, all",
        mode=mode,
        line={"color": colour, "shape": "hv", "width": 2} if front else None,
        marker={"color": colour, "symbol": shape, "size": size, "opacity": opacity},
        hovertemplate="%{text}<extra></extra>",
    )


def both_schedules(one: Side, other: Side) -> go.Figure | None:
    """Draw the share of image tokens that each layer computes on, for both configs."""
    found = figure(
        "Where each config drops tokens", "depth (share of the decoder layers)", "retention"
    )
    for side, colour, dash in zip((one, other), _COLOURS, ("solid", "dash")):
        config, trial = chosen_config(side.facts)
        if config is None:
            return None
        depth = config.model.num_layers
        shares = retention_by_layer(config.stages, depth)
        found.add_trace(
            go.Scatter(
                x=[k / depth for k in range(depth + 1)],
                y=[*shares, shares[-1]],
                name=f"{side.name}: trial {trial}",
                mode="lines",
                line={"color": colour, "dash": dash, "width": 3, "shape": "hv"},
                hovertemplate="%{y:.3~%}<extra>%{fullData.name}</extra>",
            )
        )
    found.update_yaxes(tickformat=".0%", rangemode="tozero")
    found.update_xaxes(tickformat=".0%")
    return found


def both_types(one: Side, other: Side) -> go.Figure | None:
    """Draw what both lose by kind of question; None where they share no kinds."""
    (measured, rows), (too, others) = by_type(one.facts), by_type(other.facts)
    if measured != too:
        return None
    tables = [{row.name: row.losses["tuned"] for row in side} for side in (rows, others)]
    kinds = [name for name in tables[0] if name in tables[1]][:MOST_TYPES]
    if not kinds:
        return None
    axis = f"{measured} lost against unpruned (points, 95% interval)"
    most = max(kinds, key=lambda kind: abs(tables[1][kind].mean - tables[0][kind].mean))
    a, b = (_told(100 * side[most].mean) for side in tables)
    title = f"They differ most on “{most}” questions: A {a} there, B {b}"
    found = figure(title, axis, "kind of question")
    for k, (side, losses) in enumerate(zip((one, other), tables)):
        shown = [losses[kind] for kind in kinds]
        add_losses(
            found,
            shown,
            0.2 * (k - 0.5),
            name=side.name,
            marker={"color": _COLOURS[k], "symbol": _SHAPES[k], "size": 10},
            hovertemplate="%{x:.1f} points<extra>%{fullData.name}</extra>",
        )
    name_kinds(found, [plain(kind, 24) for kind in kinds])
    return found


def _told(points: float) -> str:
    return (
        f"gains {-points:.1f} points" if points < -0.05 else f"loses {max(0.0, points):.1f} points"
    )
