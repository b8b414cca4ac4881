"""Notes of a study and of its best trials, in Markdown, as Optuna dashboard shows them."""

import re
from collections.abc import Sequence

from prunetune.config import PruningConfig, Stage
from prunetune.review.facts import StudyFacts, TrialFacts
from prunetune.review.saved import saved_rows, saved_words
from prunetune.review.theme import number, percent
from prunetune.review.words import MARKS, verdict

MARK = "*Above this line prunetune writes; below it, what you write stays.*"
_SPECIAL = re.compile(r"([\\`*_{}\[\]()<>#+\-.!|~$^:=&\"'/@])")


def markdown(text: object) -> str:
    """Return text from data so that Markdown shows it as it is, on one line: no markup, no HTML."""
    plain = "".join(c if c.isprintable() else " " for c in str(text))
    return _SPECIAL.sub(r"\\\1", " ".join(plain.split()))


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table; cells are taken as Markdown."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def kept_below(body: str, before: str) -> str:
    """Return a note with ``body`` above the mark, and below it what people wrote before."""
    above, mark, below = before.partition(MARK)
    own = below if mark else above
    return f"{body}\n\n{MARK}\n\n{own.strip()}".rstrip() + "\n"


def study_note(facts: StudyFacts) -> str:
    """Return the note of a study: verdict, best trial, the next best, and how to read the page."""
    best, spec = facts.best, facts.spec
    lines = [f"## {markdown(facts.name)}", ""]
    if facts.settled and facts.result is not None:
        said, tone = verdict(facts)
        lines += [f"{MARKS[tone]} **{markdown(said)}**", ""]
    state = f"{facts.finished} of {spec.trials} trials finished"
    running = f", {facts.running} running" if facts.running else ""
    lines.append(f"Model {markdown(spec.model)}; {state}{running}.")
    if best is None:
        return "\n".join([*lines, "", "No trial has finished yet."])
    if (saving := facts.saving(best.number)) is not None:
        rows = [tuple(map(markdown, row)) for row in saved_rows(saving)]
        lines += ["", "### What it saves", "", markdown(saved_words(saving)), ""]
        lines += [table(("on that device", "unpruned", "pruned"), rows)]
    lines += ["", f"### {_title(facts, best)}", "", figures(facts, best), ""]
    if best.config is not None:
        lines += ["### Schedule", "", schedule(best.config), ""]
    if len(facts.metrics) == 2 and facts.along:
        lines += ["### The front", "", _front(facts), ""]
    others = [t for t in facts.ranked if t.number != best.number][:4]
    if others and len(facts.metrics) != 2:
        rows = [
            (markdown(t.name), _values(facts, t), markdown(t.attrs.get("schedule", "")))
            for t in others
        ]
        lines += ["### Next", "", table(("trial", _metrics(facts), "layer: retention"), rows), ""]
    lines.append(
        "Reading the page: points of trials that were stopped early are estimates (*Include PRUNED "
        "trials* hides them); parameters are raw numbers in \\[0, 1\\], what they stand for is in "
        "the user attributes and in the notes of the best trials."
    )
    return "\n".join(lines)


def _title(facts: StudyFacts, best: TrialFacts) -> str:
    """Return what the note calls the trial that it shows."""
    ships = ((facts.result or {}).get("decision") or {}).get("trial")
    word = "Best"
    if len(facts.metrics) == 2:
        word = "Ships" if facts.settled and ships == best.number else "The front's knee"
    return f"{word}: {markdown(best.name)}"


def _front(facts: StudyFacts, count: int = 8) -> str:
    """Return points of the front as a table, from the cheapest to the dearest."""
    along, most = facts.along, max(1, min(count, len(facts.along)) - 1)
    points = [along[round(k * (len(along) - 1) / most)] for k in range(most + 1)]
    rows = [
        (
            markdown(t.name) + (" (knee)" if t is facts.knee else ""),
            *(number(value) for value in t.values),
            markdown(t.attrs.get("schedule", "")),
        )
        for t in points
    ]
    names = (markdown(facts.axis(k)) for k in range(2))
    return table(("trial", *names, "layer: retention"), rows)


