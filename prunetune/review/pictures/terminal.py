"""Kept tokens in a terminal: half-block pictures in colour, a grid of signs without."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from prunetune.review.pictures.heatmap import colour, scaled
from prunetune.review.pictures.overlay import Kept, StageKept, cell
from prunetune.review.pictures.sheet import Row

if TYPE_CHECKING:
    from rich.console import Console

_GAP = 2
_MOST, _LEAST = 44, 16
_TALLEST = 400
"""Pixels, two a line: what is taller is pressed together, not printed for pages."""
_DIM = (38, 38, 38)
_SHADES = {True: "░▒▓█", False: "-=*#"}
_GONE = {True: "·", False: "."}
_HALF = "▀"


def print_kept(console: "Console", rows: Sequence[Row], *, scores: bool = False) -> None:
    """Print pictures stage by stage.

    Without colour (a pipe, ``NO_COLOR``, a dumb terminal) every token is a sign, in its place.

    Args:
        console: Where to; its width, colours and encoding decide what is printed.
        rows: At least one.
        scores: Show each stage's scores instead of the picture.
    """
    for row in rows:
        if row.name:
            _line(console, row.name)
        sides = [("A, " if row.against else "", row.kept)]
        if row.against is not None:
            sides.append(("B, ", row.against))
        for prefix, kept in sides:
            for name, member in kept.views():
                for stage in kept.stages:
                    _line(console, f"{prefix}{stage.caption}; {name}: {_count(member, stage.kept)}")
                if console.color_system is None:
                    _signs(console, kept, member, scores)
                else:
                    _picture(console, row.image, kept, member, scores)
    _legend(console, scores)


def _line(console: "Console", text: str) -> None:
    # Names come from outside: no markup, no emoji codes, no control characters.
    shown = "".join(c if c.isprintable() else " " for c in text)
    console.print(shown, markup=False, emoji=False, highlight=False, soft_wrap=True)


def _count(member: Tensor, alive: Tensor) -> str:
    return f"{int((member & alive).sum())} of {int(member.sum())}"


def _legend(console: "Console", scores: bool) -> None:
    wide = _unicode(console)
    if console.color_system is not None:
        text = "bright: highest score; dark: dropped before" if scores else "dark: dropped"
    elif scores:
        text = f"{_SHADES[wide]} from the lowest score to the highest, {_GONE[wide]} dropped before"
    else:
        text = f"{_SHADES[wide][-1]} kept, {_GONE[wide]} dropped"
    _line(console, text)


def _unicode(console: "Console") -> bool:
    return str(console.encoding).lower().startswith("utf")


def _signs(console: "Console", kept: Kept, member: Tensor, scores: bool) -> None:
    """Print one grid of signs a stage, side by side as far as the console is wide."""
    grids = [_grid(kept, stage, member, scores, _unicode(console)) for stage in kept.stages]
    each = len(grids[0][0]) + _GAP
    fits = max(1, (console.width + _GAP) // each)
    for first in range(0, len(grids), fits):
        for lines in zip(*grids[first : first + fits]):
            _line(console, (" " * _GAP).join(lines))
        _line(console, "")


def _grid(kept: Kept, stage: StageKept, member: Tensor, scores: bool, wide: bool) -> list[str]:
    geometry = kept.geometry
    ys, rows = torch.unique(geometry.y[member], return_inverse=True)
    xs, cols = torch.unique(geometry.x[member], return_inverse=True)
    grid = [[" "] * len(xs) for _ in range(len(ys))]
    alive, shares = stage.kept[member], scaled(stage.scores)[member]
    shades = _SHADES[wide]
    for k, (row, col) in enumerate(zip(rows.tolist(), cols.tolist())):
        if scores:
            share = float(shares[k])
            sign = _GONE[wide] if share != share else shades[min(int(4 * share), 3)]
        else:
            sign = shades[-1] if alive[k] else _GONE[wide]
        grid[row][col] = sign
    return ["".join(line) for line in grid]


def _picture(
    console: "Console", image: Image.Image, kept: Kept, member: Tensor, scores: bool
) -> None:
    """Print one half-block picture a stage, side by side as far as the console is wide."""
    each = min(_MOST, max(_LEAST, console.width // len(kept.stages) - _GAP))
    fits = max(1, (console.width + _GAP) // (each + _GAP))
    height = min(_TALLEST, max(2, round(each * image.height / image.width / 2) * 2))
    panels = [
        _panel(image.convert("RGB"), kept, stage, member, scores).resize(
            (each, height), Image.Resampling.BOX
        )
        for stage in kept.stages
    ]
    for first in range(0, len(panels), fits):
        for line in _half_blocks(panels[first : first + fits]):
            console.print(line, soft_wrap=True)
        _line(console, "")


def _panel(
    image: Image.Image, kept: Kept, stage: StageKept, member: Tensor, scores: bool
) -> Image.Image:
    shares = scaled(stage.scores)
    shown = member & (~stage.scores.isnan() if scores else stage.kept)
    panel = Image.new("RGB", image.size, _DIM)
    draw = ImageDraw.Draw(panel)
    for i in shown.nonzero().flatten().tolist():
        left, top, right, bottom = cell(kept.geometry, i, image.size)
        if scores:
            draw.rectangle((left, top, right, bottom), fill=colour(float(shares[i])))
        else:
            panel.paste(image.crop((left, top, right + 1, bottom + 1)), (left, top))
    return panel


def _half_blocks(panels: Sequence[Image.Image]) -> Iterator[object]:
    from rich.color import Color
    from rich.style import Style
    from rich.text import Text

    for y in range(0, panels[0].height, 2):
        line = Text(no_wrap=True)
        for k, panel in enumerate(panels):
            line.append(" " * (_GAP if k else 0))
            for x in range(panel.width):
                upper, lower = (panel.getpixel((x, y + half)) for half in (0, 1))
                style = Style(color=Color.from_rgb(*upper), bgcolor=Color.from_rgb(*lower))
                line.append(_HALF, style)
        yield line
