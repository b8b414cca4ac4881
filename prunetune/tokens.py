"""Geometry of visual tokens and keep-index algebra: pure tensors that know no model.

A *visual token* is one projected patch; a *separator* is an image token that is not a patch
(LLaVA-NeXT's newline). Both count as image tokens.
"""

from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor


def _unset() -> Tensor:
    return torch.zeros(0, dtype=torch.long, device="cpu")


@dataclass(frozen=True)
class ImageGeometry:
    """Where each of one image's tokens comes from, in sequence order.

    Attributes:
        tile: ``[n]`` int64, 0 for the thumbnail (or the only view), 1.. for tiles in raster order;
            of a video the frame; a separator carries the tile of the token before it.
        row: ``[n]`` int64, row inside the tile's full grid (before unpadding).
        col: ``[n]`` int64, column inside the tile's full grid.
        tile_rows: ``[n]`` int64, rows of the grid of the token's tile.
        tile_cols: ``[n]`` int64, columns of the grid of the token's tile.
        y: ``[n]`` float32 in [0, 1], centre of the patch in the original picture, from the top.
        x: ``[n]`` float32 in [0, 1], centre of the patch in the original picture, from the left.
        height: ``[n]`` float32 in (0, 1], height of the patch in the original picture.
        width: ``[n]`` float32 in (0, 1], width of the patch in the original picture.
        separator: ``[n]`` bool, True for image tokens that are not patches.
        frame: ``[n]`` int64, a video's frame in order of time; 0 in images.
        row_off: ``[n]`` float32 in [-0.5, 0.5]; how far below the patch at ``row`` a token lies
            that was interpolated from several, in patches of the stitched tiles; 0 for others.
        col_off: ``[n]`` float32; likewise, how far to the right of ``col``.
        across: ``[n]`` int64, tiles in a row of the picture's mosaic; 1 where it is not known.
    """

    tile: Tensor
    row: Tensor
    col: Tensor
    tile_rows: Tensor
    tile_cols: Tensor
    y: Tensor
    x: Tensor
    height: Tensor
    width: Tensor
    separator: Tensor
    frame: Tensor = field(default_factory=_unset)
    row_off: Tensor = field(default_factory=_unset)
    col_off: Tensor = field(default_factory=_unset)
    across: Tensor = field(default_factory=_unset)

    def __post_init__(self) -> None:
        like = {"frame": self.tile, "row_off": self.y, "col_off": self.x, "across": self.tile}
        for name, model in like.items():
            if len(getattr(self, name)) != len(self.tile):
                fill = torch.full_like(model, 1 if name == "across" else 0)
                object.__setattr__(self, name, fill)

    def __len__(self) -> int:
        return int(self.tile.shape[0])

    @property
    def inside(self) -> Tensor:
        """Raster position inside the token's tile, ``[n]`` int64."""
        return self.row * self.tile_cols + self.col

    @property
    def whole(self) -> Tensor:
        """Whether a token's view shows the whole picture (thumbnail or frame), ``[n]`` bool."""
        return self.tile == self.frame

    def select(self, index: Tensor) -> "ImageGeometry":
        """Return the geometry of the tokens at ``index`` (``[m]`` int64), in that order."""
        return ImageGeometry(**{f.name: getattr(self, f.name)[index] for f in fields(self)})

    def to(self, device: torch.device | str) -> "ImageGeometry":
        """Return a copy on ``device``."""
        return ImageGeometry(**{f.name: getattr(self, f.name).to(device) for f in fields(self)})


def grid_geometry(rows: int, cols: int) -> ImageGeometry:
    """Return the geometry of one view of ``rows`` x ``cols`` patches in raster order."""
    row, col = torch.meshgrid(
        torch.arange(rows, device="cpu"), torch.arange(cols, device="cpu"), indexing="ij"
    )
    row, col = row.flatten(), col.flatten()
    n = rows * cols
    return ImageGeometry(
        tile=torch.zeros_like(row),
        row=row,
        col=col,
        tile_rows=torch.full_like(row, rows),
        tile_cols=torch.full_like(col, cols),
        y=(row.float() + 0.5) / rows,
        x=(col.float() + 0.5) / cols,
        height=torch.full((n,), 1.0 / rows, dtype=torch.float32, device="cpu"),
        width=torch.full((n,), 1.0 / cols, dtype=torch.float32, device="cpu"),
        separator=torch.zeros_like(row, dtype=torch.bool),
    )


