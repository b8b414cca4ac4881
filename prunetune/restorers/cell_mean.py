"""Average pooling on the grid."""

from typing import ClassVar, Literal

import torch
from torch import Tensor

from prunetune.numerics import exactly
from prunetune.restorers.base import Restorer
from prunetune.tokens import ImageGeometry, even_cells


class CellMean(Restorer):
    """A kept patch becomes the mean of itself and of what was dropped around it.

    Ours, for a control: the image is cut into as many cells as patches are kept, as even as they
    can be, and what a cell dropped counts in each patch that it kept; a cell that kept none is
    lost. Beside the selector `cells`, which keeps one a cell, this is average pooling, by blocks of
    2 x 2 where a quarter is kept. Which patches stay is left to the scores or to the selector.
    """

    summary: ClassVar[str] = "mean of what was dropped in the same cell (pooling)"

    name: Literal["cell_mean"] = "cell_mean"

    @exactly()
    def blend(
        self, states: Tensor, scores: Tensor, keep: Tensor, geometry: ImageGeometry, weights: Tensor
    ) -> Tensor | None:
        """Return the states of the kept patches, ``[count, d]`` float32."""
        gone = torch.ones(len(geometry), dtype=torch.bool, device=keep.device)
        gone[keep] = False
        source = gone.nonzero().flatten()
        if not len(source):
            return None
        cell = even_cells(geometry, len(keep))
        own = cell[keep]
        joins = ((cell[source] == own[:, None]) & (own[:, None] >= 0)).float()
        total = states[keep].float() + joins @ states[source].float()
        return total / (1.0 + joins.sum(1, keepdim=True))
