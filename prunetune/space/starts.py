"""Where a search starts: a few plain blends of an even spread with saliency.

No published method sums scorers, so the presets alone tell a sampler nothing about sums; on the
embedded model an even spread with a little saliency is where good configs lie (methods differ:
saliency wins look-ups, an even spread wins counting).
"""

from prunetune.space.space import Space
from prunetune.space.units import Units

_SALIENT = {"coverage": 1.0, "last_query": 0.5, "cls_attention": 0.3}

_BLENDS: dict[str, tuple[int, int, dict[str, float]]] = {
    # name: stages, first layer, score weights
    "spread before the language model": (1, 0, {"coverage": 1.0, "cls_attention": 0.3}),
    "spread and saliency at layer 1": (1, 1, _SALIENT),
    "spread and saliency, in two steps": (2, 0, _SALIENT),
    "spread and saliency, in two late steps": (2, 1, _SALIENT),
}


def starts(space: Space) -> dict[str, Units]:
    """Return named points of a space, each complete; what the space does not hold is left out."""
    names = [dimension.name for dimension in space.dimensions()]
    found: dict[str, Units] = {}
    for name, (stages, layer, weights) in _BLENDS.items():
        units = dict.fromkeys(names, 0.5)
        given = {
            "stages": (stages - 0.5) / space.most_stages,
            "layer_1": (layer + 0.5) / (space.latest_first + 1),
            "layer_2": 0.7,
            "rescore": 0.75,
            "restorer": 0.0,
            "separators": 0.75,
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
