"""Which trial wins, and what it is worth on data the search has not seen."""

import logging
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import cast

from optuna import Study
from optuna.trial import FrozenTrial, TrialState

from prunetune.budget import ModelFacts, flops_ratio, flops_record, mean_retention, resized
from prunetune.config import Provenance, PruningConfig
from prunetune.errors import StudyError
from prunetune.measure.scores import Measures, SampleScore, Scores, accuracy, image_ids, measure
from prunetune.models.versions import versions
from prunetune.pixels import shrinks
from prunetune.presets import preset_names
from prunetune.space.space import Space
from prunetune.spec import StudySpec
from prunetune.study.clock import Clock
from prunetune.study.outcome.baselines import compare_presets, resize_at
from prunetune.study.outcome.intervals import bootstrap_ci
from prunetune.study.outcome.judging import judge_config, worth
from prunetune.study.outcome.noise import settle
from prunetune.study.outcome.record import write_record
from prunetune.study.outcome.summary import SearchResult
from prunetune.study.outcome.table import fitting
from prunetune.study.outcome.verdict import hurried, verdict
from prunetune.study.trials.best import FINISHED, best_complete, known_mean
from prunetune.study.trials.counts import count_evaluations, count_trials, why_stopped
from prunetune.study.trials.trials import (
    config_of,
    presets_at,
    sample_value,
)

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Winner:
    """The trial that is exported.

    Attributes:
        trial: Number of the trial.
        config: What it measured.
        results: On all calibration samples, in order.
        evaluations: Samples that choosing it took.
    """

    trial: int
    config: PruningConfig
    results: Sequence[SampleScore]
    evaluations: int


def shortlist(study: Study, count: int) -> list[FrozenTrial]:
    """Return the ``count`` best trials of different configs, by what is known of their mean.

    A pruned trial was measured on some samples only; see ``best.estimated_mean``. Where pruned
    ones only are among the best, the best complete one comes last: estimates may be wrong.
    """
    trials = [t for t in study.get_trials(deepcopy=False, states=FINISHED) if t.intermediate_values]
    best = best_complete(study)
    distinct: dict[str, FrozenTrial] = {}
    for trial in sorted(trials, key=lambda t: (known_mean(t, best), t.number)):
        distinct.setdefault(trial.user_attrs.get("config_digest", str(trial.number)), trial)
    chosen = list(distinct.values())[:count]
    if best is not None and all(t.state is TrialState.PRUNED for t in chosen):
        chosen.append(best)
    return chosen


AGAIN = 0.15
"""Of the time left: what measuring one stopped trial on all samples may take."""


def choose(
    study: Study, spec: StudySpec, evaluator: Measures, clock: Clock | None = None
) -> Winner:
    """Score the best trials on all calibration samples and return one of the lowest mean.

    Of those that the samples cannot tell from the lowest the simplest is taken; see ``noise.py``.

    Args:
        study: With all its trials.
        spec: Of the study.
        evaluator: On the calibration split.
        clock: Of the run: where its end is near, stopped trials are left out if others are known.

    Raises:
        StudyError: No trial has finished.
    """
    clock = clock or Clock()
    total, spent = len(evaluator.samples), 0
    values: dict[int, list[float]] = {}
    results: dict[int, list[SampleScore]] = {}
    candidates = {trial.number: trial for trial in shortlist(study, spec.rescored)}
    left: list[int] = []
    # Complete ones first: what is known of them decides whether the others can be left out.
    for number, trial in sorted(candidates.items(), key=lambda c: c[1].state is TrialState.PRUNED):
        if trial.state is TrialState.COMPLETE and len(trial.intermediate_values) == total:
            values[number] = [trial.intermediate_values[step] for step in range(total)]
            continue
        late = total * (clock.pace or 0.0) > AGAIN * clock.left
        if late and trial.state is TrialState.PRUNED and values:
            left.append(number)
            continue
        spent += total
        try:
            results[number] = measure(evaluator, config_of(trial), answers=False)
            values[number] = [sample_value(spec.metric, r) for r in results[number]]
        except StudyError as error:
            logger.warning("trial %d is not chosen: %s", number, error)
    if left:
        logger.warning(
            "no time to measure trials to their end that were stopped and may be better: %s",
            ", ".join(map(str, left)),
        )
    if candidates and not values:
        raise StudyError(f"none of the best {len(candidates)} trials could be measured again")
    if not values:
        raise StudyError(
            f"study {study.study_name!r} has no finished trial, so there is nothing to export; "
            "run it longer (--trials, --timeout)"
        )
    configs = {n: config_of(candidates[n]) for n in values}
    number, near = settle(values, configs, image_ids(evaluator.samples))
    if number != near[0]:
        logger.info(
            "trial %d is simpler than trial %d, and the samples cannot tell them apart",
            *(number, near[0]),
        )
    config, stored = configs[number], math.fsum(values[number]) / total
    if number not in results:
        # For the gap's interval, and to prove that the stored value can be reproduced.
        results[number] = measure(evaluator, config, answers=False)
        spent += total
        if abs(_mean(spec, results[number]) - stored) > 1e-6:
            logger.warning(
                "trial %d: %s was %.9g in the study and is %.9g now",
                *(number, spec.metric, stored, _mean(spec, results[number])),
            )
    return Winner(number, config, results[number], spent)