def even_cells(geometry: ImageGeometry, count: int) -> Tensor:
    """Cut one image into ``count`` cells of one view each, as even as that many can be.

    Pictures are cut one by one (a thumbnail, the mosaic of all tiles, a frame), each into its share
    of the cells. It is cut into bands in raster order, each band from left to right, so that no two
    cells of a picture differ by more than two patches. Where the count is a quarter of an even
    grid the cells are its blocks of 2 x 2; other counts have ragged edges.

    Args:
        geometry: Of the image's ``n`` patches, in any order.
        count: In 1 .. ``n``.

    Returns:
        ``[n]`` int64 in 0 .. ``count - 1``, none of them unused; -1 for the patches of a picture
        whose share is no whole cell.
    """
    picture = torch.where(geometry.whole, geometry.frame, 1)
    out = torch.full_like(picture, -1)
    seen, first, total = 0, 0, len(geometry)
    for number in torch.unique(picture).tolist():
        member = (picture == number).nonzero().flatten()
        seen += len(member)
        last = (2 * seen * count + total) // (2 * total)
        if last > first:
            out[member] = first + _cells(geometry.select(member), last - first)
        first = last
    return out


def _cells(geometry: ImageGeometry, count: int) -> Tensor:
    """Return the cells of one picture, ``[m]`` int64, all of them used."""
    row, col = (torch.unique(place, return_inverse=True)[1] for place in (geometry.y, geometry.x))
    m, rows, cols = len(row), int(row.max()) + 1, int(col.max()) + 1
    bands = min(count, max(1, round(rows * (count / m) ** 0.5)))
    # Cells and patches before each band; the patches of a band are in proportion to its cells.
    cells = torch.arange(bands + 1, device=row.device) * count // bands
    ends = cells * m // count
    place = torch.arange(m, device=row.device)
    down = torch.argsort(row * cols + col, stable=True)
    band = torch.empty_like(row)
    band[down] = torch.bucketize(place, ends[1:], right=True)
    order = torch.argsort((band * cols + col) * rows + row, stable=True)
    band = band[order]
    inside, size = place - ends[band], ends[band + 1] - ends[band]
    out = torch.empty_like(row)
    out[order] = cells[band] + inside * (cells[band + 1] - cells[band]) // size
    return out


