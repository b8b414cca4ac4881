"""One trial: decode a config, measure it sample by sample, stop early, write down what it was."""

import logging
import math
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any, Literal, cast

from optuna import Study, Trial, TrialPruned
from optuna.exceptions import OptunaError, StorageInternalError, UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState

from prunetune.budget import Budget, mean_retention
from prunetune.config import PruningConfig
from prunetune.errors import ConfigError, StudyError
from prunetune.interrupts import check
from prunetune.measure.scores import Measures, SampleScore, Scores
from prunetune.presets import load_preset
from prunetune.space.space import Space
from prunetune.study.clock import Clock, OutOfTime
from prunetune.study.trials.best import FINISHED, best_complete, estimated_mean, metric_of

logger = logging.getLogger(__name__)

Metric = Literal["cosine", "kl", "cosine+kl", "kl-answer"]

EVALUATIONS = "evaluations"
"""User attribute of a trial: samples it ran itself, also if it failed or repeats another one."""


@dataclass(frozen=True)
class Preset:
    """A preset on a study's budget.

    Attributes:
        name: Of the preset.
        config: None where it cannot be run here; ``note`` says why.
        note: What had to change to meet the budget.
        tokens: Share of the full pictures' tokens that its ``pixels`` leave.
    """

    name: str
    config: PruningConfig | None
    note: str
    tokens: float = 1.0


def presets_at(names: Sequence[str], space: Space, budget: Budget | None = None) -> list[Preset]:
    """Return presets moved onto a budget, by default the space's, for its model."""
    facts, out = space.facts, []
    for name in names:
        try:
            config, note = load_preset(
                name,
                model_type=facts.model_type,
                num_layers=facts.num_layers,
                keep=budget or space.budget,
            )
        except ConfigError as error:
            out.append(Preset(name, None, f"not attainable: {error}"))
            continue
        used = {scorer.name for stage in config.stages for scorer in stage.scorers}
        if missing := sorted(used - set(facts.scorers)):
            note = f"not attainable: {facts.model_type} cannot give {', '.join(missing)}"
            out.append(Preset(name, None, note))
            continue
        if (last := facts.last_stage) is not None and any(
            stage.layer > last or (stage.mass and facts.states) for stage in config.stages
        ):
            where = "layer 0" if last == 0 else f"layers 0 to {last}"
            where += " only, without mass" if facts.states else " only"
            note = f"not attainable: {facts.model_type} drops tokens at {where}"
            out.append(Preset(name, None, note))
            continue
        config = config.model_copy(update={"model": space.model_ref()})
        out.append(Preset(name, config, note))
    return out


def sample_value(metric: Metric, result: SampleScore) -> float:
    """Return what a search minimises the mean of.

    Raises:
        StudyError: It is not a finite number, so the config cannot be compared.
    """
    if metric == "kl-answer":
        if result.kl_answer is None:
            raise StudyError("kl-answer was not measured: the evaluator follows no own answers")
        value = result.kl_answer
    else:
        value = {"cosine": result.gap, "kl": result.kl, "cosine+kl": result.gap + result.kl}[metric]
    if not math.isfinite(value):
        raise StudyError(f"a sample's {metric} is {value}: the pruned model gave no usable state")
    return value


def config_of(trial: FrozenTrial) -> PruningConfig:
    """Return the config a finished trial measured.

    Raises:
        StudyError: The trial holds none.
    """
    if "config" not in trial.user_attrs:
        raise StudyError(
            f"trial {trial.number} holds no config (it is {trial.state.name}); "
            "choose a complete or pruned trial"
        )
    return PruningConfig.parse(trial.user_attrs["config"], origin=f"trial {trial.number}")


