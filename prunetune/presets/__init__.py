"""Presets: published methods and controls as configs. Data, not code: one JSON file each.

A new preset is one file in this folder; its config is of the first version that can say it. A
stage's place is ``layer`` (as published) or ``depth``, a share of the decoder layers;
``by_model_type`` may replace fields for one ``model_type``.
A method that was released for several budgets has ``released`` instead of ``stages``: a list of
``keep`` and ``stages``, the first of which stands for the method where no budget is asked for.
"""

import json
from difflib import get_close_matches
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from prunetune.errors import ConfigError

if TYPE_CHECKING:
    from prunetune.budget import Budget
    from prunetune.config import PruningConfig


def preset_names() -> list[str]:
    """Return the names of all presets, sorted."""
    entries = (entry.name for entry in files(__name__).iterdir())
    return sorted(name.removesuffix(".json") for name in entries if name.endswith(".json"))


def read_preset(name: str) -> dict[str, Any]:
    """Return a preset's data as it lies in its file.

    Raises:
        ConfigError: The name is unknown; the message suggests near names and lists all.
    """
    names = preset_names()
    if name not in names:
        near = get_close_matches(name, names, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ConfigError(f"unknown preset {name!r}; known: {', '.join(names)}{hint}")
    data: dict[str, Any] = json.loads(files(__name__).joinpath(f"{name}.json").read_text("utf-8"))
    return data


def load_preset(
    name: str, *, model_type: str, num_layers: int, keep: "float | Budget | None" = None
) -> tuple["PruningConfig", str]:
    """Return a preset as a config for one model, at a budget.

    Args:
        name: One of ``preset_names()``.
        model_type: The transformers ``model_type`` the config is for.
        num_layers: The model's decoder layers.
        keep: Mean retention over all decoder layers, or another budget; None leaves what was
            published. Of several released settings the nearest is moved.

    Returns:
        The config, and a note on what had to change to meet the budget (empty if nothing).

    Raises:
        ConfigError: The name is unknown, or the preset cannot be run or meet ``keep`` here.
    """
    from prunetune.budget import as_budget, rebudget
    from prunetune.config import VERSIONS, PruningConfig

    data, share = read_preset(name), None if keep is None else as_budget(keep).share
    data |= data.get("by_model_type", {}).get(model_type, {})
    notes = []
    if data["positions"] == "packed" and not _can_pack(model_type):
        data["positions"] = "original"
        notes.append(f"positions stay original: {model_type}'s are rows and columns")
    config = PruningConfig.parse(
        {
            "format": "prunetune.config",
            "version": VERSIONS[-1],
            "model": {"model_type": model_type, "num_layers": num_layers},
            "separators": data["separators"],
            "positions": data["positions"],
            "stages": [_placed(stage, num_layers) for stage in _stages(data, share)],
        },
        origin=f"preset {name}",
    )
    if not any(stage.is_new for stage in config.stages):
        config = config.model_copy(update={"version": VERSIONS[0]})
    if keep is not None:
        config, note = rebudget(config, keep, num_layers)
        notes += [note] if note else []
    return config, "; ".join(notes)


def _can_pack(model_type: str) -> bool:
    from prunetune.families import FAMILIES

    return model_type not in FAMILIES or FAMILIES.get(model_type).can_pack


def _stages(data: dict[str, Any], keep: float | None) -> list[dict[str, Any]]:
    released: list[dict[str, Any]] = data.get("released", [data])
    if keep is not None and len(released) > 1:
        released = sorted(released, key=lambda setting: abs(setting["keep"] - keep))
    stages: list[dict[str, Any]] = released[0]["stages"]
    return stages


def _placed(stage: dict[str, Any], num_layers: int) -> dict[str, Any]:
    placed = {key: value for key, value in stage.items() if key != "depth"}
    if "depth" in stage:
        placed["layer"] = round(stage["depth"] * num_layers)
    return placed
