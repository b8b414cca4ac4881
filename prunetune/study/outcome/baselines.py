"""Presets on held-out data, beside the tuned config."""

from collections.abc import Sequence
from typing import cast

from prunetune.budget import Budget, ModelFacts, flops_ratio, largest_fitting, mean_retention
from prunetune.config import PruningConfig
from prunetune.measure.scores import Measures, SampleScore, Scores, image_ids
from prunetune.pixels import Share
from prunetune.space.space import Space
from prunetune.study.clock import Clock
from prunetune.study.outcome.intervals import bootstrap_ci, lower_p_value
from prunetune.study.outcome.judging import accuracy_difference
from prunetune.study.outcome.summary import RESIZE, Baseline
from prunetune.study.outcome.table import End, Row, Table
from prunetune.study.trials.trials import Preset

NO_LEVELS = "every picture has as many tokens, whatever its size"


def compare_presets(
    presets: Sequence[Preset],
    measured: dict[str, list[SampleScore]],
    held_out: Measures,
    facts: ModelFacts,
    seed: int,
    tuned: PruningConfig | None = None,
    clock: Clock | None = None,
) -> tuple[Baseline, ...]:
    """Measure presets and compare each with the tuned config, on the samples that both ran on.

    What is left early for its results has no interval: that would be one of a test that is made
    again and again until it says something.

    Args:
        presets: On the tuned config's budget.
        measured: The tuned config's results under ``"tuned"``; those of presets that ran on all
            samples are added.
        held_out: The split.
        facts: The model.
        seed: Of the intervals.
        tuned: The tuned config.
        clock: Of the run.
    """
    itself = {p.name for p in presets if tuned and p.config and prunes_alike(p.config, tuned)}
    table = Table(held_out, measured["tuned"], clock or Clock(), seed=seed, itself=itself)
    rows = table.measure(presets)
    total = len(held_out.samples)
    found = []
    for preset in presets:
        row = rows.get(preset.name)
        if row is None or not row.results:
            note = preset.note if row is None else row.note
            late = row is not None and row.end is End.TIME_UP
            found.append(Baseline(preset.name, None, note=note, late=late))
            continue
        if len(row.results) == total:
            measured[preset.name] = row.results
        is_tuned = preset.name in itself
        found.append(_compared(row, measured["tuned"], held_out, facts, seed, is_tuned))
    return tuple(found)


def _compared(
    row: Row,
    tuned_results: Sequence[SampleScore],
    held_out: Measures,
    facts: ModelFacts,
    seed: int,
    is_tuned: bool,
) -> Baseline:
    preset, results = row.preset, row.results
    config, tokens = cast(PruningConfig, preset.config), preset.tokens
    total, count = len(held_out.samples), len(results)
    images = image_ids(held_out.samples)[:count]
    difference = [ours.gap - theirs.gap for ours, theirs in zip(tuned_results, results)]
    stopped = f"stopped after {count} of {total} samples" if count < total else ""
    beaten = row.end is End.BEATEN
    if stopped and not beaten:
        stopped += f": {row.note}"
    notes = ("the tuned config itself" if is_tuned else "", stopped, preset.note)
    return Baseline(
        name=preset.name,
        scores=Scores.of(results),
        mean_retention=tokens * mean_retention(config.stages, facts.num_layers),
        flops_ratio=flops_ratio(config.stages, facts, tokens),
        note="; ".join(filter(None, notes)),
        gap_difference=None if beaten else bootstrap_ci(difference, images, seed),
        accuracy_difference=(
            None if beaten else accuracy_difference(tuned_results[:count], results, images)
        ),
        p_value=None if beaten else lower_p_value(difference, images),
        is_tuned=is_tuned,
        stopped=stopped,
        beaten=beaten,
    )


def resize_at(space: Space, evaluator: Measures, budget: Budget | None = None) -> Preset:
    """Return what people do today as a control: the largest pictures that meet a budget.

    Args:
        space: Of the study, whose own levels are taken where it searches over them.
        evaluator: On the calibration split, whose pictures are counted.
        budget: To be met; None for the space's.
    """
    budget = budget or space.budget
    levels = space.facts.levels or evaluator.levels_near([budget.share])
    level = largest_fitting(levels, budget)
    if level is None:
        least = min((known.tokens for known in levels), default=1.0)
        note = f"not below {least:.3g} of the tokens: smaller pictures have no fewer; see pool"
        return Preset(RESIZE, None, note if least < 1 else f"{NO_LEVELS}; see pool")
    config = PruningConfig(model=space.model_ref(), pixels=Share(share=level.share), stages=())
    return Preset(RESIZE, config, f"{level.share:g} of the pixels", tokens=level.tokens)


def prunes_alike(one: PruningConfig, other: PruningConfig) -> bool:
    """Tell whether two configs for one model say the same, whatever they come from."""
    about = {"model", "provenance"}
    return one.model_dump(exclude=about) == other.model_dump(exclude=about)
