"""``report.html``: one self-contained page about a study, to read, print and send around."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from plotly.offline import get_plotlyjs

from prunetune.config import PruningConfig
from prunetune.review.facts import StudyFacts
from prunetune.review.report.cards import cards, columns
from prunetune.review.report.provenance import command, provenance_rows
from prunetune.review.report.report_charts import charts
from prunetune.review.report.tables import (
    front_table,
    held_out_table,
    presets_table,
    saved_table,
    tested_table,
    trials_table,
)
from prunetune.review.report.worst import Worst
from prunetune.review.saved import saved_words
from prunetune.review.words import MARKS, rest_sentences, stage_words, verdict

TEMPLATES = Path(__file__).parent / "templates"


@dataclass(frozen=True)
class Pictures:
    """The worst samples, and why something of them is missing.

    Attributes:
        samples: The largest gap first.
        missing: Why there are no pictures; empty where there are.
        changed: Why pictures and answers do not go with the study's figures; empty where they do.
    """

    samples: Sequence[Worst] = ()
    missing: str = ""
    changed: str = ""


def chosen_config(facts: StudyFacts) -> tuple[PruningConfig | None, int | None]:
    """Return the config the page is about, and its trial: the search's result, else the best."""
    if facts.detail is not None:
        number_ = int(facts.detail["trial"])
        return PruningConfig.parse(facts.detail["config"], origin="the study's result"), number_
    best = facts.best
    return (best.config, best.number) if best else (None, None)


def render(facts: StudyFacts, place: str, pictures: Pictures, now: datetime | None = None) -> str:
    """Return the page.

    Args:
        facts: Of the study.
        place: Folder or storage URL of the study, without a password.
        pictures: Its worst samples.
        now: When the page is made; by default now.
    """
    config, trial = chosen_config(facts)
    said, tone = verdict(facts)
    shown, saving = cards(facts, trial), facts.saving(trial)
    made = (now or datetime.now(UTC)).isoformat(timespec="seconds")
    return (
        templates()
        .get_template("report.html.j2")
        .render(
            facts=facts,
            verdict=said,
            tone=tone,
            mark=MARKS[tone],
            since=_since(facts),
            cards=shown,
            columns=columns(len(shown)),
            saved=saved_table(saving) if saving else None,
            saving_words=saved_words(saving) if saving else "",
            tested=tested_table(facts),
            config=config,
            trial=trial,
            stages=stage_words(config) if config else [],
            rest=rest_sentences(config) if config else [],
            config_json=config.to_json() if config else "",
            held_out=held_out_table(facts),
            points=front_table(facts),
            presets=presets_table(facts),
            charts=charts(facts),
            pictures=pictures,
            trials=trials_table(facts),
            provenance=provenance_rows(facts, place),
            command=command(facts),
            spec=facts.spec.to_toml(),
            made=made,
            plotly=plotly_script(),
        )
    )


def templates() -> Environment:
    """Return what fills in the pages; everything from data is escaped."""
    return Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def plotly_script() -> str:
    """Return plotly.js as a script of a page, without the wrapper that makes it a module.

    A browser parses a wrapped function once more: 0.3 of the 1.2 s that plotly.js takes to start.
    """
    script = get_plotlyjs()
    licence, begun, rest = script.partition("(\n function(root, factory)")
    _, strict, rest = rest.partition('"use strict";')
    body, ended, after = rest.rpartition("return Plotly;\n}));")
    whole = begun and strict and ended and not after.strip()
    return f"{licence}{strict}{body}" if whole else script


def _since(facts: StudyFacts) -> str:
    """Return what happened after the result; empty where nothing did."""
    record = facts.record or facts.front_record
    if record is None or facts.settled:
        return ""
    best = facts.best
    ended = sum(t.state in ("complete", "stopped early", "failed") for t in facts.trials)
    more = ended - int(record["ended"])
    now = f" Best on calibration data is now {best.name}." if best else ""
    return (
        f"{more} more trial{'s have' if more != 1 else ' has'} ended since this result, which is "
        f"of {record['created']}.{now} The search's end measures held-out data again."
    )
