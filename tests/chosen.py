"""Configs of version 2 for the tiny models."""

from typing import Any

from reference_models import LAYERS, family

from prunetune.config import ModelRef, PruningConfig, Stage
from prunetune.selectors import SELECTORS

SCORED = ({"name": "coverage", "weight": 0.6}, {"name": "random", "weight": 0.4})
QUOTA = {
    "name": "quota",
    "parts": [
        {"share": 0.5, "scorers": [{"name": "random"}]},
        {"share": 0.5, "selector": {"name": "maxmin"}},
    ],
}
SELECTED: dict[str, dict[str, Any]] = {
    **{name: {"name": name} for name in SELECTORS},
    "cover, asked": {"name": "cover", "text": 1.0},
    "cover, weighed": {"name": "cover", "tau": 0.1, "beta": 0.4, "delta": 0.2},
    "dpp, each view": {"name": "dpp", "scope": "view"},
    "quota": QUOTA,
}
"""A selector of each kind, and some settings that take another way through the runtime."""


def staged(model: Any, *stages: dict[str, Any], **fields: Any) -> PruningConfig:
    """Return a config of stages as they stand in a file."""
    ref = ModelRef(model_type=model.config.model_type, num_layers=LAYERS)
    return PruningConfig(model=ref, stages=tuple(Stage(**stage) for stage in stages), **fields)


def selecting(model: Any, kind: str, layer: int, **fields: Any) -> PruningConfig:
    """Return a config whose first stage selects, and another one behind it without scorers.

    Of a hybrid model the first stage alone, before layer 0.
    """
    first = {"layer": layer, "retention": 0.4, "scorers": SCORED, "selector": SELECTED[kind]}
    if family(model).hybrid:
        return staged(model, first | {"layer": 0}, **fields)
    later = {"layer": 4, "retention": 0.15, "selector": {"name": "mmr"}}
    return staged(model, first, later, **fields)
