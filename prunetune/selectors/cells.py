"""One patch of each cell of an even grid."""

from typing import ClassVar, Literal

import torch
from torch import Tensor

from prunetune.selectors.base import SelectContext, Selector
from prunetune.tokens import even_cells


class Cells(Selector):
    """The patch in the middle of each of ``count`` cells that are as even as they can be.

    Down-sampling on the grid, ours: with the restorer `cell_mean` it is average pooling, blocks of
    2 x 2 where a quarter is kept. A picture's tiles are cut together, beside its thumbnail; frames
    one by one. Scores and states are not looked at. Not nested.
    """

    summary: ClassVar[str] = "one patch of each cell of an even grid (pooling)"
    nested: ClassVar[bool] = False
    pairwise: ClassVar[bool] = False

    name: Literal["cells"] = "cells"

    def choose(self, ctx: SelectContext, count: int) -> Tensor:
        """Return the cells' middles, cell by cell, ``[count]`` int64."""
        place = ctx.geometry
        cell = even_cells(place, count)
        row, col = (torch.unique(at, return_inverse=True)[1] for at in (place.y, place.x))
        # A cell of its own for what is in none.
        slot = torch.where(cell < 0, count, cell)
        none = torch.zeros(count + 1, dtype=torch.int64, device=ctx.device)
        size = none.index_add(0, slot, torch.ones_like(slot))[slot]
        # Whole numbers, so that equal distances from the middle are equal.
        away = sum((size * at - none.index_add(0, slot, at)[slot]).square() for at in (row, col))
        order = torch.argsort(row * (int(col.max()) + 1) + col, stable=True)
        for key in (away, slot):
            order = order[torch.argsort(key[order], stable=True)]
        wanted = torch.arange(count, dtype=torch.int64, device=ctx.device)
        return order[torch.searchsorted(slot[order], wanted)]
