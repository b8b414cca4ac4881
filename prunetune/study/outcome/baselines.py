"""Presets on held-out data, beside the tuned config."""

from prunetune.budget import Budget, ModelFacts, flops_ratio, largest_fitting, mean_retention
from prunetune.config import PruningConfig
from prunetune.errors import StudyError
from prunetune.measure.scores import Measures, SampleScore, Scores, image_ids, measure
from prunetune.pixels import Share
from prunetune.space.space import Space
from prunetune.study.outcome.intervals import bootstrap_ci, lower_p_value
from prunetune.study.outcome.judging import accuracy_difference
from prunetune.study.outcome.summary import RESIZE, Baseline
from prunetune.study.trials.trials import Preset

NO_LEVELS = "every picture has as many tokens, whatever its size"


def compare_preset(
    preset: Preset,
    measured: dict[str, list[SampleScore]],
    held_out: Measures,
    facts: ModelFacts,
    seed: int,
    tuned: PruningConfig | None = None,
) -> Baseline:
    """Measure a preset and compare it with the tuned config's results; both are in ``measured``."""
    if preset.config is None:
        return Baseline(preset.name, None, note=preset.note)
    is_tuned = tuned is not None and prunes_alike(preset.config, tuned)
    try:
        results = measured[preset.name] = measure(held_out, preset.config)
    except StudyError as error:
        return Baseline(preset.name, None, note=f"not measured: {error}")
    tokens = preset.tokens
    images = image_ids(held_out.samples)
    difference = [ours.gap - theirs.gap for ours, theirs in zip(measured["tuned"], results)]
    return Baseline(
        name=preset.name,
        scores=Scores.of(results),
        mean_retention=tokens * mean_retention(preset.config.stages, facts.num_layers),
        flops_ratio=flops_ratio(preset.config.stages, facts, tokens),
        note="; ".join(filter(None, ("the tuned config itself" if is_tuned else "", preset.note))),
        gap_difference=bootstrap_ci(difference, images, seed),
        accuracy_difference=accuracy_difference(measured["tuned"], results, images),
        p_value=lower_p_value(difference, images),
        is_tuned=is_tuned,
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
