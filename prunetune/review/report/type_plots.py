"""What is lost on which kind of question, against the unpruned model."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go

from prunetune.review.facts import StudyFacts
from prunetune.review.report.sample_plots import best_baseline
from prunetune.review.theme import BLUE, VERMILLION, figure, plain
from prunetune.study.outcome.promise import Loses, lost

MOST_TYPES = 14


@dataclass(frozen=True)
class TypeRow:
    """Results on one kind of question.

    Attributes:
        name: Of the kind.
        count: Samples.
        losses: By config (``tuned``, a baseline): what it loses against unpruned, sample by sample.
        unpruned: Accuracy without pruning; None where there are no answers.
    """

    name: str
    count: int
    losses: dict[str, Loses]
    unpruned: float | None


def by_type(facts: StudyFacts) -> tuple[str, list[TypeRow]]:
    """Return what is lost (``accuracy`` or ``agreement``) and a row a kind, the largest loss first.

    Rows are empty where the held-out data has no kinds, or was not measured.
    """
    if facts.detail is None:
        return "", []
    samples, configs = facts.detail["samples"], facts.detail["configs"]
    types = samples["type"]
    # Studies of before do not say: then each sample counts as a picture of its own.
    pictures = [str(p) for p in samples.get("picture") or range(len(types))]
    has_answers = any(right is not None for right in samples["unpruned"])
    before = samples["unpruned"] if has_answers else [True] * len(types)
    names = ["tuned", *filter(None, [best_baseline(facts)])]
    rows = []
    for kind in sorted({t for t in types if t}):
        places = [i for i, t in enumerate(types) if t == kind and before[i] is not None]
        if not places:
            continue
        shown = [pictures[i] for i in places]
        column = "correct" if has_answers else "agrees"
        losses = {
            name: lost([float(before[i]) - _right(configs[name][column][i]) for i in places], shown)
            for name in names
        }
        share = sum(before[i] for i in places) / len(places)
        rows.append(TypeRow(kind, len(places), losses, share if has_answers else None))
    rows.sort(key=lambda row: (-row.losses["tuned"].mean, row.name))
    return "accuracy" if has_answers else "agreement", rows


def _right(value: Any) -> float:
    return float(bool(value))


def types_figure(facts: StudyFacts) -> go.Figure | None:
    """Draw what each kind of question loses: tuned, and the best baseline."""
    name, rows = by_type(facts)
    if not rows:
        return None
    shown = rows[:MOST_TYPES]
    axis = f"{name} lost against unpruned (points, 95% interval)"
    chart = figure(_title(name, rows), axis, "kind of question")
    labels = [f"{plain(r.name, 24)} (n = {r.count})" for r in shown]
    sources = list(shown[0].losses)
    for k, source in enumerate(sources):
        tuned = source == "tuned"
        found = [row.losses[source] for row in shown]
        colour = VERMILLION if tuned else BLUE
        add_losses(
            chart,
            found,
            0.2 * (k - (len(sources) - 1) / 2),
            name=plain(source if tuned else f"{source} (best baseline)"),
            marker={"color": colour, "symbol": "circle" if tuned else "square", "size": 10},
            text=[f"{label}: {_points(one)}" for label, one in zip(labels, found)],
            hovertemplate="%{text}<extra>%{fullData.name}</extra>",
        )
    name_kinds(chart, labels)
    return chart


def add_losses(chart: go.Figure, losses: Sequence[Loses], lift: float, **more: Any) -> None:
    """Draw what a config loses on each kind of question, with its interval.

    Args:
        chart: Kinds are its rows, see ``name_kinds``.
        losses: One a kind.
        lift: How far beside a row's middle, in rows.
        more: Of the trace.
    """
    chart.add_trace(
        go.Scatter(
            x=[100 * one.mean for one in losses],
            y=[i + lift for i in range(len(losses))],
            mode="markers",
            error_x={
                "type": "data",
                "symmetric": False,
                "array": [100 * (one.high - one.mean) for one in losses],
                "arrayminus": [100 * (one.mean - one.low) for one in losses],
                "width": 0,
                "thickness": 2,
            },
            **more,
        )
    )


def name_kinds(chart: go.Figure, labels: Sequence[str]) -> None:
    """Name the rows of a chart by kind of question, and mark where nothing is lost."""
    chart.add_vline(x=0, line={"color": "#8C8C8C", "width": 1.5})
    places = list(range(len(labels)))
    chart.update_yaxes(tickvals=places, ticktext=labels, autorange="reversed", zeroline=False)
    chart.update_layout(height=190 + 44 * len(labels))


def _title(name: str, rows: Sequence[TypeRow]) -> str:
    worst = rows[0]
    loses = worst.losses["tuned"]
    if loses.mean <= 0:
        return f"No kind of question loses {name} against the unpruned model"
    of = "" if worst.unpruned is None else f" of {100 * worst.unpruned:.1f}%"
    doubt = "" if loses.low > 0 else ", which is within noise"
    return (
        f"The largest loss of {name} is on “{worst.name}” questions: {_points(loses)} points{of}"
        f"{doubt}"
    )


def _points(loses: Loses) -> str:
    return f"{100 * loses.mean:.1f} ({100 * loses.low:.1f} to {100 * loses.high:.1f})"


def type_cells(rows: Sequence[TypeRow]) -> tuple[tuple[str, ...], ...]:
    """Return the rows of a table: kind, samples, accuracy of unpruned, what each config loses."""
    return tuple(
        (
            row.name,
            str(row.count),
            "-" if row.unpruned is None else f"{100 * row.unpruned:.1f}%",
            *(_points(one) for one in row.losses.values()),
        )
        for row in rows
    )
