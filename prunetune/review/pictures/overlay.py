"""Which tokens of a picture a config keeps, and a picture of them."""

from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from prunetune.calibration import Sample, encode
from prunetune.config import PruningConfig
from prunetune.models.devices import device_of
from prunetune.runtime.apply import apply, family_of
from prunetune.tokens import ImageGeometry

BOX = 320
"""Pixels of a panel's longer side."""
FAINT = (105, 105, 105)
_HATCH, _EDGE = (140, 140, 140), (225, 70, 10)


@dataclass(frozen=True)
class StageKept:
    """What one stage left.

    Attributes:
        layer: The stage's layer.
        kept: ``[n]`` bool, which of the image's tokens are alive after it.
        scores: ``[n]`` float32, importance of the patches that were alive before it (a weighted
            sum of standardised scores, without unit); NaN for all other tokens.
    """

    layer: int
    kept: Tensor
    scores: Tensor

    @property
    def count(self) -> int:
        """Tokens alive."""
        return int(self.kept.sum())

    @property
    def caption(self) -> str:
        """Such as ``layer 2: 84 of 336 (25%)``."""
        share = 100 * self.count / len(self.kept)
        return f"layer {self.layer}: {self.count} of {len(self.kept)} ({share:.3g}%)"


@dataclass(frozen=True)
class Kept:
    """What a config kept of one image.

    Attributes:
        geometry: Of all the image's tokens.
        stages: One entry a stage, in order.
    """

    geometry: ImageGeometry
    stages: tuple[StageKept, ...]

    def views(self) -> list[tuple[str, Tensor]]:
        """Return the parts of the sequence that are pictures of their own, ``[n]`` bool each."""
        patch = ~self.geometry.separator
        thumbnail = (self.geometry.tile == 0) & patch
        tiles = (self.geometry.tile > 0) & patch
        if not bool(tiles.any()):
            return [(f"picture {self._grid(thumbnail)}", thumbnail)]
        return [
            (f"thumbnail {self._grid(thumbnail)}", thumbnail),
            (f"tiles {self._grid(tiles)}", tiles),
        ]

    def _grid(self, member: Tensor) -> str:
        rows = len(torch.unique(self.geometry.y[member]))
        return f"{rows} x {len(torch.unique(self.geometry.x[member]))}"


@torch.no_grad()
def kept_tokens(loaded: Any, config: PruningConfig, image: Image.Image, question: str) -> Kept:
    """Run one prompt under a config and tell what every stage kept.

    Args:
        loaded: ``prunetune.models.LoadedModel``.
        config: The config.
        image: RGB.
        question: Plain text; scorers that see the question depend on it.

    Raises:
        ConfigError: The config is for another model.
    """
    family = family_of(loaded.model)
    with apply(loaded.model, config, processor=loaded.processor) as handle:
        inputs = encode(loaded.processor, [Sample((image,), question, id="image")])
        inputs = inputs.to(device_of(loaded.model))
        family.base(**inputs, use_cache=False)
        trace = handle.trace[-1]
    geometry = trace.geometries[0][0].to("cpu")
    slots = trace.image_slots[0].cpu()
    stages, alive = [], torch.ones(len(slots), dtype=torch.bool)
    for stage in trace.stages:
        scores = torch.full((len(slots),), torch.nan)
        scores[alive & ~geometry.separator] = stage.scores[0][0].float().cpu()
        alive = torch.isin(slots, stage.kept[0].cpu())
        stages.append(StageKept(stage.layer, alive, scores))
    if not stages:
        # Smaller pictures are all: every token of them enters the language model.
        stages.append(StageKept(0, alive, torch.full((len(slots),), torch.nan)))
    return Kept(geometry, tuple(stages))


def fitted(image: Image.Image) -> Image.Image:
    """Scale to fit the box; small pictures with hard pixels, so that they stay legible."""
    up = max(image.size) < BOX
    method = Image.Resampling.NEAREST if up else Image.Resampling.LANCZOS
    longer = max(image.size)
    # A side of less than a pixel has one.
    width, height = (max(1, round(side * BOX / longer)) for side in image.size)
    return image.resize((width, height), method)


def kept_panel(
    picture: Image.Image, geometry: ImageGeometry, member: Tensor, alive: Tensor
) -> Image.Image:
    """Draw one view at one stage: kept tokens clear and outlined, dropped ones grey and hatched.

    Args:
        picture: Scaled.
        geometry: Of all tokens.
        member: ``[n]`` bool, tokens of the view.
        alive: ``[n]`` bool, tokens alive.
    """
    boxes = [cell(geometry, i, picture.size) for i in (member & alive).nonzero().flatten().tolist()]
    mask = Image.new("L", picture.size, 0)
    draw = ImageDraw.Draw(mask)
    for box in boxes:
        draw.rectangle(box, fill=255)
    panel = Image.composite(picture, dropped(picture), mask)
    if len(boxes) < int(member.sum()):
        draw = ImageDraw.Draw(panel)
        for box in boxes:
            draw.rectangle(box, outline=_EDGE)
    ImageDraw.Draw(panel).rectangle((0, 0, panel.width - 1, panel.height - 1), outline=FAINT)
    return panel


def cell(geometry: ImageGeometry, i: int, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Return the rectangle of token ``i`` in a picture of ``size``: left, top, right, bottom.

    All four are inside it; a token narrower than a pixel has one.
    """
    y, x = float(geometry.y[i]), float(geometry.x[i])
    half_y, half_x = float(geometry.height[i]) / 2, float(geometry.width[i]) / 2
    left, right = _pixels(x - half_x, x + half_x, size[0])
    top, bottom = _pixels(y - half_y, y + half_y, size[1])
    return left, top, right, bottom


def _pixels(low: float, high: float, size: int) -> tuple[int, int]:
    """Return the first and last pixel of a stretch, given as shares of ``size`` pixels."""
    first = min(max(0, round(low * size)), size - 1)
    return first, min(max(first, round(high * size) - 1), size - 1)


def dropped(picture: Image.Image) -> Image.Image:
    """Return the picture as dropped tokens are shown: pale grey under a diagonal hatch."""
    pale = Image.blend(
        picture.convert("L").convert("RGB"), Image.new("RGB", picture.size, (240,) * 3), 0.7
    )
    draw = ImageDraw.Draw(pale)
    for start in range(-picture.height, picture.width, 7):
        draw.line((start, picture.height, start + picture.height, 0), fill=_HATCH)
    return pale