def trial_note(
    facts: StudyFacts, trial: TrialFacts, counts: Sequence[str] = (), picture: str | None = None
) -> str:
    """Return the note of a trial: figures, decoded schedule, score weights, counts.

    Args:
        facts: The study.
        trial: One that was measured.
        counts: Lines about what was kept of the pictured samples.
        picture: Where their picture is, as a path on the dashboard's server.
    """
    lines = [f"## {markdown(trial.name)}", "", figures(facts, trial), ""]
    if trial.config is not None:
        lines += ["### Schedule", "", schedule(trial.config), ""]
        lines += ["### Scorers", "", weights(trial.config), ""]
    if counts:
        lines += ["### What is kept", "", *(f"- {markdown(line)}" for line in counts), ""]
    if picture is not None:
        lines += [f"![kept tokens, stage by stage]({picture})", ""]
    return "\n".join(lines).rstrip()


def figures(facts: StudyFacts, trial: TrialFacts) -> str:
    """Return what was measured of a trial as a table."""
    mark = "" if trial.complete else " (estimate: stopped early)"
    rows = [(markdown(facts.axis(k)), number(value) + mark) for k, value in enumerate(trial.values)]
    for key, shown in (("gap", "gap"), ("kl", "KL (nats)")):
        if facts.metrics[0] == {"gap": "cosine", "kl": "kl"}[key]:
            continue
        if (value := trial.number_of(key)) is not None:
            rows.append((shown, number(value)))
    for key, shown in (("top1_agreement", "next-token agreement"), ("accuracy", "accuracy")):
        if (value := trial.number_of(key)) is not None:
            rows.append((shown, percent(value)))
    if "mean_retention" not in facts.metrics:
        rows.append(("mean retention", percent(trial.retention)))
    used = trial.number_of("samples_used")
    rows.append(("calibration samples", "-" if used is None else f"{used:.0f}"))
    return table(("figure", "value"), rows)


def schedule(config: PruningConfig) -> str:
    """Return a config's stages as a table."""
    rows = []
    for stage in config.stages:
        where = "before the language model" if stage.layer == 0 else f"layer {stage.layer}"
        restorer = markdown(stage.restorer.name) if stage.restorer else "-"
        selector = markdown(stage.selector.name) if stage.selector else "-"
        left = percent(stage.retention), f"{1000 * stage.retention:.0f}"
        rows.append((where, *left, selector, f"{stage.mass:g}", restorer))
    columns = ("stage", "retention", "of 1000 image tokens", "selector", "mass", "restorer")
    tail = f"separators: {config.separators}; positions: {config.positions}"
    if config.pixels is not None:
        tail = f"pixels: {config.pixels.shown}, before all stages; {tail}"
    return f"{table(columns, rows)}\n\n{tail}"


def weights(config: PruningConfig) -> str:
    """Return a config's scorers as a table."""
    rows = []
    for stage in config.stages:
        for scorer in stage.scorers:
            more = scorer.model_dump(exclude={"name", "weight"})
            shown = ", ".join(f"{key} {_short(value)}" for key, value in more.items())
            where = f"layer {stage.layer}"
            rows.append((where, markdown(scorer.name), f"{scorer.weight:+.3g}", markdown(shown)))
        if not stage.scorers and stage.retention:
            rows.append((f"layer {stage.layer}", _without_scorers(config, stage), "", ""))
    return table(("stage", "scorer", "score weight", "settings"), rows)


def _without_scorers(config: PruningConfig, stage: Stage) -> str:
    before = config.stages[: config.stages.index(stage)]
    return "the stage before's scores" if any(s.scorers for s in before) else "none"


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _values(facts: StudyFacts, trial: TrialFacts) -> str:
    about = "" if trial.complete else "about "
    return about + ", ".join(number(value) for value in trial.values)


def _metrics(facts: StudyFacts) -> str:
    return ", ".join(markdown(facts.axis(k)) for k in range(len(facts.metrics)))
