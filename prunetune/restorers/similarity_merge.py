"""Merging: what is dropped is averaged into what it resembles most."""

from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from prunetune.numerics import exactly
from prunetune.registry import Tunable
from prunetune.restorers.base import Restorer
from prunetune.tokens import ImageGeometry, unit_rows

_ELEMENTS = 1 << 24
"""Cosines that exist at once: 64 MiB of float32."""


class SimilarityMerge(Restorer):
    """Each dropped token joins the kept one that it resembles most.

    With c_us the cosine of two states after the mean of the image's patches was taken off, a
    dropped u joins ``argmax_s c_us`` over the kept s, and a kept state becomes
    ``(x_s + g sum_u x_u) / (1 + g n)``, n the number of those that joined it. The place stays the
    kept one's. VisionZip (arXiv 2412.04467, section 3.2) merges into evenly spread targets, and
    its release adds target and mean without halving; ToMe (arXiv 2210.09461) merges pairs. The
    share g is ours: 1 is the mean of the group, 0 changes nothing.

    Attributes:
        share: g, in [0, 1].
    """

    since: ClassVar[int] = 2
    summary: ClassVar[str] = "average what is dropped into what it resembles (VisionZip, ToMe)"

    name: Literal["similarity_merge"] = "similarity_merge"
    share: Annotated[
        float,
        Field(ge=0.0, le=1.0),
        Tunable(0.0, 1.0, shown="share of what is merged in", levels=8),
    ] = 0.3

    @exactly()
    def blend(
        self, states: Tensor, scores: Tensor, keep: Tensor, geometry: ImageGeometry, weights: Tensor
    ) -> Tensor | None:
        """Return new states of the kept patches, ``[count, d]`` float32."""
        gone = torch.ones(len(states), dtype=torch.bool, device=keep.device)
        gone[keep] = False
        dropped = gone.nonzero().flatten()
        if not len(dropped) or not len(keep) or not self.share:
            return None
        full = states.float()
        centred = unit_rows(full - full.mean(0))
        target, step = centred[keep], max(1, _ELEMENTS // len(keep))
        home = torch.cat(
            [(centred[rows] @ target.T).argmax(1) for rows in torch.split(dropped, step)]
        )
        total = torch.zeros_like(full[keep]).index_add_(0, home, full[dropped])
        count = torch.bincount(home, minlength=len(keep)).to(torch.float32)
        merged: Tensor = full[keep] + self.share * total
        return merged / (1.0 + self.share * count)[:, None]
