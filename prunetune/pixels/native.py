"""The processors' and engines' own settings that come nearest to a level of pixels."""

import copy
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from prunetune.pixels.field import MaxPixels, Pixels
from prunetune.pixels.layouts import fitted
from prunetune.pixels.processors import layout_of

Count = Callable[[Any], int]


@dataclass(frozen=True)
class Setting:
    """A setting of one engine.

    Attributes:
        engine: Who reads it.
        text: What to write.
        exact: Whether it does to every picture what the level does.
        note: What it does instead, or what it rests on.
    """

    engine: str
    text: str
    exact: bool
    note: str = ""


def native_settings(
    processor: Any,
    pixels: Pixels,
    model_type: str,
    sizes: Iterable[tuple[int, int]],
    count: Count,
    wanted: int,
) -> list[Setting]:
    """Return the settings that come nearest to a level over given pictures.

    Args:
        processor: Of the model, as it is.
        pixels: The level.
        model_type: Of the model.
        sizes: (height, width) of calibration pictures.
        count: Returns the image tokens that a processor makes of these pictures.
        wanted: Image tokens that the level makes of them.

    Raises:
        ConfigError: No level makes the family's tokens fewer.
    """
    layout, pictures = layout_of(model_type), processor.image_processor
    if layout == "tiles":
        text = "send smaller pictures: prunetune.resized(processor, config)"
        note = "its tiles (image_grid_pinpoints) stand in the model's config too: leave them alone"
        return [Setting("transformers, vLLM", text, False, note)]
    if layout in ("native", "volume", "enlarged"):
        return _caps(processor, pixels, sizes, count, wanted, layout)
    if layout in ("canvas", "covering"):
        choices: list[dict[str, Any]] = [
            {"max_patches": n} for n in range(1, int(pictures.max_patches) + 1)
        ]
    elif layout == "edge":
        unit = int(processor.patch_size) * int(processor.spatial_merge_size)
        found = range(unit, int(pictures.size["longest_edge"]) + 1, unit)
        choices = [{"size": {"longest_edge": n}} for n in _some(found)]
    else:
        edge = int(pictures.size["longest_edge"])
        tile = int(pictures.max_image_size["longest_edge"])
        steps = range(tile, edge + 1, max(1, tile // 4))
        choices = [{"size": {"longest_edge": n}} for n in dict.fromkeys((*steps, edge))]
    best, made = _nearest(processor, choices, count, wanted)
    note = _note(made, wanted)
    name, value = next(iter(best.items()))
    if layout == "canvas":
        return [
            Setting("transformers", f"processor(..., max_patches={value})", False, note),
            Setting("vLLM, LMDeploy", f"max_dynamic_patch: {value}", False, note),
        ]
    return [
        Setting("transformers", f"processor(..., {name}={value})", False, note),
        Setting("vLLM", f"--mm-processor-kwargs '{json.dumps({name: value})}'", False, note),
    ]


def _caps(
    processor: Any,
    pixels: Pixels,
    sizes: Iterable[tuple[int, int]],
    count: Count,
    wanted: int,
    layout: str,
) -> list[Setting]:
    """Qwen-VL: a cap of pixels says a cap exactly, and a share for pictures of one size."""
    pictures = processor.image_processor
    # Of GLM's pictures both moments are counted.
    moments = int(pictures.temporal_patch_size) if layout == "volume" else 1
    low, high = (int(pictures.size[k]) // moments for k in ("shortest_edge", "longest_edge"))
    unit = int(pictures.patch_size) * int(pictures.merge_size)
    exact = isinstance(pixels, MaxPixels)
    if isinstance(pixels, MaxPixels):
        most, note = max(low, min(high, pixels.max_pixels)), ""
    else:
        used = (math.prod(fitted(size, unit, low, high)) for size in set(sizes))
        found = sorted({max(low, int(pixels.cap(area))) for area in used})
        edges = [(low * moments, area * moments) for area in _some(found)]
        choices = [{"size": {"shortest_edge": a, "longest_edge": b}} for a, b in edges]
        best, made = _nearest(processor, choices, count, wanted)
        most, note = best["size"]["longest_edge"] // moments, _note(made, wanted)
    edge = f"{{'shortest_edge': {low * moments}, 'longest_edge': {most * moments}}}"
    text = f"processor(..., size={edge})"
    if layout == "volume":
        return [Setting("transformers", text, exact, note)]
    kwargs = json.dumps({"min_pixels": low, "max_pixels": most})
    tokens = most // unit**2
    return [
        Setting("transformers", text, exact, note),
        Setting("vLLM", f"--mm-processor-kwargs '{kwargs}'", exact, note),
        Setting("llama.cpp", f"--image-max-tokens {tokens}", False, note or "whole tokens"),
    ]


def _some(values: Sequence[int], most: int = 16) -> list[int]:
    """Return at most so many values, spread evenly."""
    step = max(1.0, (len(values) - 1) / (most - 1))
    return [values[round(k * step)] for k in range(min(most, len(values)))]


def _nearest(
    processor: Any, choices: Sequence[Mapping[str, Any]], count: Count, wanted: int
) -> tuple[dict[str, Any], int]:
    """Return the choice whose tokens are nearest to what is wanted, and its tokens."""
    found = [(count(_with(processor, choice)), dict(choice)) for choice in choices]
    made, best = min(found, key=lambda pair: (abs(pair[0] - wanted), pair[0]))
    return best, made


def _with(processor: Any, attributes: Mapping[str, Any]) -> Any:
    other = copy.copy(processor)
    kind = type(processor.image_processor)
    state = processor.image_processor.to_dict()
    state = {k: v for k, v in state.items() if not k.endswith("_type")}
    other.image_processor = kind(**{**state, **attributes})
    return other


def _note(made: int, wanted: int) -> str:
    return f"nearest over the calibration pictures: {made} image tokens, the level has {wanted}"
