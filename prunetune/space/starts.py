"""Where a search starts: sets that cover a picture, and blends of an even spread with saliency.

No published method sums scorers, so the presets alone tell a sampler nothing about sums; on the
embedded model an even spread with a little saliency is where good configs lie (methods differ:
saliency wins look-ups, an even spread wins counting).
"""

from typing import Any

from prunetune.budget import Budget
from prunetune.space.space import Space
from prunetune.space.units import Units, place

_WINNER: dict[str, Any] = {"kernel": "exp", "spatial": 0.3, "tau": 0.4}
_SETS: dict[str, tuple[dict[str, Any], float]] = {
    # name: of the selector cover; mass
    "a covering set by looks and place, with mass": (_WINNER, 1.0),
    "a covering set by looks and place": (_WINNER, 0.0),
    "a covering set by place above all": (_WINNER | {"spatial": 5.275}, 1.0),
    "a covering set for picture and question": (_WINNER | {"text": 0.3}, 1.0),
}
"""One stage at layer 0. The first was best of all that was tried on the embedded model (eight
values of each number, on calibration data); the others undo one of its choices each."""

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
    from prunetune.config import PruningConfig, Stage
    from prunetune.selectors import SELECTORS

    if space.first_layer or "cover" not in space.spec.selectors:
        return {}
    budget = budget or space.budget
    found: dict[str, Units] = {}
    retention = min(budget.retention(budget.share), 1.0)
    for name, (fields, mass) in _SETS.items():
        selector = SELECTORS.get("cover").model_validate({"name": "cover", **fields})
        config = PruningConfig(
            model=space.model_ref(),
            separators="drop",
            stages=(Stage(layer=0, retention=retention, selector=selector, mass=mass),),
        )
        units = space.encode(config)
        decoded = space.decode(units).stages[0]
        # Without mass, without the question or with a narrower range it is another start's twin.
        if decoded.mass == mass and decoded.selector == selector:
            found[name] = units
    return found


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
