"""An even spread over the sequence."""

from typing import ClassVar, Literal

import torch
from torch import Tensor

from prunetune.selectors.base import SelectContext, Selector


class Spread(Selector):
    """Every m-th patch in sequence order, m = floor(n / count), from the first on.

    VisionZip, arXiv 2412.04467 (CVPR 2025), section 3.3: how its contextual tokens are sampled
    among those that are not dominant. Scores and states are not looked at. Not nested.
    """

    summary: ClassVar[str] = "every m-th patch (VisionZip's contextual tokens)"
    nested: ClassVar[bool] = False
    pairwise: ClassVar[bool] = False

    name: Literal["spread"] = "spread"

    @property
    def uses_scores(self) -> bool:
        """No."""
        return False

    def choose(self, ctx: SelectContext, count: int) -> Tensor:
        """Return ascending positions, ``[count]`` int64."""
        step = len(ctx) // count
        return torch.arange(count, dtype=torch.int64, device=ctx.device) * step
