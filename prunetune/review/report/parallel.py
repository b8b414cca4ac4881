"""Parallel coordinates of decoded parameters, in vector lines: they print and need no GPU."""

from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go

from prunetune.review.decoded import Value, table
from prunetune.review.facts import StudyFacts
from prunetune.review.theme import BLUE, GREY, VERMILLION, figure, plain

_BEST_SHARE = 0.1
_MOST_LINES = 400
_MOST_AXES = 9


def parallel(facts: StudyFacts, order: Sequence[str] = ()) -> go.Figure | None:
    """Draw each trial as a line over its decoded parameters, the best tenth on top.

    Args:
        facts: Of the study.
        order: Parameters, the most important first; by default as they come.
    """
    trials = [t for t in facts.trials if t.measured and t.config is not None]
    rows = table(trials)
    names = _axes(rows, order)
    if len(trials) < 2 or not names:
        return None
    ranked = sorted(range(len(trials)), key=lambda i: (facts.loss(trials[i]), i))
    count = max(1, round(_BEST_SHARE * len(trials)))
    best, rest = ranked[:count], ranked[count : count + _MOST_LINES]
    value_axis = facts.axis()
    columns = [[row.get(name) for row in rows] for name in names]
    scales = [_Scale(column) for column in columns]
    values = [t.values[0] for t in trials]
    columns.append(list(values))
    scales.append(_Scale(values))
    title = _title(rows, names, best, rest)
    found = figure(title, "decoded parameter", "lowest to highest value of each")
    groups = [
        ("other trials", rest, GREY, 1.0, 0.35),
        (f"best tenth ({count})", best, BLUE, 2.0, 0.9),
    ]
    for name, members, colour, width, opacity in groups:
        if members:
            found.add_trace(_lines(name, members, columns, scales, colour, width, opacity))
    found.add_trace(
        _lines(plain(f"best: {trials[best[0]].name}"), best[:1], columns, scales, VERMILLION, 4, 1)
    )
    _label(found, [*names, value_axis], scales)
    return found


def _axes(rows: Sequence[dict[str, Value]], order: Sequence[str]) -> list[str]:
    known = list(dict.fromkeys([*order, *(name for row in rows for name in row)]))
    varied = []
    for name in known:
        held = [row[name] for row in rows if name in row]
        # A gap in most lines would say nothing.
        if len(set(held)) > 1 and len(held) > len(rows) / 2:
            varied.append(name)
    return varied[:_MOST_AXES]


class _Scale:
    """Places the values of one axis on [0, 1]."""

    def __init__(self, values: Sequence[Any]) -> None:
        known = [v for v in values if v is not None]
        self.names = sorted({str(v) for v in known}) if _texts(known) else []
        self.low: float = 0.0 if self.names else min(known)
        self.high: float = 1.0 if self.names else max(known)

    def place(self, value: Any) -> float | None:
        if value is None:
            return None
        if self.names:
            return (self.names.index(str(value)) + 0.5) / len(self.names)
        return float((value - self.low) / ((self.high - self.low) or 1))

    def ticks(self) -> list[tuple[float, str]]:
        if self.names:
            return [((i + 0.5) / len(self.names), name) for i, name in enumerate(self.names)]
        return [(0.0, _short(self.low)), (1.0, _short(self.high))]


def _texts(values: Sequence[Any]) -> bool:
    return any(isinstance(v, str) for v in values)


def _short(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.3g}"


def _lines(
    name: str,
    members: Sequence[int],
    columns: Sequence[Sequence[Any]],
    scales: Sequence[_Scale],
    colour: str,
    width: float,
    opacity: float,
) -> go.Scatter:
    x: list[int | None] = []
    y: list[float | None] = []
    for i in members:
        x += [*range(len(columns)), None]
        y += [scale.place(column[i]) for column, scale in zip(columns, scales)]
        y.append(None)
    return go.Scatter(
        x=x,
        y=[None if v is None else round(v, 4) for v in y],
        name=name,
        mode="lines",
        line={"color": colour, "width": width},
        opacity=opacity,
        hoverinfo="skip",
    )


def _label(found: go.Figure, names: Sequence[str], scales: Sequence[_Scale]) -> None:
    found.update_xaxes(
        tickvals=list(range(len(names))),
        ticktext=[plain(name).replace("weight of ", "weight of<br>") for name in names],
        tickangle=-35,
        range=[-0.4, len(names) - 0.4],
        showgrid=True,
        gridwidth=2,
    )
    found.update_yaxes(showticklabels=False, showgrid=False, zeroline=False, range=[-0.12, 1.12])
    for k, scale in enumerate(scales):
        for place, text in scale.ticks():
            found.add_annotation(
                x=k,
                y=place,
                text=plain(text),
                showarrow=False,
                font={"size": 11},
                yshift=0 if scale.names else (-11 if place == 0 else 11),
            )
    found.update_layout(height=470)


def _title(
    rows: Sequence[dict[str, Value]], names: Sequence[str], best: Sequence[int], rest: Sequence[int]
) -> str:
    """Return a sentence on the parameter that the best trials agree on most."""
    narrow: tuple[float, str, float, float] | None = None
    for name in names:
        every: list[Any] = [rows[i][name] for i in (*best, *rest) if name in rows[i]]
        held: list[Any] = [rows[i][name] for i in best if name in rows[i]]
        if not held or _texts(every):
            continue
        low, high = min(held), max(held)
        share = (high - low) / ((max(every) - min(every)) or 1)
        if narrow is None or share < narrow[0]:
            narrow = share, name, low, high
    if narrow is None or not rest:
        return "Each line is one trial over its decoded parameters"
    _, name, low, high = narrow
    span = f"always {_short(low)}" if low == high else f"{_short(low)} to {_short(high)}"
    return f"The best tenth of the trials agree most on the {name}: {span}"
