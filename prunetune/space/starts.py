"""Where a search starts: sets that cover a picture, and blends of an even spread with saliency.

No published method sums scorers, so the presets alone tell a sampler nothing about sums; on the
embedded models an even spread with a little saliency is where good configs lie.
"""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from prunetune.budget import Budget
from prunetune.space.space import Space
from prunetune.space.units import Units, place

if TYPE_CHECKING:
    from prunetune.config import PruningConfig

_COVER: dict[str, Any] = {"kernel": "exp", "spatial": 0.3, "tau": 0.4}
_WIDE = {"delta": 0.2, "beta": 0.2, "tau": 1.132}
_STANDS_OUT = {"feature_distance": 1.0, "text_relevance": 0.4, "coverage": 0.3}
_EVENLY = {"coverage": 1.0}
_THREE = ((0.0, 2.0), (0.25, 0.87), (0.45, 0.0))
_TWO = ((0.0, 1.5), (0.375, 0.0))


@dataclass(frozen=True)
class _Set:
    """A covering set to begin with: at layer 0, and chosen again among what is left.

    Attributes:
        fields: Of the selector ``cover``, beside those that all have.
        steps: Where, as a share of the depth, and what is left there in units of the mean
            retention; 0 for the last of several, which meets the budget.
        weights: Of scorers, at every step.
        asked: Weight of ``last_query`` behind layer 0.
        mass: Of its stages.
        separators: As in a config.
    """

    fields: dict[str, Any] = field(default_factory=dict)
    steps: tuple[tuple[float, float], ...] = ((0.0, 1.0),)
    weights: dict[str, float] = field(default_factory=dict)
    asked: float = 0.0
    mass: float = 1.0
    separators: Literal["keep", "drop"] = "drop"


UNTUNED = "a covering set by looks and place, with mass"
"""The first of all that was known before searches had selectors: one stage, no scores."""

# The first came from coordinate descent on the calibration data of `tiny`; the order is that of the
# gaps on both embedded models' at three budgets (benchmarks/starts.py), one of each kind and depth.
_SETS: dict[str, _Set] = {
    "what stands out or is asked about, in three steps, beside the separators": _Set(
        _WIDE, _THREE, _STANDS_OUT, 1.0, separators="keep"
    ),
    "an even spread, in three steps towards what is asked about": _Set(
        {"delta": 0.4}, _THREE, _EVENLY, 1.0
    ),
    "what stands out or is asked about, in two steps, beside the separators": _Set(
        _WIDE, _TWO, _STANDS_OUT, 1.0, separators="keep"
    ),
    "what stands out, beside the separators": _Set(_WIDE, weights=_STANDS_OUT, separators="keep"),
    UNTUNED: _Set(),
    "the same beside the separators": _Set(separators="keep"),
    "a covering set for picture and question": _Set({"text": 0.3}),
}
_SALIENT = {"coverage": 1.0, "last_query": 0.5, "cls_attention": 0.3}

_BLENDS: dict[str, tuple[int, int, dict[str, float]]] = {
    # name: stages, first layer, score weights
    "spread before the language model": (1, 0, {"coverage": 1.0, "cls_attention": 0.3}),
    "spread and saliency at layer 1": (1, 1, _SALIENT),
    "spread and saliency, in two steps": (2, 0, _SALIENT),
    "spread and saliency, in two late steps": (2, 1, _SALIENT),
}


def first_starts(space: Space, budget: Budget | None = None) -> dict[str, Units]:
    """Return the named points to begin with: sets, where the space has a selector for them.

    Args:
        space: That they lie in.
        budget: That they meet; None for the space's.
    """
    if space.first_layer or "cover" not in space.spec.selectors:
        return {}
    budget = budget or space.budget
    found: dict[str, Units] = {}
    seen: set[str] = set()
    for name, wanted in _SETS.items():
        if (config := _config(wanted, space, budget)) is None:
            continue
        units = space.encode(config)
        decoded = space.decode(units)
        # Without mass, without the question or with a narrower range it is another start's twin.
        if not _alike(decoded, config) or decoded.digest() in seen:
            continue
        seen.add(decoded.digest())
        found[name] = units
    return found


def _config(wanted: _Set, space: Space, budget: Budget) -> "PruningConfig | None":
    """Return the config of a start, on the budget as far as one retention can say it.

    None where the model has fewer layers than it needs.
    """
    from prunetune.config import PruningConfig, Stage
    from prunetune.scorers import SCORERS
    from prunetune.selectors import SELECTORS

    selector = SELECTORS.get("cover").model_validate({"name": "cover", **_COVER, **wanted.fields})
    mean = min(budget.retention(budget.share), 1.0)
    # Where the space holds no mass at all, sets are tried without.
    mass = min(space.spec.restricted().mass, key=lambda h: abs(h - wanted.mass))
    stages: list[Stage] = []
    for number, (share, part) in enumerate(wanted.steps):
        # The last step of several is solved for the budget; here it only has to be the lowest.
        kept = stages[-1].retention / 2 if stages and not part else min(1.0, part * mean)
        layer = round(share * space.facts.num_layers)
        if stages and (layer := max(layer, stages[-1].layer + 1)) >= space.facts.num_layers:
            return None
        weights = wanted.weights | ({"last_query": wanted.asked} if number else {})
        scorers = tuple(SCORERS.get(n)(name=n, weight=w) for n, w in weights.items() if w)
        chosen: dict[str, Any] = {"scorers": scorers, "selector": selector, "mass": mass}
        stages.append(Stage(layer=layer, retention=kept, **chosen))
    held = space.spec.separators
    separators = wanted.separators if wanted.separators in held else held[0]
    return PruningConfig(model=space.model_ref(), separators=separators, stages=tuple(stages))


def _alike(decoded: "PruningConfig", config: "PruningConfig") -> bool:
    """Tell whether a space holds what makes a start the one that it is."""
    if len(decoded.stages) != len(config.stages) or decoded.separators != config.separators:
        return False
    ours, theirs = decoded.stages[0], config.stages[0]
    return ours.mass == theirs.mass and ours.selector == theirs.selector


def starts(space: Space) -> dict[str, Units]:
    """Return named points of a space, each complete; what the space does not hold is left out."""
    names = [dimension.name for dimension in space.dimensions()]
    found: dict[str, Units] = {}
    if "pixels" in names and (alone := space.alone()) is not None:
        found["smaller pictures, nothing pruned"] = space.encode(alone)
    for name, (stages, layer, weights) in _BLENDS.items():
        units = dict.fromkeys(names, 0.5)
        given = {
            "stages": (stages - 0.5) / space.most_stages,
            "layer_1": (layer + 0.5) / (space.latest_first + 1),
            "layer_2": 0.7,
            "rescore": 0.75,
            "restorer": 0.0,
            "separators": 0.75,
            "selector": place(space.spec.selectors, "top"),
            "mass": place(space.spec.mass, 0.0),
            "per_crop": place(space.spec.per_crop, False),
            # Levels go from the full picture down.
            "pixels": 0.0,
        }
        given |= {f"weight.{scorer}": (1.0 + weight) / 2 for scorer, weight in weights.items()}
        if (
            layer > space.latest_first
            or stages > space.most_stages
            or not any(f"weight.{s}" in units for s in weights)
        ):
            continue
        found[name] = units | {k: v for k, v in given.items() if k in units}
    return found
