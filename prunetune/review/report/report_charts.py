"""The report's figures: which ones, how they are introduced, and as JSON that a page may hold."""

import json
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go
from plotly.utils import PlotlyJSONEncoder

from prunetune.review import plots
from prunetune.review.decoded import LEAST_TRIALS, importances
from prunetune.review.facts import StudyFacts
from prunetune.review.report import sample_plots, type_plots
from prunetune.review.report.parallel import parallel
from prunetune.review.report.tables import Table
from prunetune.review.theme import percent, title_of

_SHORT = {
    "front": "Cost",
    "history-0": "History",
    "schedules": "Schedules",
    "importance": "Importance",
    "parallel": "Parameters",
    "types": "Losses",
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
    heading, about = _front_words(facts)
    costs = chart_of("front", heading, plots.front(facts), about, nothing)
    if len(facts.metrics) == 2:
        out = [costs, _growth(facts, nothing)]
    else:
        out = [*_histories(facts, nothing), costs]
    out.append(
        chart_of(
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
        chart_of(
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
        chart_of(
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


def _histories(facts: StudyFacts, nothing: str) -> list[Chart]:
    out = []
    for k in range(len(facts.metrics)):
        name = "" if len(facts.metrics) == 1 else f": {facts.short(k)}"
        better = "higher" if facts.maximised[k] else "lower"
        about = f"Each point is a trial; {better} is better."
        found = plots.history(facts, k)
        out.append(chart_of(f"history-{k}", f"History{name}", found, about, nothing))
    return out


def _growth(facts: StudyFacts, nothing: str) -> Chart:
    about = (
        "Trials have other budgets, so no one metric says how far the search is: the area of cost "
        "and metric that the front leaves behind does."
    )
    return chart_of("history-0", "How the front grew", plots.growth(facts), about, nothing)


def _front_words(facts: StudyFacts) -> tuple[str, str]:
    if len(facts.metrics) > 1:
        return "The front", (
            "To the left is cheaper, below is better. On the line no other trial is better in "
            "both; its knee is farthest below the line between its ends."
        )
    return (
        "Against cost",
        "Red: no other trial has a lower value at as few tokens. A search meets its budget "
        "exactly, so with one budget all trials stand above one place; a front takes "
        "--objective pareto or --max-drop.",
    )


def _sample_charts(facts: StudyFacts) -> list[Chart]:
    measured, rows = type_plots.by_type(facts)
    names = list(rows[0].losses) if rows else []
    table = Table(
        f"{measured} lost against unpruned, points, sample by sample; 95% interval over pictures",
        ("kind of question", ">samples", ">unpruned accuracy", *(f">{n} loses" for n in names)),
        type_plots.type_cells(rows),
    )
    missing = "The held-out data names no kinds of questions."
    if facts.detail is None:
        missing = "Held-out data has not been measured yet."
    return [
        chart_of(
            "types",
            "What is lost, by kind of question",
            type_plots.types_figure(facts),
            "To the right more is lost. Bars are 95% intervals: few samples of a kind say little; "
            "the largest of many losses is partly chance.",
            missing,
            table if rows else None,
        ),
        chart_of(
            "gaps",
            "How the gap is spread over samples",
            sample_plots.gap_distribution(facts),
            "The last bar holds everything from there on.",
            "No trial has been measured sample by sample.",
        ),
    ]


def chart_of(
    id_: str,
    heading: str,
    found: go.Figure | None,
    about: str,
    missing: str,
    table: Table | None = None,
) -> Chart:
    """Return a figure as the page takes it.

    Args:
        id_: Of its element.
        heading: Of its section.
        found: The figure; None where there is nothing to draw.
        about: How to read it.
        missing: Why there is nothing.
        table: The same in numbers.
    """
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
