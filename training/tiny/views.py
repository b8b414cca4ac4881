"""What the vision tower sees of a picture, and what its patches show."""

from dataclasses import dataclass

import numpy as np
from PIL import Image

from training.tiny.model import PATCH, VIEW
from training.tiny.pictures import Picture

GRID = VIEW // PATCH
UNKNOWN = -100  # no target: a label that the loss leaves out


@dataclass(frozen=True)
class Layout:
    """How the processor cuts pictures of one size, in patches of 8 pixels."""

    width: int
    height: int

    @property
    def tiles(self) -> tuple[int, int]:
        """Rows and columns of tiles."""
        return -(-self.height // VIEW), -(-self.width // VIEW)

    @property
    def padding(self) -> tuple[int, int]:
        """Pixels above and to the left."""
        rows, columns = self.tiles
        return (rows * VIEW - self.height) // 2, (columns * VIEW - self.width) // 2

    def to_tiles(self, padded: np.ndarray, side: int) -> np.ndarray:
        """(rows x side, columns x side, ...) -> (tiles, side, side, ...)."""
        rows, columns = self.tiles
        cut = padded.reshape(rows, side, columns, side, *padded.shape[2:]).swapaxes(1, 2)
        return cut.reshape(rows * columns, side, side, *padded.shape[2:])

    def order(self) -> np.ndarray:
        """Index of each visual token in (thumbnail, tiles, newline): unpadded rows + newlines."""
        rows, columns = self.tiles
        patches = GRID * GRID
        ids = np.arange(rows * columns * patches).reshape(rows, columns, GRID, GRID) + patches
        grid = ids.transpose(0, 2, 1, 3).reshape(rows * GRID, columns * GRID)
        top, left = (p // PATCH for p in self.padding)
        grid = grid[top : grid.shape[0] - top, left : grid.shape[1] - left]
        newline = np.full((grid.shape[0], 1), (rows * columns + 1) * patches)
        return np.concatenate([np.arange(patches), np.concatenate([grid, newline], 1).ravel()])


def views(picture: Picture, layout: Layout) -> np.ndarray:
    """(1 + tiles, 64, 64, 3) uint8: what the processor shows the tower, before normalising."""
    thumbnail = Image.fromarray(picture.pixels).resize((VIEW, VIEW), Image.BICUBIC)
    return np.concatenate([np.asarray(thumbnail)[None], layout.to_tiles(pad(picture.pixels), VIEW)])


def pad(pixels: np.ndarray) -> np.ndarray:
    """Zeros around (height, width, ...) up to whole tiles."""
    layout = Layout(pixels.shape[1], pixels.shape[0])
    top, left = layout.padding
    more = [(top, top), (left, left)] + [(0, 0)] * (pixels.ndim - 2)
    return np.pad(pixels, more)


def main_owner(owner: np.ndarray, grid: tuple[int, int], share: float) -> np.ndarray:
    """Which object covers at least a share of each grid cell: (rows, columns), 0 for none."""
    (rows, columns), (height, width) = grid, owner.shape
    cells = owner.reshape(rows, height // rows, columns, width // columns).swapaxes(1, 2)
    cells = cells.reshape(rows, columns, -1)
    counts = np.stack([(cells == k).sum(-1) for k in range(1, owner.max() + 2)], -1)
    return np.where(counts.max(-1) >= share * cells.shape[-1], counts.argmax(-1) + 1, 0)


@dataclass(frozen=True)
class Labels:
    """Per view and patch: shape, color, digit (0: none), offset to the centre, centre; per CLS.

    Attributes:
        tone: index into TONES, -100 where there is no object.
        ground: pattern, color and tone of the background, -100 where an object is or none is known.
    """

    shape: np.ndarray
    color: np.ndarray
    digit: np.ndarray
    tone: np.ndarray
    ground: np.ndarray
    offset: np.ndarray
    place: np.ndarray
    seen: np.ndarray


def labels(picture: Picture, layout: Layout) -> Labels:
    """What the heads should read off each patch; arrays start with (views, 64)."""
    rows, columns = layout.tiles
    fine, coarse = (rows * GRID, columns * GRID), (GRID, GRID)

    def both(owner: np.ndarray, small: float, large: float) -> np.ndarray:
        thumbnail = main_owner(owner, coarse, large)[None]
        tiles = layout.to_tiles(main_owner(pad(owner), fine, small), GRID)
        return np.concatenate([thumbnail, tiles]).reshape(-1, GRID * GRID)

    owner, digit_owner = both(picture.owner, 0.25, 0.25), both(picture.digit_owner, 0.4, 0.3)
    things = picture.things

    def table(values: list[int]) -> np.ndarray:
        return np.array([0, *(v + 1 for v in values)])

    shape = table([t.shape for t in things])[owner]
    color = table([t.color for t in things])[owner]
    digit = table([t.digit for t in things])[digit_owner]
    tone = np.array([UNKNOWN, *(t.tone for t in things)])[owner]
    known = picture.ground
    ground = np.full((*owner.shape, 3), UNKNOWN)
    if known:
        ground[owner == 0] = known.pattern, known.color, known.tone
    centre = np.array([(0, 0), *((t.x, t.y) for t in things)], np.float32)[owner]
    place = centre / (picture.width, picture.height)
    seen = seen_labels(shape, color, digit)
    offset = offsets(centre, place, layout)
    return Labels(shape, color, digit, tone, ground, offset, place, seen)


def offsets(centre: np.ndarray, place: np.ndarray, layout: Layout) -> np.ndarray:
    """(views, 64, 2): from the patch's middle to its object's centre, in view sides."""
    middle = (np.arange(GRID) + 0.5) / GRID
    middles = np.stack(np.meshgrid(middle, middle), -1).reshape(1, GRID * GRID, 2)
    rows, columns = layout.tiles
    starts = np.array([(c * VIEW, r * VIEW) for r in range(rows) for c in range(columns)])
    top, left = layout.padding
    in_tile = (centre[1:] + np.array([left, top]) - starts[:, None]) / VIEW
    return (np.concatenate([place[:1], in_tile]) - middles).astype(np.float32)


def seen_labels(shape: np.ndarray, color: np.ndarray, digit: np.ndarray) -> np.ndarray:
    """(views, 65) float: colors, shapes, digits and color-shape pairs that a view shows."""
    seen = np.zeros((len(shape), 65), np.float32)
    view, _ = np.indices(shape.shape)
    some = shape > 0
    seen[view[some], color[some] - 1] = 1
    seen[view[some], 7 + shape[some] - 1] = 1
    seen[view[some], 23 + (color[some] - 1) * 6 + shape[some] - 1] = 1
    some = digit > 0
    seen[view[some], 13 + digit[some] - 1] = 1
    return seen
