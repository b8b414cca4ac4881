"""Configs and studies in words, for people who have not read a config file."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from prunetune.budget import stated_retention
from prunetune.config import PruningConfig, Stage
from prunetune.restorers import Restorer
from prunetune.review.facts import StudyFacts
from prunetune.scorers import Scorer
from prunetune.selectors import Selector

MARKS = {"good": "✓", "unsure": "!", "bad": "\N{MULTIPLICATION SIGN}"}
"""What stands before a verdict, by its tone."""


@dataclass(frozen=True)
class ScorerWords:
    """One scorer of a stage.

    Attributes:
        name: As in the config.
        weight: Signed score weight; the largest of a stage is 1 or -1.
        summary: What it looks at.
        settings: Its hyperparameters, such as ``alpha 0.4, sigma 10``.
    """

    name: str
    weight: float
    summary: str
    settings: str


@dataclass(frozen=True)
class StageWords:
    """One stage.

    Attributes:
        title: Where it is.
        keeps: What it keeps, and how that is chosen.
        scorers: Largest weight first; empty where the scores before are used again.
        restorer: What puts information back; empty where nothing does.
        selector: What chooses the kept set; empty where the highest scores stay.
        mass: What a kept token counts for the tokens it stands for; empty where it does not.
    """

    title: str
    keeps: str
    scorers: tuple[ScorerWords, ...]
    restorer: str
    selector: str = ""
    mass: str = ""


def stage_words(config: PruningConfig) -> list[StageWords]:
    """Describe every stage of a config."""
    return [_stage(config.stages, k) for k in range(len(config.stages))]


def _stage(stages: Sequence[Stage], k: int) -> StageWords:
    stage = stages[k]
    where = (
        "Before the language model (layer 0)"
        if stage.layer == 0
        else f"At the input of decoder layer {stage.layer}"
    )
    if not stage.retention:
        return StageWords(where, "all image tokens leave", (), "")
    share = f"{100 * stage.retention:.3g}% of the image tokens stay"
    more = _part(stage.restorer), _part(stage.selector), _mass(stage.mass)
    by = f" by {stage.selector.name}" if stage.selector else ""
    if not stage.scorers:
        first = k == 0 or not any(before.scorers for before in stages[:k])
        chosen = f"chosen{by} without scores" if first else f"chosen{by}, " if by else ""
        again = "" if first else "by the scores of the stage before"
        return StageWords(where, f"{share}, {chosen}{again}", (), *more)
    scorers = tuple(
        ScorerWords(s.name, s.weight, type(s).summary, _settings(s))
        for s in sorted(stage.scorers, key=lambda s: -abs(s.weight))
    )
    how = "by one score" if len(scorers) == 1 else f"by a weighted sum of {len(scorers)} scores"
    chosen = f"chosen{by} with scores, {how}" if by else f"chosen {how}"
    return StageWords(where, f"{share}, {chosen}", scorers, *more)


def _mass(mass: float) -> str:
    if not mass:
        return ""
    return f"a kept token counts for those it stands for (mass {mass:g})"


def _settings(part: Scorer | Restorer | Selector) -> str:
    data = part.model_dump(mode="json", exclude={"name", "weight"})
    return ", ".join(f"{key} {_value(value)}" for key, value in data.items())


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _part(part: Restorer | Selector | None) -> str:
    if part is None:
        return ""
    settings = _settings(part)
    about = f" ({settings})" if settings else ""
    return f"{part.name}{about}: {type(part).summary}"


def rest_sentences(config: PruningConfig) -> list[str]:
    """Describe what holds for all stages of a config: separators, positions, what is left."""
    separators = (
        "Separators (image tokens that are no patches) stay."
        if config.separators == "keep"
        else "Separators (image tokens that are no patches) go at the first stage."
    )
    positions = (
        "Kept tokens keep their original positions."
        if config.positions == "original"
        else "Kept tokens are renumbered without gaps."
    )
    share = stated_retention(config)
    left = (
        f"Over all {config.model.num_layers} decoder layers {100 * share:.3g}% of the image tokens "
        "remain, which is the visual KV cache's share too."
    )
    if config.pixels is None or not config.pixels.shrinks:
        return [separators, positions, left]
    smaller = (
        f"Pictures are made smaller first: to {config.pixels.shown} that the processor would have "
        "used; retentions are shares of the tokens that are left of them."
    )
    return [smaller, *([separators, positions] if config.stages else []), left]


def verdict(facts: StudyFacts) -> tuple[str, str]:
    """Return what a study is worth, in words, and its tone: good, unsure or bad."""
    finished, wanted = facts.finished, facts.spec.trials
    if result := facts.result:
        return str(result["verdict"]), tone(result)
    if not facts.trials:
        return "No trial has been run yet, so there is nothing to look at.", "unsure"
    best = facts.best
    if best is None:
        return _nothing(facts), "bad" if not facts.running else "unsure"
    split = "calibration data" if best.complete else "the calibration samples it was measured on"
    names = [facts.short(k) for k in range(len(facts.metrics))]
    values = ", ".join(f"{n} {v:.4f}" for n, v in zip(names, best.values))
    found = f"{best.name} is best so far with {values} on {split}"
    if len(facts.metrics) > 1:
        found = (
            f"{len(facts.front)} trials are on the front of {' and '.join(names)}; its knee is "
            f"{best.name} ({values})"
        )
    state = "was stopped" if finished < wanted else "has run its trials"
    if facts.running:
        state = "is still running"
    return (
        f"The search {state} ({finished} of {wanted} trials finished): {found}; nothing is known "
        "yet about held-out data.",
        "unsure",
    )


def _nothing(facts: StudyFacts) -> str:
    failed = [t for t in facts.trials if t.state == "failed"]
    if failed and not facts.running:
        reason = next(
            (str(t.attrs["failure"]) for t in reversed(failed) if "failure" in t.attrs), ""
        )
        because = f", the last with {reason[:200]}" if reason else ""
        count = "The only trial" if len(failed) == 1 else f"All {len(failed)} trials"
        return f"{count} failed{because}: there is no config to look at."
    return "No trial has finished yet, so there is nothing to look at."


def tone(result: Mapping[str, Any]) -> str:
    """Return how a recorded result is to be taken: only what is beyond noise is good."""
    problem = (result.get("judged") or {}).get("problem")
    wrong = problem in ("unpruned_answers_nothing", "answers_nothing")
    if wrong or (result.get("decision") or {}).get("kept") is False:
        return "bad"
    # A release that did not say has no interval of what it says.
    return "good" if result.get("tick") else "unsure"
