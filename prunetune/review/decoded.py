"""A trial's config as named numbers and choices: what its unit parameters decoded to."""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import TrialState

from prunetune.config import PruningConfig
from prunetune.review.facts import StudyFacts, TrialFacts

Value = float | int | str
LEAST_TRIALS = 20
"""Fewer trials leave PED-ANOVA's best tenth with less than two of them."""


def decoded(config: PruningConfig) -> dict[str, Value]:
    """Return what a config decides, by name; a scorer that it leaves out has weight 0."""
    stages = [stage for stage in config.stages if stage.retention]
    exits = [stage.layer for stage in config.stages if not stage.retention]
    scored = [stage for stage in stages if stage.scorers]
    full = config.pixels is None or not config.pixels.shrinks
    out: dict[str, Value] = {
        "pixels": 1.0 if full else getattr(config.pixels, "share", 1.0),
        "number of stages": len(stages),
    }
    if not stages:
        return out
    out |= {
        "first layer": stages[0].layer,
        "first retention": stages[0].retention,
        "last layer": stages[-1].layer,
        "last retention": stages[-1].retention,
    }
    # Later stages hold every scorer; one at layer 0 only those that can be used there.
    for stage in reversed(scored):
        for scorer in stage.scorers:
            out.setdefault(f"weight of {scorer.name}", float(scorer.weight))
            for field, value in _fields(scorer.model_dump(exclude={"name", "weight"})):
                out.setdefault(f"{scorer.name}: {field}", value)
    if len(stages) > 1:
        out["later stages"] = "score again" if len(scored) > 1 else "reuse scores"
    selector, mass = stages[0].selector, stages[0].mass
    out["selector"] = selector.name if selector else "top"
    if selector is not None:
        for field, value in _fields(selector.model_dump(exclude={"name"})):
            out[f"{selector.name}: {field}"] = value
    out["mass"] = mass
    out["image tokens leave at"] = exits[0] if exits else config.model.num_layers
    restorer = stages[0].restorer
    out["restorer"] = restorer.name if restorer else "none"
    if restorer is not None:
        for field, value in _fields(restorer.model_dump(exclude={"name"})):
            out[f"{restorer.name}: {field}"] = value
    out["separators"] = config.separators
    out["positions"] = config.positions
    return out


def _fields(data: Mapping[str, Any]) -> Iterator[tuple[str, Value]]:
    for field, value in data.items():
        if isinstance(value, bool):
            yield field, "yes" if value else "no"
        elif isinstance(value, float | int | str):
            yield field, value


def table(trials: Sequence[TrialFacts]) -> list[dict[str, Value]]:
    """Return the decoded parameters of trials; scorers that others use have weight 0."""
    rows = [decoded(trial.config) if trial.config else {} for trial in trials]
    weights = {name for row in rows for name in row if name.startswith("weight of ")}
    unused: dict[str, Value] = dict.fromkeys(sorted(weights), 0.0)
    return [unused | row for row in rows]


def importances(facts: StudyFacts) -> dict[str, float]:
    """Return PED-ANOVA importances of the decoded parameters, summing to 1, largest first.

    PED-ANOVA (Watanabe, Bansal and Hutter, IJCAI 2023, arXiv 2304.10255; its conditional form,
    arXiv 2601.20800) compares where the best tenth of the trials lies with where all of them lie.
    Estimates stand in for trials that were stopped early. Empty for fewer than 20 trials, or where
    nothing varies.
    """
    trials = [t for t in facts.trials if t.measured and t.config is not None]
    if len(trials) < LEAST_TRIALS:
        return {}
    rows = table(trials)
    names = list(dict.fromkeys(name for row in rows for name in row))
    columns = {name: [row[name] for row in rows if name in row] for name in names}
    ranges = {name: _distribution(values) for name, values in columns.items()}
    kinds = {name: kind for name, kind in ranges.items() if kind is not None}
    if not kinds:
        return {}
    study = _study(facts, trials, rows, kinds)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = optuna.importance.get_param_importances(
            study, evaluator=optuna.importance.PedAnovaImportanceEvaluator()
        )
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def _study(
    facts: StudyFacts,
    trials: Sequence[TrialFacts],
    rows: Sequence[dict[str, Value]],
    kinds: dict[str, BaseDistribution],
) -> optuna.Study:
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        study = optuna.create_study(
            directions=["maximize" if up else "minimize" for up in facts.maximised]
        )
        for trial, row in zip(trials, rows, strict=True):
            given: dict[str, Any] = {
                name: str(row[name]) if isinstance(kind, CategoricalDistribution) else row[name]
                for name, kind in kinds.items()
                if name in row
            }
            study.add_trial(
                optuna.trial.create_trial(
                    state=TrialState.COMPLETE,
                    values=list(trial.values),
                    params=given,
                    distributions={name: kinds[name] for name in given},
                )
            )
    finally:
        optuna.logging.set_verbosity(verbosity)
    return study


def _distribution(values: Sequence[Value]) -> BaseDistribution | None:
    """Return the range that values span; None where they are all the same."""
    if len(set(values)) < 2:
        return None
    if all(isinstance(v, int) for v in values):
        return IntDistribution(int(min(values)), int(max(values)))
    if all(isinstance(v, float | int) for v in values):
        numbers = [float(v) for v in values]
        return FloatDistribution(min(numbers), max(numbers))
    return CategoricalDistribution(sorted({str(v) for v in values}))
