"""Scores and differences as colours, chosen so that readers of any colour vision can read them."""

from typing import Any, Final

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from prunetune.review.pictures.overlay import FAINT, cell, dropped
from prunetune.tokens import ImageGeometry

INK = (20, 20, 20)
# Viridis (van der Walt and Smith, 2015): even steps of lightness, for any colour vision.
_VIRIDIS: Final = (
    (68, 1, 84),
    (72, 40, 120),
    (62, 73, 137),
    (49, 104, 142),
    (38, 130, 142),
    (31, 158, 137),
    (53, 183, 121),
    (110, 206, 88),
    (181, 222, 43),
    (253, 231, 37),
)
# Okabe and Ito's blue and orange: kept by one config only.
ONLY_A, ONLY_B = (0, 114, 178), (230, 159, 0)
_OPACITY = 0.85
_BAR = (220, 14)


def font(size: int) -> Any:
    """Return the font of all pictures."""
    return ImageFont.load_default(size)


def colour(share: float) -> tuple[int, int, int]:
    """Return the colour of a value in [0, 1], dark violet to yellow."""
    place = min(max(share, 0.0), 1.0) * (len(_VIRIDIS) - 1)
    low = min(int(place), len(_VIRIDIS) - 2)
    pairs = zip(_VIRIDIS[low], _VIRIDIS[low + 1])
    red, green, blue = (round(a + (place - low) * (b - a)) for a, b in pairs)
    return red, green, blue


def scaled(scores: Tensor) -> Tensor:
    """Return scores as shares of their range, ``[n]`` in [0, 1]; NaN stays, equal ones are 0.5."""
    known = scores[~scores.isnan()]
    if not len(known) or float(known.max()) <= float(known.min()):
        return torch.where(scores.isnan(), scores, torch.full_like(scores, 0.5))
    return (scores - known.min()) / (known.max() - known.min())


def heat_panel(
    picture: Image.Image, geometry: ImageGeometry, member: Tensor, kept: Tensor, scores: Tensor
) -> Image.Image:
    """Draw one view's scores over the picture; kept tokens outlined, those gone before hatched.

    Args:
        picture: Scaled.
        geometry: Of all tokens.
        member: ``[n]`` bool, tokens of the view.
        kept: ``[n]`` bool, tokens that the stage keeps.
        scores: ``[n]`` float32, NaN where a token was gone before.
    """
    shares = scaled(scores)
    paint = {i: colour(float(shares[i])) for i in _indices(member & ~scores.isnan())}
    return _painted(picture, geometry, paint, _indices(member & kept & ~scores.isnan()))


def difference_panel(
    picture: Image.Image, geometry: ImageGeometry, member: Tensor, a: Tensor, b: Tensor
) -> Image.Image:
    """Draw which tokens of one view two configs keep: both clear, one alone coloured.

    Args:
        picture: Scaled.
        geometry: Of all tokens.
        member: ``[n]`` bool, tokens of the view.
        a: ``[n]`` bool, tokens that the first config keeps.
        b: ``[n]`` bool, tokens that the second config keeps.
    """
    paint: dict[int, tuple[int, int, int] | None] = dict.fromkeys(_indices(member & a & b))
    paint |= dict.fromkeys(_indices(member & a & ~b), ONLY_A)
    paint |= dict.fromkeys(_indices(member & b & ~a), ONLY_B)
    return _painted(picture, geometry, paint, [])


def _painted(
    picture: Image.Image,
    geometry: ImageGeometry,
    paint: "dict[int, tuple[int, int, int] | None] | dict[int, tuple[int, int, int]]",
    outlined: list[int],
) -> Image.Image:
    """Draw tokens in their colour (None: as they are), all others as dropped."""
    mask = Image.new("L", picture.size, 0)
    layer = picture.copy()
    grey = picture.convert("L").convert("RGB")
    shown, over = ImageDraw.Draw(mask), ImageDraw.Draw(layer)
    for i, value in paint.items():
        box = cell(geometry, i, picture.size)
        shown.rectangle(box, fill=255)
        if value is not None:
            over.rectangle(box, fill=value)
            inside = box[0], box[1], box[2] + 1, box[3] + 1
            mixed = Image.blend(grey.crop(inside), layer.crop(inside), _OPACITY)
            layer.paste(mixed, inside[:2])
    panel = Image.composite(layer, dropped(picture), mask)
    draw = ImageDraw.Draw(panel)
    for i in outlined:
        box = cell(geometry, i, picture.size)
        draw.rectangle(box, outline=INK)
        if box[2] - box[0] > 4 and box[3] - box[1] > 4:
            draw.rectangle((box[0] + 1, box[1] + 1, box[2] - 1, box[3] - 1), outline=(255,) * 3)
    draw.rectangle((0, 0, panel.width - 1, panel.height - 1), outline=FAINT)
    return panel


def _indices(member: Tensor) -> list[int]:
    found: list[int] = member.nonzero().flatten().tolist()
    return found


def score_key(width: int, size: int) -> Image.Image:
    """Return the legend of score panels, at most ``width`` wide, in letters of ``size``."""
    text = "lowest score of the stage", "highest; outlined: kept; hatched: gone before this stage"
    key = Image.new("RGB", (width, _BAR[1] + 10), (255, 255, 255))
    draw = ImageDraw.Draw(key)
    draw.text((0, 3), text[0], INK, font(size))
    x = int(draw.textlength(text[0], font(size))) + 10
    for step in range(_BAR[0]):
        draw.line((x + step, 5, x + step, 5 + _BAR[1]), fill=colour(step / (_BAR[0] - 1)))
    draw.text((x + _BAR[0] + 10, 3), text[1], INK, font(size))
    return key


def difference_key(width: int, size: int) -> Image.Image:
    """Return the legend of difference panels, at most ``width`` wide, in letters of ``size``."""
    key = Image.new("RGB", (width, _BAR[1] + 10), (255, 255, 255))
    draw, x = ImageDraw.Draw(key), 0
    for text, fill in (("kept by A only", ONLY_A), ("kept by B only", ONLY_B)):
        draw.rectangle((x, 5, x + 20, 5 + _BAR[1]), fill=fill)
        draw.text((x + 28, 3), text, INK, font(size))
        x += 28 + int(draw.textlength(text, font(size))) + 24
    draw.text((x, 3), "clear: kept by both; hatched: by neither", INK, font(size))
    return key
