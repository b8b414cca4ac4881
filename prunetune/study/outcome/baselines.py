"""Presets on held-out data, beside the tuned config."""

from prunetune.budget import ModelFacts, flops_ratio, mean_retention
from prunetune.config import PruningConfig
from prunetune.errors import StudyError
from prunetune.measure.scores import Measures, SampleScore, Scores, image_ids, measure
from prunetune.study.outcome.intervals import bootstrap_ci, lower_p_value
from prunetune.study.outcome.summary import Baseline
from prunetune.study.trials.trials import Preset


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
    difference = [ours.gap - theirs.gap for ours, theirs in zip(measured["tuned"], results)]
    return Baseline(
        name=preset.name,
        scores=Scores.of(results),
        mean_retention=mean_retention(preset.config.stages, facts.num_layers),
        flops_ratio=flops_ratio(preset.config.stages, facts),
        note="; ".join(filter(None, ("the tuned config itself" if is_tuned else "", preset.note))),
        gap_difference=bootstrap_ci(difference, image_ids(held_out.samples), seed),
        p_value=lower_p_value(difference, image_ids(held_out.samples)),
        is_tuned=is_tuned,
    )


def prunes_alike(one: PruningConfig, other: PruningConfig) -> bool:
    """Tell whether two configs for one model say the same, whatever they come from."""
    about = {"model", "provenance"}
    return one.model_dump(exclude=about) == other.model_dump(exclude=about)
