"""VFlowOpt's recycling: one mean token for what is dropped of each cell of the picture."""

from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from prunetune.numerics import exactly
from prunetune.registry import Tunable
from prunetune.restorers.base import Restorer
from prunetune.tokens import ImageGeometry, top_indices


class GridRecycling(Restorer):
    """VFlowOpt, arXiv 2508.05211 (ICCV 2025), section 3.3: dropped tokens, averaged by cell.

    The picture is cut into square cells of ``size`` patches, the thumbnail and the mosaic of tiles
    (stitched, unpadded) each on its own. The removed tokens of a cell become their mean, weighted
    by ``weights``; it takes the place, and for later stages the score, of the heaviest of them.

    The release removes ``N - count + floor(N / size^2)`` tokens and gets back as many as there
    are cells with a removed token, mostly more than it reckoned with: the budget is overshot.
    Here the count is exact. With the tokens in order of importance and ``g(m)`` the cells among
    the m least important, m is the smallest with ``N - m + g(m) = count``; it exists because each
    further token changes the left side by 0 or -1. Below ``g(N)``, the cells of the highest
    heads stay and the others are lost.

    Attributes:
        size: The paper's a: side of a cell in patches, a real number. Released: 11.8, 15.6 and
            17.4 (thumbnails of 27 x 27) for 50, 25 and 10%. 1 is plain top-k.
    """

    summary: ClassVar[str] = "one weighted mean of the dropped tokens a cell (VFlowOpt)"

    name: Literal["grid_recycling"] = "grid_recycling"
    size: Annotated[
        float, Field(ge=1.0, le=10000.0), Tunable(3.0, 24.0, shown="side of a cell in patches")
    ] = 12.0

    def keep(self, scores: Tensor, count: int, geometry: ImageGeometry) -> Tensor:
        """Return the keep index, ``[count]`` int64 ascending; it holds the cells' heads."""
        total = scores.shape[0]
        order = _rising(scores)
        cell = self.cells(geometry)[order]
        cells = _first_seen(cell).cumsum(0)
        # Alive when the m lowest are removed, m = 0 .. total; never rises.
        removed = torch.arange(1, total + 1, device=scores.device)
        alive = torch.cat([removed.new_tensor([total]), total - removed + cells])
        m = int((alive > count).sum())
        if m > total:
            heads = order[_first_seen(cell.flip(0)).flip(0)].sort().values
            return heads[top_indices(scores[heads], count)]
        heads = order[:m][_first_seen(cell[:m].flip(0)).flip(0)]
        return torch.cat([heads, order[m:]]).sort().values

    @exactly()
    def blend(
        self, states: Tensor, scores: Tensor, keep: Tensor, geometry: ImageGeometry, weights: Tensor
    ) -> Tensor | None:
        """Return the states of the kept patches, ``[count, d]``, heads replaced by cell means."""
        total = scores.shape[0]
        order = _rising(scores)
        cell = self.cells(geometry)
        kept = torch.zeros(total, dtype=torch.bool, device=keep.device)
        kept[keep] = True
        # Of the kept tokens of a cell the head is the least important: the others outrank it.
        alive = order[kept[order]]
        head = alive[_first_seen(cell[alive])]
        gone = ~kept
        hit = torch.zeros(int(cell.max()) + 1, dtype=torch.bool, device=keep.device)
        hit[cell[gone]] = True
        head = head[hit[cell[head]]]
        if not len(head):
            return None
        gone[head] = True
        source = gone.nonzero().flatten()
        weight = weights.float()[source] * (cell[source] == cell[head][:, None])
        mean = (weight / weight.sum(1, keepdim=True)) @ states[source].float()
        new = states.float().index_copy(0, head, mean)
        return new[keep]

    def cells(self, geometry: ImageGeometry) -> Tensor:
        """Return each patch's cell, ``[visual]`` int64; the thumbnail's and the tiles' differ."""
        rows, cols = (
            torch.div((centre / extent - 0.5).round(), self.size, rounding_mode="floor").long()
            for centre, extent in ((geometry.y, geometry.height), (geometry.x, geometry.width))
        )
        across, down = int(cols.max()) + 1, int(rows.max()) + 1
        # Each frame is a picture of its own, and an image's tiles are one beside its thumbnail.
        picture = torch.where(geometry.whole, geometry.frame, 1)
        return (picture * down + rows) * across + cols


def _rising(scores: Tensor) -> Tensor:
    """Return positions by rising score; of equal scores the last falls first, as in top-k."""
    clean = torch.where(torch.isnan(scores), torch.full_like(scores, -torch.inf), scores)
    return torch.argsort(clean, descending=True, stable=True).flip(0)


def _first_seen(cell: Tensor) -> Tensor:
    """Return where a value occurs for the first time, ``[n]`` bool."""
    order = torch.argsort(cell, stable=True)
    ranked = cell[order]
    first = torch.ones_like(ranked, dtype=torch.bool)
    first[1:] = ranked[1:] != ranked[:-1]
    return torch.zeros_like(first).index_copy(0, order, first)
