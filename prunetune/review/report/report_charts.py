"""The report's figures: which ones, how they are introduced, and as JSON that a page may hold."""

import json
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go
from plotly.utils import PlotlyJSONEncoder

from prunetune.review import plots
from prunetune.review.decoded import LEAST_TRIALS, importances
from prunetune.review.facts import StudyFacts
from prunetune.review.report import sample_plots
from prunetune.review.report.parallel import parallel
from prunetune.review.report.tables import Table
from prunetune.review.theme import percent, tenths, title_of

_SHORT = {
    "front": "Cost",
    "schedules": "Schedules",
    "importance": "Importance",
    "parallel": "Parameters",
    "types": "Question types",
    "gaps": "Gaps",
}


@dataclass(frozen=True)
class Chart:
    """A figure on the page.

    Attributes:
        id: Of its element.
        short: Of its link.
        heading: Of its section.
        title: What to see, as a sentence.
        about: How to read it.
        data: The figure as JSON that may stand in a page; empty where there is nothing to draw.
        height: CSS pixels that the figure takes: the page keeps them free until it is drawn.
        missing: Why there is nothing.
        table: The same in numbers, where the trials' table does not have it.
    """

    id: str
    short: str
    heading: str
    title: str
    about: str
    data: str
    height: int
    missing: str
    table: Table | None = None


def charts(facts: StudyFacts) -> list[Chart]:
    """Return the page's figures, in order."""
    shares = importances(facts)
    nothing = "No trial has been measured yet."
    early = f"This needs {LEAST_TRIALS} measured trials whose parameters differ."
    out = []
    for k in range(len(facts.metrics)):
        name = "" if len(facts.metrics) == 1 else f": {facts.short(k)}"
        about = "Each point is a trial; lower is better."
        if facts.maximised[k]:
            about = "Each point is a trial; higher is better."
        out.append(
            _chart(f"history-{k}", f"History{name}", plots.history(facts, k), about, nothing)
        )
    heading, about = _front_words(facts)
    out.append(_chart("front", heading, plots.front(facts), about, nothing))
    out.append(
        _chart(
            "schedules",
            "Where tokens go",
            plots.schedules(facts),
            "Retention is cumulative: the share of all image tokens that a layer computes on.",
            nothing,
        )
    )
    rows = tuple((name, percent(share, 3)) for name, share in shares.items())
    table = Table("PED-ANOVA importances", ("decoded parameter", ">importance"), rows)
    out.append(
        _chart(
            "importance",
            "What mattered",
            plots.importance(facts, shares),
            "PED-ANOVA compares where the best tenth of the trials lies with where all of them "
            "lie; trials that were stopped early count with their estimate. It says what the "
            "search was sensitive to, not which value is good.",
            early,
            table if rows else None,
        )
    )
    out.append(
        _chart(
            "parallel",
            "Trials over their parameters",
            parallel(facts, list(shares)),
            "Each line is a trial, each axis a decoded parameter with its own range, the most "
            "important first; where blue lines meet, good trials agree.",
            "This needs two measured trials whose parameters differ.",
        )
    )
    out += _sample_charts(facts)
    return out


def _front_words(facts: StudyFacts) -> tuple[str, str]:
    if len(facts.metrics) > 1:
        return "The front", "Stars: no other trial is better in every objective."
    return (
        "Cost against retention",
        "Stars: no other trial has a lower value at as few tokens. A search meets its budget "
        "exactly, so with one budget all trials stand above one place.",
    )


def _sample_charts(facts: StudyFacts) -> list[Chart]:
    measured, rows = sample_plots.by_type(facts)
    names = list(dict.fromkeys(name for row in rows for name in row.shares))
    cells = tuple(
        (
            row.name,
            str(row.count),
            *(
                f"{tenths(row.shares[n][0])} ({tenths(row.shares[n][1])} to "
                f"{tenths(row.shares[n][2])})"
                if n in row.shares
                else "-"
                for n in names
            ),
        )
        for row in rows
    )
    table = Table(
        f"{measured} by type, bootstrap 95% interval",
        ("type of question", ">samples", *(f">{name}" for name in names)),
        cells,
    )
    missing = "The held-out data has no types of questions."
    if facts.detail is None:
        missing = "Held-out data has not been measured yet."
    return [
        _chart(
            "types",
            "Kinds of questions",
            sample_plots.types_figure(facts),
            "Bars are 95% intervals: few samples of a kind say little.",
            missing,
            table if rows else None,
        ),
        _chart(
            "gaps",
            "How the gap is spread over samples",
            sample_plots.gap_distribution(facts),
            "The last bar holds everything from there on.",
            "No trial has been measured sample by sample.",
        ),
    ]


def _chart(
    id_: str,
    heading: str,
    found: go.Figure | None,
    about: str,
    missing: str,
    table: Table | None = None,
) -> Chart:
    if found is None:
        return Chart(id_, _SHORT.get(id_, heading), heading, "", "", "", 0, missing)
    title = title_of(found)
    # The page sets the title as text of its own: it wraps, prints and is read aloud.
    found = go.Figure(found)
    found.update_layout(title=None, margin={"t": 12}, template=go.layout.Template())
    height = int(found.layout.height)
    data = _for_script(found.to_plotly_json())
    return Chart(id_, _SHORT.get(id_, heading), heading, title, about, data, height, "", table)


def _for_script(data: Any) -> str:
    """Return JSON that ends no script element and opens no comment, whatever is in it."""
    text = json.dumps(data, cls=PlotlyJSONEncoder, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text
