"""What a study's space leaves open on one model: the codecs of its parts."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from prunetune.budget import Budget, ModelFacts
from prunetune.errors import ConfigError
from prunetune.space.narrowed import FIRST_SCORERS, SpaceSpec
from prunetune.space.ranges import Box, box_of, idle
from prunetune.space.selecting import SelectorCodec

if TYPE_CHECKING:
    from prunetune.space.schedule import ScheduleCodec
    from prunetune.space.weighting import WeightCodec


def codecs(
    spec: SpaceSpec, facts: ModelFacts, budgets: Sequence[Budget]
) -> "tuple[WeightCodec, ScheduleCodec]":
    """Return the codecs of weights and schedules.

    Args:
        spec: As ``SpaceSpec.restricted`` gives it.
        facts: The model.
        budgets: That schedules have to meet.

    Raises:
        ConfigError: No schedule meets a budget, or no scorer is left to search with.
    """
    from prunetune.space.schedule import ScheduleCodec
    from prunetune.space.weighting import WeightCodec

    depth, fixed = facts.num_layers, spec.stage_layers
    first, last = (fixed[0], fixed[-1]) if fixed else spec.layers or (0, depth - 1)
    if last >= depth:
        raise ConfigError(
            f"space.{'stage_layers' if fixed else 'layers'}: received {last}, allowed 0 to "
            f"{depth - 1} for a model of {depth} decoder layers"
        )
    most = len(fixed) or min(spec.max_stages, last - first + 1)
    weights = WeightCodec(
        _scorers(spec, facts),
        most,
        per_stage=spec.per_stage_weights,
        fixed=spec.fixed_weights,
        ranges=spec.ranges,
        per_crop=_per_crop(spec, facts),
        as_of=spec.version,
    )
    if not any(weights.usable(name, first) for name in weights.scorers):
        # Only layer 0 can be without a usable scorer.
        first, most = 1, 0 if fixed else min(most, last)
    if most < 1:
        raise ConfigError(
            f"space.layers: received {list(fixed or spec.layers or ())}, but all of "
            f"{', '.join(weights.scorers)} need states of a decoder layer; allow layer 1 or "
            "add another scorer"
        )
    for budget in budgets:
        try:
            budget.check(budget.least(first, depth, spec.floor))
        except ConfigError as error:
            if not first:
                raise
            raise ConfigError(
                f"with no stage before layer {first} (--layers, --scorers) {error}"
            ) from None
    schedule = ScheduleCodec(
        depth,
        layers=(first, last),
        stages=(min(spec.min_stages, most), most),
        floor=spec.floor,
        fixed=fixed,
        box=_box(spec, most),
        exits=spec.exit,
    )
    return weights, schedule


def selector_codec(spec: SpaceSpec, facts: ModelFacts, scorers: Sequence[str]) -> SelectorCodec:
    """Return the codec of selectors.

    Args:
        spec: What is searched.
        facts: The model.
        scorers: Names of those that are searched.

    Raises:
        ConfigError: A selector needs what is not there.
    """
    # Whoever gives scorers the question gives it to selectors.
    asks = "text_relevance" in facts.scorers
    codec = SelectorCodec(spec.selectors, spec.ranges, question=asks)
    for name, used in codec.uses().items():
        if missing := sorted(used - set(scorers)):
            raise ConfigError(
                f"space.selectors: received {name}, which uses {', '.join(missing)}: not among "
                f"the scorers here ({', '.join(scorers)}); leave it out"
            )
    return codec


def check_searched(spec: SpaceSpec, scorers: Sequence[str]) -> None:
    """Refuse ranges of parts that are not searched.

    Args:
        spec: What is searched.
        scorers: Names of those that are.

    Raises:
        ConfigError: There are some.
    """
    restorers = [name for name in spec.restorers if name != "none"]
    parts = (*scorers, *spec.selectors, *restorers)
    if found := idle(spec.ranges, parts):
        raise ConfigError(
            f"space.ranges: received {', '.join(found)}, which would do nothing, allowed ranges of "
            f"parts that are searched here ({', '.join(parts)}); search the part, too (--scorers, "
            "--selectors, --restorers), or leave the range out"
        )


def _scorers(spec: SpaceSpec, facts: ModelFacts) -> "dict[str, type]":
    from prunetune.scorers import SCORERS

    allowed = facts.scorers
    names = spec.scorers or tuple(
        name for name in SCORERS if name != "random" and (spec.version > 1 or name in FIRST_SCORERS)
    )
    if (spec.parts == "layer-0" or facts.last_stage == 0) and not spec.scorers:
        names = tuple(n for n in names if SCORERS.get(n)(name=n).usable_at(0))
    missing = [name for name in spec.scorers if name not in allowed]
    if missing or not any(name in allowed for name in names):
        raise ConfigError(
            f"space.scorers: received {', '.join(missing or names)}, which "
            f"{facts.model_type} cannot give; allowed: {', '.join(allowed) or 'none'}"
        )
    return {name: SCORERS.get(name) for name in names if name in allowed}


def _box(spec: SpaceSpec, most: int) -> Box:
    try:
        return box_of(spec.ranges, most)
    except ValueError as error:
        raise ConfigError(f"space.{error}") from None


def _per_crop(spec: SpaceSpec, facts: ModelFacts) -> tuple[bool, ...]:
    """Return the allowed values of ``per_crop``: nothing to choose where one view is seen."""
    from prunetune.families import FAMILIES

    name = facts.model_type
    one = name in FAMILIES and FAMILIES.get(name).one_view
    return spec.per_crop[:1] if one else spec.per_crop
