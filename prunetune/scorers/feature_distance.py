"""How far a patch is from the image's mean."""

from typing import ClassVar, Literal

import torch
from torch import Tensor

from prunetune.scorers.base import Need, ScoreContext, Scorer

# Rows that are converted at a time.
_ROWS = 1024


class FeatureDistance(Scorer):
    """Euclidean distance of a patch's state from the mean of the image's patches.

    No single source: what stands out from its picture; flat backgrounds are near the mean. Needs
    no attention, so that FlashAttention stays on. Unit: that of the states. Standardised linearly.
    """

    needs: ClassVar[frozenset[Need]] = frozenset({"states"})
    summary: ClassVar[str] = "distance of a state from the image's mean"

    name: Literal["feature_distance"] = "feature_distance"

    @torch.no_grad()
    def score(self, ctx: ScoreContext) -> Tensor:
        """Return the distance, ``[visual]`` float32."""
        blocks = torch.split(ctx.given("states"), _ROWS)
        mean = torch.stack([rows.float().sum(0) for rows in blocks]).sum(0) / len(ctx)
        return torch.cat([torch.linalg.vector_norm(rows.float() - mean, dim=1) for rows in blocks])
