"""Where a search starts: sets that cover a picture, and blends of an even spread with saliency.

No published method sums scorers, so the presets alone tell a sampler nothing about sums; on the
embedded model an even spread with a little saliency is where good configs lie (methods differ:
saliency wins look-ups, an even spread wins counting).
"""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from prunetune.budget import Budget
from prunetune.space.space import Space
from prunetune.space.units import Units, place

if TYPE_CHECKING:
    from prunetune.config import PruningConfig

_COVER: dict[str, Any] = {"kernel": "exp", "spatial": 0.3, "tau": 0.4}


@dataclass(frozen=True)
class _Set:
    """A covering set to begin with: one stage at layer 0, or a second one behind it.

    Attributes:
        fields: Of the selector ``cover``, beside those that all have.
        mass: Of its stages.
        separators: As in a config.
        twice: Whether a second stage chooses again among what is left, by saliency, too.
    """

    fields: dict[str, Any] = field(default_factory=dict)
    mass: float = 1.0
    separators: Literal["keep", "drop"] = "drop"
    twice: bool = False


# The first was best of all that was tried on the embedded model with one stage (eight values of
# each number), those in two steps are better yet; all on calibration data. Each of the others
# undoes one choice of the first.
_SETS: dict[str, _Set] = {
    "a covering set by looks and place, with mass": _Set(),
    "the same beside the separators": _Set(separators="keep"),
    "a covering set, chosen again among what is left": _Set({"delta": 0.4}, twice=True),
    "the same in two steps, beside the separators": _Set(
        {"delta": 0.4}, separators="keep", twice=True
    ),
    "a covering set by looks and place": _Set(mass=0.0),
    "a covering set by place above all": _Set({"spatial": 5.275}),
    "a covering set for picture and question": _Set({"text": 0.3}),
}
_AGAIN = 0.375
"""Where a second step is, as a share of the depth."""
_FIRST_STEP = 1.5
"""What the first step leaves, in units of the mean retention."""

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
        config = _config(wanted, space, budget)
        units = space.encode(config)
        decoded = space.decode(units)
        # Without mass, without the question or with a narrower range it is another start's twin.
        if not _alike(decoded, config) or decoded.digest() in seen:
            continue
        seen.add(decoded.digest())
        found[name] = units
    return found


def _config(wanted: _Set, space: Space, budget: Budget) -> "PruningConfig":
    """Return the config of a start, on the budget as far as one retention can say it."""
    from prunetune.config import PruningConfig, Stage
    from prunetune.scorers import SCORERS
    from prunetune.selectors import SELECTORS

    selector = SELECTORS.get("cover").model_validate({"name": "cover", **_COVER, **wanted.fields})
    retention = min(budget.retention(budget.share), 1.0)
    # Where the space holds no mass at all, sets are tried without.
    mass = min(space.spec.restricted().mass, key=lambda h: abs(h - wanted.mass))
    chosen: dict[str, Any] = {"selector": selector, "mass": mass}
    if not wanted.twice:
        stages = [Stage(layer=0, retention=retention, **chosen)]
    else:
        layer = max(1, round(_AGAIN * space.facts.num_layers))
        spread, asked = (SCORERS.get(name)(name=name) for name in ("coverage", "last_query"))
        first = min(1.0, _FIRST_STEP * retention)
        stages = [
            Stage(layer=0, retention=first, scorers=(spread,), **chosen),
            Stage(layer=layer, retention=first / 2, scorers=(spread, asked), **chosen),
        ]
    return PruningConfig(
        model=space.model_ref(), separators=wanted.separators, stages=tuple(stages)
    )


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
