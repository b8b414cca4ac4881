"""TopV's recovery of every n-th dropped token."""

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from prunetune.restorers.base import Restorer
from prunetune.tokens import ImageGeometry, spread_indices, top_indices


class UniformRecovery(Restorer):
    """TopV, arXiv 2503.18278, visual token recovery: every ``every``-th dropped token comes back.

    The ``k`` tokens of highest importance stay; of the ``N - k`` others, in raster order, the
    first and then every ``every``-th is re-inserted. ``k`` is the largest with
    ``k + ceil((N - k) / every) == count``. Published: 4 for LLaVA, 3 for InternVL2.

    Attributes:
        every: Distance between recovered tokens, in dropped tokens.
    """

    summary: ClassVar[str] = "re-insert every n-th dropped token (TopV)"

    name: Literal["uniform_recovery"] = "uniform_recovery"
    every: int = Field(default=4, ge=2)

    def keep(self, scores: Tensor, count: int, geometry: ImageGeometry) -> Tensor:
        """Return the keep index, ``[count]`` int64 ascending."""
        total = scores.shape[0]
        # Pruning m and recovering ceil(m / every) drops floor(m * (every - 1) / every).
        pruned = -(-(total - count) * self.every // (self.every - 1))
        if pruned > total:
            recovered = -(-total // self.every)
            return spread_indices(recovered, count, scores.device) * self.every
        top = top_indices(scores, total - pruned)
        rest = torch.ones(total, dtype=torch.bool, device=scores.device)
        rest[top] = False
        back = rest.nonzero().flatten()[:: self.every]
        return torch.cat([top, back]).sort().values

    def least_retention(self) -> float:
        """Return the share that recovery alone brings back."""
        return 1.0 / self.every
