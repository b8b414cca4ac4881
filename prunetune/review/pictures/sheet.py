"""Contact sheets: a row a picture, a column a stage; thumbnail and tiles apart."""

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from prunetune.review.pictures.heatmap import (
    INK,
    difference_key,
    difference_panel,
    font,
    heat_panel,
    score_key,
)
from prunetune.review.pictures.overlay import FAINT, Kept, StageKept, fitted, kept_panel
from prunetune.tokens import ImageGeometry

_LEAST_COLUMN = 250
_MARGIN = 16
_MOST_LETTERS = 1000
_TEXT, _SMALL = 16, 13
_PAPER = (255, 255, 255)

Paint = Callable[[Image.Image, ImageGeometry, Tensor], Image.Image]


@dataclass(frozen=True)
class Row:
    """One picture of a sheet.

    Attributes:
        name: Shown above; empty for nothing.
        image: The picture.
        kept: What a config kept of it.
        against: What another config kept of it, to be shown beside.
    """

    name: str
    image: Image.Image
    kept: Kept
    against: Kept | None = None

    @property
    def both(self) -> Tensor | None:
        """Tokens that both configs keep, ``[n]`` bool; None where there are no such tokens.

        One of them may see a smaller picture, whose tokens are others.
        """
        if self.against is None or len(self.against.geometry) != len(self.kept.geometry):
            return None
        return self.kept.stages[-1].kept & self.against.stages[-1].kept

    def apart(self) -> "list[Row]":
        """Return the row itself, or two where the configs see pictures of other sizes."""
        if self.against is None or self.both is not None:
            return [self]
        sides = (("A", self.kept), ("B", self.against))
        return [Row(f"{self.name} {side}".strip(), self.image, kept) for side, kept in sides]


@dataclass(frozen=True)
class _Column:
    """One column of a row: caption, the tokens it counts, how a view is drawn, and a line below."""

    caption: str
    alive: Tensor
    paint: Paint
    below: str = ""


def sheet(
    rows: Sequence[Row], title: str = "", notes: Sequence[str] = (), *, scores: bool = False
) -> Image.Image:
    """Draw pictures stage by stage, one below the other.

    Args:
        rows: At least one. Where a row has another config to compare with, that one's stages are
            beside the first one's, and a last column shows where the final stages differ.
        title: One line above.
        notes: Lines below.
        scores: Draw each stage's scores instead of the picture.
    """
    rows = [part for row in rows for part in row.apart()]
    pictures = [fitted(row.image.convert("RGB")) for row in rows]
    width = max(_LEAST_COLUMN, *(picture.width for picture in pictures)) + _MARGIN
    blocks = [_block(row, picture, width, scores) for row, picture in zip(rows, pictures)]
    across = max(block.width for block in blocks) + _MARGIN
    keys = _keys(rows, across - 2 * _MARGIN, scores)
    top = _MARGIN + (_TEXT + 12 if title else 0)
    height = top + sum(block.height for block in blocks) + sum(key.height for key in keys)
    height += (_SMALL + 8) * len(notes) + _MARGIN
    page = Image.new("RGB", (across, height), _PAPER)
    draw = ImageDraw.Draw(page)
    if title:
        draw.text((_MARGIN, _MARGIN - 4), cut(draw, title, across - 2 * _MARGIN), INK, font(_TEXT))
    y = top
    for part in (*blocks, *keys):
        page.paste(part, (_MARGIN, y))
        y += part.height
    for k, note in enumerate(notes):
        text = cut(draw, note, across - 2 * _MARGIN, _SMALL)
        draw.text((_MARGIN, y + 4 + k * (_SMALL + 8)), text, INK, font(_SMALL))
    return page


def _keys(rows: Sequence[Row], width: int, scores: bool) -> list[Image.Image]:
    keys = [score_key(width, _SMALL)] if scores else []
    if any(row.against is not None for row in rows):
        keys.append(difference_key(width, _SMALL))
    return keys


