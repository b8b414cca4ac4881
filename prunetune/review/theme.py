"""Colours, texts and shapes that all figures share.

Colours are Okabe and Ito's (2008), which readers with any colour vision tell apart; where a figure
needs more than colour, shapes and dashes differ too.
"""

import html
import textwrap
from typing import Any

import plotly.graph_objects as go

BLUE, VERMILLION, GREEN, ORANGE = "#0072B2", "#D55E00", "#009E73", "#E69F00"
SKY, PURPLE, YELLOW, GREY = "#56B4E9", "#CC79A7", "#F0E442", "#8C8C8C"
SERIES = (VERMILLION, BLUE, GREEN, PURPLE, ORANGE)
DASHES = ("solid", "dash", "dot", "dashdot", "longdash")
SHAPES = ("circle", "square", "diamond", "triangle-up", "x")
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Liberation Sans', sans-serif"
_INK, _GRID = "#3a3f47", "rgba(128, 128, 128, 0.25)"
_LONGEST = 60
AXIS_WIDTH = 34
"""Characters of a line of a vertical axis' name."""


def plain(text: object, longest: int = _LONGEST) -> str:
    """Return text from data so that a figure shows it as it is: its markup means nothing."""
    words = " ".join(str(text).split())
    short = words if len(words) <= longest else f"{words[: longest - 1]}…"
    return html.escape(short, quote=False)


def figure(title: str, x: str, y: str, **layout: Any) -> go.Figure:
    """Return an empty figure.

    Args:
        title: What to see, as a sentence.
        x: Name and unit of the horizontal axis.
        y: Name and unit of the vertical axis.
        layout: Anything else of plotly's layout.
    """
    found = go.Figure()
    axis = {
        "gridcolor": _GRID,
        "zerolinecolor": _GRID,
        "linecolor": _GRID,
        "automargin": True,
        "title": {"standoff": 8},
    }
    found.update_layout(
        title={"text": wrapped(title), "x": 0, "xanchor": "left", "font": {"size": 15}},
        font={"family": FONT, "size": 13, "color": _INK},
        paper_bgcolor="rgba(0, 0, 0, 0)",
        plot_bgcolor="rgba(0, 0, 0, 0)",
        height=400,
        margin={"l": 8, "r": 12, "t": 96, "b": 8},
        legend={"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom", "title": {"text": ""}},
        hoverlabel={"bgcolor": "#24292f", "font": {"color": "#ffffff", "family": FONT}},
        hovermode="closest",
        dragmode=False,
        xaxis={**axis, "title_text": html.escape(x, quote=False)},
        yaxis={**axis, "title_text": wrapped(y, AXIS_WIDTH)},
        **layout,
    )
    return found


def wrapped(text: str, width: int = 76) -> str:
    """Return a title in lines, for plotly; its markup means nothing."""
    lines = textwrap.wrap(" ".join(text.split()), width)
    return "<br>".join(html.escape(line, quote=False) for line in lines)


def title_of(found: go.Figure) -> str:
    """Return a figure's title as plain text."""
    return html.unescape(str(found.layout.title.text or "").replace("<br>", " "))


def percent(share: float | None, digits: int = 3) -> str:
    """Return a share as per cent with so many significant digits, or a dash."""
    return "-" if share is None else f"{100 * share:.{digits}g}%"


def tenths(share: float | None) -> str:
    """Return a share as per cent with one decimal, for columns, or a dash."""
    return "-" if share is None else f"{100 * share:.1f}%"


def number(value: float | None) -> str:
    """Return a metric's value with four significant digits, or a dash."""
    if value is None:
        return "-"
    return f"{value:.4f}" if 0.001 <= abs(value) < 100 else f"{value:.3g}"
