"""``prunetune report A B``: two studies in one self-contained page."""

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from prunetune.errors import ConfigError
from prunetune.files import write_atomically
from prunetune.review.facts import study_facts
from prunetune.review.report.report import plotly_script, templates
from prunetune.review.report.report_charts import chart_of
from prunetune.review.report.report_file import Written
from prunetune.review.report.versus import (
    NAMES,
    Side,
    figures_table,
    spec_table,
    verdicts,
    words,
)
from prunetune.review.report.versus_charts import both_fronts, both_schedules, both_types
from prunetune.review.words import MARKS

if TYPE_CHECKING:
    from prunetune.study.find import Found

VERSUS_FILE = "comparison.html"


def render_versus(one: Side, other: Side, now: datetime | None = None) -> str:
    """Return the page; it holds everything it shows."""
    charts = [
        chart_of(
            "front",
            "Both at their cost",
            both_fronts(one, other),
            "To the left is cheaper, below is better; calibration data.",
            "They minimise other metrics, or have no complete trial.",
        ),
        chart_of(
            "types",
            "What is lost, by kind of question",
            both_types(one, other),
            "To the right more is lost; held-out data.",
            "There are no kinds of questions that both were measured on.",
        ),
        chart_of(
            "schedules",
            "Where tokens go",
            both_schedules(one, other),
            "Retention is cumulative: the share of all image tokens that a layer computes on.",
            "One of them has no config yet.",
        ),
    ]
    return (
        templates()
        .get_template("versus.html.j2")
        .render(
            said=words(one, other),
            sides=[
                (name, study, text, tone, MARKS[tone], side.shown)
                for side, (name, study, text, tone) in zip((one, other), verdicts(one, other))
            ],
            figures=figures_table(one, other),
            spec=spec_table(one, other),
            charts=charts,
            made=(now or datetime.now(UTC)).isoformat(timespec="seconds"),
            plotly=plotly_script(),
        )
    )


def write_versus(found: "tuple[Found, Found]", path: Path) -> Written:
    """Write the page whole or not at all.

    Raises:
        ConfigError: It cannot be written there.
    """
    one, other = (
        Side(name, study_facts(side.study, side.spec), side.shown)
        for name, side in zip(NAMES, found)
    )
    page = render_versus(one, other).encode("utf-8", "replace")
    try:
        write_atomically(path, page)
    except OSError as error:
        raise ConfigError(
            f"--output: cannot write {str(path)!r}: {error.strerror or error}; choose another place"
        ) from None
    return Written(path, len(page), words(one, other), "")