@dataclass(frozen=True)
class Mosaic:
    """One picture as the vision tower got it: tiles in raster order, and the thumbnail.

    A picture of one tile has no thumbnail, unless it comes first.

    Attributes:
        rows: Rows of tiles.
        cols: Columns of tiles.
        thumbnail_first: Whether the thumbnail stands before the tiles, not behind them.
    """

    rows: int = 1
    cols: int = 1
    thumbnail_first: bool = False

    @property
    def views(self) -> int:
        """Tiles and thumbnail."""
        tiles = self.rows * self.cols
        return tiles + 1 if tiles > 1 or self.thumbnail_first else 1

    def by_tile(self, views: list[Any]) -> list[Any]:
        """Return what belongs to each view, the thumbnail's first, from the sequence's order."""
        return list(views) if self.thumbnail_first else [views[-1], *views[:-1]]

    def geometry(self, views: list[ImageGeometry]) -> ImageGeometry:
        """Return the picture's geometry, from that of each of its ``views`` by itself."""
        if len(views) == 1:
            return views[0]
        thumbnail, *tiles = self.by_tile(views)
        placed = [
            replace(
                view,
                tile=torch.full_like(view.tile, v + 1),
                y=(v // self.cols + view.y) / self.rows,
                x=(v % self.cols + view.x) / self.cols,
                height=view.height / self.rows,
                width=view.width / self.cols,
            )
            for v, view in enumerate(tiles)
        ]
        placed.insert(0 if self.thumbnail_first else len(placed), thumbnail)
        names = [f.name for f in fields(ImageGeometry)]
        return ImageGeometry(**{n: torch.cat([getattr(p, n) for p in placed]) for n in names})


def frames_geometry(frames: int, rows: int, cols: int) -> ImageGeometry:
    """Return the geometry of a video of ``frames`` x ``rows`` x ``cols`` patches, in that order."""
    number = torch.arange(frames, device="cpu").repeat_interleave(rows * cols)
    inside = torch.arange(rows * cols, device="cpu").repeat(frames)
    grids = grid_geometry(rows, cols).select(inside)
    return replace(grids, tile=number, frame=number.clone())


def with_separators(geometry: ImageGeometry, source: Tensor, separator: Tensor) -> ImageGeometry:
    """Return the geometry of a sequence with separators among the patches.

    Args:
        geometry: Of the patches.
        source: ``[n]`` int64, for each token the patch whose place it has.
        separator: ``[n]`` bool, True at separators.
    """
    return replace(geometry.select(source), separator=separator)


def unit_rows(states: Tensor) -> Tensor:
    """Return states of length 1, whose products are cosines: ``[..., d]`` float32; zeros stay 0.

    Args:
        states: ``[..., d]`` of any floating dtype.
    """
    rows = states.float()
    unit: Tensor = rows / torch.linalg.vector_norm(rows, dim=-1, keepdim=True).clamp_min(1e-12)
    return unit


def keep_count(total: int, retention: float, alive: int) -> int:
    """Return how many of an image's tokens a stage keeps: ``retention * total``, rounded half up.

    Args:
        total: The image's original number of tokens, separators included.
        retention: Share of ``total`` to be alive after the stage, in [0, 1].
        alive: Tokens alive before the stage; the result never exceeds it.

    Returns:
        At least 1; 0 at a retention of 0 only, which is an exit.
    """
    if not retention:
        return 0
    return max(1, min(alive, int(retention * total + 0.5)))


def top_indices(scores: Tensor, count: int) -> Tensor:
    """Return the ascending positions of the ``count`` highest scores.

    Equal scores are kept in order of position, so the answer does not depend on the device.

    Args:
        scores: ``[n]`` floating; NaN ranks lowest.
        count: Number of positions, at most ``n``.

    Returns:
        ``[count]`` int64, ascending.
    """
    clean = torch.where(torch.isnan(scores), torch.full_like(scores, -torch.inf), scores)
    order = torch.argsort(clean, descending=True, stable=True)
    return order[:count].sort().values


def spread_indices(n: int, count: int, device: torch.device | str = "cpu") -> Tensor:
    """Return ``count`` of ``range(n)``, evenly spaced and ascending (``[count]`` int64)."""
    if count >= n:
        return torch.arange(n, device=device)
    return ((torch.arange(count, device=device) * 2 + 1) * n) // (2 * count)


def split_budget(separators: int, count: int, policy: str) -> tuple[int, int]:
    """Split a stage's keep count between separators and patches.

    With ``policy="keep"`` every separator stays as long as it leaves at least half of the count
    to patches; below that they are thinned evenly. With ``"drop"`` none stays.

    Returns:
        ``(separators kept, patches kept)``; their sum is ``count``.
    """
    kept = min(separators, count // 2) if policy == "keep" else 0
    return kept, count - kept


def left_pad(rows: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Stack index rows of unequal length, padding on the left with 0.

    Args:
        rows: ``[m_b]`` int64 each.

    Returns:
        ``(index [B, max m_b] int64, valid [B, max m_b] bool)``.
    """
    width = max(row.shape[0] for row in rows)
    index = torch.stack([torch.nn.functional.pad(row, (width - row.shape[0], 0)) for row in rows])
    lengths = torch.tensor([row.shape[0] for row in rows], device=index.device)
    valid = torch.arange(width, device=index.device)[None] >= (width - lengths)[:, None]
    return index, valid