def _mean(spec: StudySpec, results: Sequence[SampleScore]) -> float:
    return math.fsum(sample_value(spec.metric, r) for r in results) / len(results)


def conclude(
    study: Study,
    spec: StudySpec,
    evaluator: Measures,
    held_out: Measures,
    path: Path,
    begun: float,
    clock: Clock | None = None,
) -> SearchResult:
    """Choose the winner, compare it with every preset on held-out data, write its config.

    Args:
        study: With all its trials.
        spec: Of the study.
        evaluator: On the calibration split.
        held_out: On the held-out split.
        path: Where the config is written.
        begun: ``time.monotonic()`` when the run began.
        clock: Of the run: where its end is near, fewer held-out samples are compared.

    Raises:
        StudyError: No trial has finished.
        ConfigError: The config cannot be written.
    """
    clock = clock or Clock()
    winner = choose(study, spec, evaluator, clock)
    space = Space.of(spec, evaluator.facts())
    rivals = [resize_at(space, evaluator), *presets_at(preset_names(), space)]
    held_out = fitting(held_out, clock, len(rivals))
    tuned = measure(held_out, winner.config)
    config = with_provenance(study, spec, space, winner, evaluator, tuned)
    # Before the table: whatever happens there, the config is safe.
    config.save(path)
    measured = {"tuned": tuned}
    baselines = compare_presets(
        rivals, measured, held_out, space.facts, spec.seed, winner.config, clock
    )
    trials = study.get_trials(deepcopy=False)
    provenance = config.provenance
    judged = judge_config(config, tuned, held_out, baselines)
    config = worth(config, judged)
    config.save(path)
    result = SearchResult(
        study=study.study_name,
        budget=spec.budget,
        trials=count_trials(trials),
        seconds=time.monotonic() - begun,
        sample_evaluations=winner.evaluations + count_evaluations(trials),
        trial=winner.trial,
        calibration=Scores.of(winner.results),
        held_out=Scores.of(tuned),
        held_out_ci=bootstrap_ci([r.gap for r in tuned], image_ids(held_out.samples), spec.seed),
        mean_retention=cast(float, provenance.mean_retention),
        flops_ratio=cast(float, provenance.flops_ratio),
        kv_ratio=cast(float, provenance.kv_ratio),
        unpruned_accuracy=accuracy(held_out.unpruned_correct),
        baselines=baselines,
        judged=judged,
        verdict=hurried(baselines, clock, verdict(judged)),
        config=str(path),
        best=config,
        stopped=why_stopped(study, spec),
    )
    write_record(study, result, winner.trial, held_out, measured, spec.seed)
    return result


def flops_of(
    config: PruningConfig, facts: ModelFacts, tokens: float, evaluator: Measures
) -> dict[str, float] | None:
    """Return FLOPs before the first token, of tower and language model, beside unpruned.

    Args:
        config: What is counted.
        facts: The model, and its mean prompt with full pictures.
        tokens: Share of the full pictures' tokens that the config's pixels leave.
        evaluator: On the calibration split, which knows what the tower is given.

    Returns:
        As ``flops_record``; None where nothing is known of the tower.
    """
    small = facts
    if facts.seen is not None and shrinks(config.pixels):
        small = resized(facts, tokens * facts.image_tokens, evaluator.seen_at(config.pixels))
    return flops_record(config.stages, small, facts)


def with_provenance(
    study: Study,
    spec: StudySpec,
    space: Space,
    winner: Winner,
    evaluator: Measures,
    tuned: Sequence[SampleScore],
) -> PruningConfig:
    """Return the winner's config with where it comes from and what it was worth written in."""
    facts, stages = space.facts, winner.config.stages
    gaps, tokens = [r.gap for r in winner.results], space.tokens(winner.config)
    retention = tokens * mean_retention(stages, facts.num_layers)
    provenance = Provenance(
        study=study.study_name,
        trial=winner.trial,
        gap=math.fsum(gaps) / len(gaps),
        gap_ci=bootstrap_ci(gaps, image_ids(evaluator.samples), spec.seed),
        held_out_gap=math.fsum(r.gap for r in tuned) / len(tuned),
        mean_retention=retention,
        flops_ratio=flops_ratio(stages, facts, tokens),
        flops=flops_of(winner.config, facts, tokens, evaluator),
        # The share of the visual KV cache is the mean retention, by definition.
        kv_ratio=retention,
        budget=space.spent(winner.config).exact,
        processor=dict(spec.processor) or None,
        calibration_digest=facts.calibration_digest,
        weights_digest=facts.weights_digest,
        seed=spec.seed,
        # Of what measured the figures above: a study may be years older.
        versions=versions(),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    return winner.config.model_copy(update={"provenance": provenance})