def _block(row: Row, picture: Image.Image, width: int, scores: bool) -> Image.Image:
    """Draw one picture's columns."""
    geometry, columns = row.kept.geometry, _columns(row, scores)
    views = row.kept.views()
    top = (_TEXT + 10 if row.name else 0) + _TEXT + 10
    each = picture.height + _SMALL + 22
    separators = bool(geometry.separator.any())
    bottom = _SMALL + 12 if separators or scores else 4
    block = Image.new("RGB", (width * len(columns), top + each * len(views) + bottom), _PAPER)
    draw = ImageDraw.Draw(block)
    if row.name:
        draw.text((0, 0), cut(draw, row.name, block.width), INK, font(_TEXT))
    for k, column in enumerate(columns):
        x = k * width
        draw.text((x, top - _TEXT - 10), cut(draw, column.caption, width - 8), INK, font(_TEXT))
        for v, (name, member) in enumerate(views):
            y = top + v * each
            block.paste(column.paint(picture, geometry, member), (x, y))
            text = f"{name}: {_count(member, column.alive)}"
            draw.text((x, y + picture.height + 4), text, FAINT, font(_SMALL))
        texts = [column.below] if column.below else []
        if separators:
            texts.insert(0, f"separators: {_count(geometry.separator, column.alive)}")
        draw.text((x, top + len(views) * each - 6), "; ".join(texts), FAINT, font(_SMALL))
    return block


def _count(member: Tensor, alive: Tensor) -> str:
    return f"{int((member & alive).sum())} of {int(member.sum())}"


def _columns(row: Row, scores: bool) -> list[_Column]:
    every = torch.ones(len(row.kept.geometry), dtype=torch.bool)
    columns = [_Column(f"unpruned: {len(every)} tokens", every, partial(_kept, every))]
    both = row.against is not None
    columns += [_stage(stage, "A, " if both else "", scores) for stage in row.kept.stages]
    if row.against is not None:
        columns += [_stage(stage, "B, ", scores) for stage in row.against.stages]
        a, b = row.kept.stages[-1].kept, row.against.stages[-1].kept
        caption = f"last stages: {int((a & b).sum())} kept by both"
        columns.append(_Column(caption, a & b, partial(_difference, a, b)))
    return columns


def _stage(stage: StageKept, prefix: str, scores: bool) -> _Column:
    if not scores:
        return _Column(prefix + stage.caption, stage.kept, partial(_kept, stage.kept))
    known = stage.scores[~stage.scores.isnan()]
    below = f"scores {float(known.min()):.2g} to {float(known.max()):.2g}" if len(known) else ""
    return _Column(prefix + stage.caption, stage.kept, partial(_heat, stage), below)


def _kept(
    alive: Tensor, picture: Image.Image, geometry: ImageGeometry, member: Tensor
) -> Image.Image:
    return kept_panel(picture, geometry, member, alive)


def _heat(
    stage: StageKept, picture: Image.Image, geometry: ImageGeometry, member: Tensor
) -> Image.Image:
    return heat_panel(picture, geometry, member, stage.kept, stage.scores)


def _difference(
    a: Tensor, b: Tensor, picture: Image.Image, geometry: ImageGeometry, member: Tensor
) -> Image.Image:
    return difference_panel(picture, geometry, member, a, b)


def cut(draw: ImageDraw.ImageDraw, text: str, width: int, size: int = _TEXT) -> str:
    """Return ``text`` on one line, shortened where it is wider than ``width`` pixels."""
    text = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    if len(text) <= _MOST_LETTERS and draw.textlength(text, font(size)) <= width:
        return text
    # A font measures every letter: nothing as long as a page is measured.
    text = text[:_MOST_LETTERS]
    fits = bisect_left(
        range(len(text)), True, key=lambda n: draw.textlength(f"{text[:n]}...", font(size)) > width
    )
    return f"{text[: max(0, fits - 1)]}..."