class Objective:
    """What Optuna calls once a trial.

    Args:
        space: Decodes suggestions.
        evaluator: Measures on the calibration split.
        metric: What is minimised.
        study: To answer configs that earlier trials measured from memory. With two directions the
            config's cost is minimised as well.
        clock: When a trial has to end, whole or not.
    """

    def __init__(
        self,
        space: Space,
        evaluator: Measures,
        metric: Metric,
        study: Study,
        clock: Clock | None = None,
    ) -> None:
        self.space, self.evaluator, self.metric = space, evaluator, metric
        self._clock = clock or Clock()
        self.reasons: list[str] = []
        self._study = study
        # Optuna takes no reports and stops no trial early where there are two objectives.
        self._two = len(study.directions) > 1
        self._known: dict[str, FrozenTrial] = {}
        self._spent = 0

    def _measured(self, digest: str) -> FrozenTrial | None:
        """Return the first finished trial of a config, another worker's included."""
        for trial in self._study.get_trials(deepcopy=False, states=FINISHED):
            self._known.setdefault(trial.user_attrs.get("config_digest", ""), trial)
        return self._known.get(digest)

    def __call__(self, trial: Trial) -> float | Sequence[float]:
        """Return the mean of the metric over all samples, with two objectives the cost, too.

        Raises:
            TrialPruned: The config is worse than the best one, as far as it was measured.
            UpdateFinishedTrialError: Another worker took this trial over.
            StorageInternalError: The database stays away.
            OutOfTime: The trial has to make room for what follows; it is not finished.
        """
        try:
            value = self._run(trial)
        except TrialPruned:
            self.reasons.clear()
            raise
        except (UpdateFinishedTrialError, StorageInternalError, OutOfTime):
            # The trial belongs to another worker by now, or the database is gone: no fault of it.
            raise
        except Exception as error:
            self.reasons.append(f"{type(error).__name__}: {' '.join(str(error).split())}")
            logger.warning("trial %d failed: %s", trial.number, self.reasons[-1])
            self._record_failure(trial)
            raise
        self.reasons.clear()
        return value

    def _record_failure(self, trial: Trial) -> None:
        try:
            _set(trial, {"failure": self.reasons[-1], EVALUATIONS: self._spent})
        except OptunaError as error:
            # The database may be what failed; the first error is the one to report.
            logger.warning("trial %d: its failure is not stored: %s", trial.number, error)

    def _run(self, trial: Trial) -> float | Sequence[float]:
        self._spent = 0
        units = self.space.suggest(trial)
        given = trial.user_attrs.get("given")
        config = PruningConfig.parse(given) if given else self.space.decode(units)
        digest = config.digest()
        told = describe_config(config, self.space.tokens(config))
        _set(trial, told | {"config_digest": digest})
        known = self._measured(digest)
        if known is not None:
            return self._again(trial, known)
        mean = self._measure(trial, config, digest)
        return (mean, self.space.spent(config).value) if self._two else mean

    def _measure(self, trial: Trial, config: PruningConfig, digest: str) -> float:
        total = len(self.evaluator.samples)
        values: list[float] = []
        results: list[SampleScore] = []
        begun = self._clock.now()
        # Closed at once: what is left open keeps its hooks on the model.
        with closing(cast(Any, self.evaluator.evaluate(config, answers=False))) as batches:
            for batch in batches:
                check()
                self._spent += len(batch)
                for index, result in batch:
                    values.append(sample_value(self.metric, result))
                    results.append(result)
                    if not self._two:
                        trial.report(values[-1], step=index)
                if len(values) < total:
                    if not self._two and trial.should_prune():
                        break
                    self._clock.check_trial()
        self._clock.note(self._spent, self._clock.now() - begun)
        _set(trial, _result_attrs(results) | {EVALUATIONS: self._spent})
        # Another worker may have come to the same config meanwhile.
        if (twin := self._measured(digest)) is not None:
            trial.set_user_attr("repeats", twin.number)
        if len(values) < total:
            estimate = estimated_mean(dict(enumerate(values)), best_complete(trial.study))
            # Samplers rank a pruned trial by its last report: one sample's value would tell them
            # nothing. No sample has this step, so the trial pruner never compares it.
            trial.report(estimate, step=total)
            raise TrialPruned(f"worse than the best after {len(values)} of {total} samples")
        return math.fsum(values) / total

    def _again(self, trial: Trial, known: FrozenTrial) -> float | Sequence[float]:
        # With its reports: the trial pruner compares with whichever of the two it takes for best.
        for step, value in known.intermediate_values.items():
            trial.report(value, step=step)
        names = ("samples_used", "gap", "kl", "kl_answer", "top1_agreement", "accuracy")
        _set(trial, {k: known.user_attrs[k] for k in names if k in known.user_attrs})
        _set(trial, {"repeats": known.number, EVALUATIONS: 0})
        if known.state is TrialState.PRUNED:
            raise TrialPruned(f"the same config as trial {known.number}, which was pruned")
        return known.values if self._two else metric_of(known)


def _set(trial: Trial, attrs: Mapping[str, Any]) -> None:
    for name, value in attrs.items():
        trial.set_user_attr(name, value)


def _result_attrs(results: Sequence[SampleScore]) -> dict[str, Any]:
    scores = Scores.of(results)
    attrs = {
        "samples_used": scores.samples,
        "gap": scores.gap,
        "kl": scores.kl,
        "top1_agreement": scores.top1_agreement,
        "accuracy": scores.accuracy,
    }
    return attrs if scores.kl_answer is None else attrs | {"kl_answer": scores.kl_answer}


def describe_config(config: PruningConfig, tokens: float = 1.0) -> dict[str, Any]:
    """Return what people read of a trial: its unit parameters say nothing to them.

    Args:
        config: The trial's.
        tokens: Share of the full pictures' tokens that its ``pixels`` leave.
    """
    stages = config.stages
    weights = [
        f"{stage.layer}: " + ", ".join(f"{s.name} {s.weight:+.3g}" for s in stage.scorers)
        for stage in stages
        if stage.scorers
    ]
    chosen: dict[str, Any] = {}
    if any(stage.is_new for stage in stages):
        selector = stages[0].selector
        chosen = {"selector": selector.name if selector else "top", "mass": stages[0].mass}
    if config.pixels is not None:
        chosen |= {"pixels": config.pixels.shown, "tokens_left": tokens}
    return chosen | {
        "schedule": ", ".join(f"{s.layer}: {s.retention:.4g}" for s in stages),
        "weights": "; ".join(weights),
        "mean_retention": tokens * mean_retention(stages, config.model.num_layers),
        "config": config.model_dump(mode="json"),
    }
