"""What is known of a model and its calibration prompts before anything is computed."""

from collections.abc import Sequence
from typing import Any

from prunetune.budget import Level, ModelFacts, candidates, facts_of
from prunetune.calibration import CalibrationSet, encode
from prunetune.families import Family
from prunetune.families.base import TOWER_NEEDS
from prunetune.families.base_towers import Seen
from prunetune.measure.counting import TokenCounter
from prunetune.models.fingerprint import weights_digest
from prunetune.pixels.processors import layout_of
from prunetune.runtime.apply import family_of
from prunetune.runtime.choice.taps import row_readable
from prunetune.spec import StudySpec

_BATCH = 16


def model_facts(
    loaded: Any,
    family: Family,
    samples: CalibrationSet,
    *,
    image_tokens: float,
    text_tokens: float,
    separator_share: float = 0.0,
    seen: Sequence[Seen] = (),
    levels: Sequence[Level] = (),
) -> ModelFacts:
    """Return what space and budgets need to know.

    Args:
        loaded: ``prunetune.models.LoadedModel``.
        family: Of the model.
        samples: The calibration split.
        image_tokens: Mean image tokens of a prompt.
        text_tokens: Mean other tokens of a prompt.
        separator_share: Share of the image tokens that are separators.
        seen: What the tower is given of each prompt; empty where that is not known yet.
        levels: Of pixels, that a search may choose.
    """
    from prunetune.scorers import SCORERS

    missing = set(TOWER_NEEDS - family.tower_tells())
    if not row_readable(family.layers):
        missing |= {"last_query", "keys"}
    names = [name for name in SCORERS if not SCORERS.get(name).needs & missing]
    return facts_of(
        family,
        image_tokens=image_tokens,
        text_tokens=text_tokens,
        separator_share=separator_share,
        levels=tuple(levels),
        scorers=tuple(names),
        name=loaded.name,
        revision=loaded.revision,
        fingerprint=loaded.fingerprint,
        calibration_digest=samples.digest(),
        calibration_order=samples.order_digest(),
        weights_digest=weights_digest(loaded.model),
        seen=Seen.mean(seen) if seen else None,
    )


def early_facts(spec: StudySpec, loaded: Any, samples: CalibrationSet) -> ModelFacts:
    """Return what can be known before the unpruned reference is computed.

    Bounds on FLOPs and bytes depend on how long the prompts are: they are tokenised for it. For a
    bound on retention they are not, and count as empty.
    """
    family = family_of(loaded.model)
    image = text = 0
    if spec.kind != "keep":
        for first in range(0, len(samples), _BATCH):
            inputs = encode(loaded.processor, samples.samples[first : first + _BATCH])
            found = int((inputs["input_ids"] == family.image_token_id).sum())
            image += found
            text += int(inputs["attention_mask"].sum()) - found
    count = max(1, len(samples))
    return model_facts(
        loaded,
        family,
        samples,
        image_tokens=image / count,
        text_tokens=text / count,
        levels=searched_levels(spec, loaded, samples),
    )


def searched_levels(spec: StudySpec, loaded: Any, samples: CalibrationSet) -> tuple[Level, ...]:
    """Return the levels of pixels that a study may choose from, by its calibration pictures.

    Raises:
        ConfigError: The spec asks for levels, and the family has none.
    """
    if spec.space.pixels is False:
        return ()
    family = family_of(loaded.model)
    layout_of(family.config.model_type)
    given = () if isinstance(spec.space.pixels, bool) else spec.space.pixels
    shares = [share for share in given or candidates(spec.bounds) if share < 1.0]
    return tuple(TokenCounter(loaded, family, samples).levels(shares))
