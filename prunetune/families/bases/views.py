"""Families whose tower sees views of one fixed size, whose patches are merged block by block."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from prunetune.families.base import Family, TappedAttention, VisionCall, refuse
from prunetune.families.base_configs import grid_side
from prunetune.tokens import ImageGeometry, Mosaic, grid_geometry


class FixedViews(Family):
    """Every view is one grid of patches; ``merge`` x ``merge`` of them make one visual token.

    To the encoder each view is an image of its own.
    """

    @property
    def merge(self) -> int:
        """Patches along one side of what becomes one visual token."""
        return 1

    @property
    def patches_per_token(self) -> int:
        """Patches of the tower that are merged into one visual token."""
        return self.merge**2

    def stacked(self, call: VisionCall) -> Tensor:
        """Return all views that the tower saw, ``[views, 3, height, width]``."""
        values: Tensor = call.arguments["pixel_values"]
        return values

    def geometries(self, call: VisionCall) -> list[ImageGeometry]:
        """One grid a view."""
        rows, cols = grid_side(self.config)
        grid = grid_geometry(rows // self.merge, cols // self.merge)
        views = len(self.stacked(call))
        if sum(call.lengths) != views * len(grid):
            raise refuse(
                self.model,
                f"{views} views take {sum(call.lengths)} tokens where the grid of each has "
                f"{len(grid)}",
            )
        return [grid] * views

    def views(self, call: VisionCall) -> list[int]:
        """One view each."""
        return [1] * len(self.stacked(call))

    def pixels(self, call: VisionCall) -> list[Tensor]:
        """The one view."""
        return list(self.stacked(call)[:, None])

    def vision_attention_module(self) -> nn.Module | None:
        """Attention of the last layer: its output are the features."""
        module: nn.Module = self.tower_layers()[-1].self_attn
        return module if hasattr(module, "q_proj") and hasattr(module, "head_dim") else None

    def vision_heads(
        self, tapped: TappedAttention, call: VisionCall, *, first_only: bool
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield query and key, patches of one visual token side by side."""
        order = merged_order(*grid_side(self.config), self.merge)
        if self.vision_has_cls():
            order = torch.cat([order.new_zeros(1), order + 1])
        for query, key in super().vision_heads(tapped, call, first_only=first_only):
            at = order.to(key.device)
            yield query if first_only else query[:, :, at], key[:, :, at]


def from_padded(values: Tensor, grids: list[tuple[int, int]], side: int) -> list[Tensor]:
    """Return pictures put together again from patches that are padded to one length.

    Args:
        values: ``[pictures, longest, side * side * channels]``, the channels of a patch last.
        grids: (Rows, columns) of patches of every picture.
        side: Of a patch.

    Returns:
        ``[1, channels, rows * side, columns * side]`` each.
    """
    made = []
    for patches, (rows, cols) in zip(values, grids, strict=True):
        cells = patches[: rows * cols].view(rows, cols, side, side, -1)
        made.append(cells.permute(4, 0, 2, 1, 3).reshape(1, -1, rows * side, cols * side))
    return made


def merged_order(rows: int, cols: int, merge: int) -> Tensor:
    """Return the raster positions of a grid's patches, block by block, ``[rows * cols]`` int64."""
    blocks = torch.arange(rows * cols, device="cpu").view(
        rows // merge, merge, cols // merge, merge
    )
    return blocks.transpose(1, 2).flatten()


def likest(shapes: list[Mosaic], tiles: list[Tensor], thumbnail: Tensor) -> Mosaic:
    """Return the mosaic that looks most like the thumbnail, of equal ones the first.

    Args:
        shapes: Of as many tiles as there are.
        tiles: In raster order, each ``[side, side]``.
        thumbnail: ``[side, side]``.
    """
    side = len(thumbnail)

    def distance(shape: Mosaic) -> float:
        grid = torch.stack(tiles).view(shape.rows, shape.cols, side, side)
        whole = grid.transpose(1, 2).reshape(1, shape.rows * side, shape.cols * side)
        small = torch.nn.functional.adaptive_avg_pool2d(whole, side)[0]
        return float((small - thumbnail).square().mean())

    return min(shapes, key=distance)
