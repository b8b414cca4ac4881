"""Determinantal point process: the most volume."""

from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from prunetune.registry import Tunable
from prunetune.selectors.base import SelectContext, Selector
from prunetune.selectors.base_similarity import falling, minmax

# Share of a patch's own variance; less is rounding.
_LEAST = 1e-6


class Dpp(Selector):
    """CDPruner, arXiv 2506.10967 (NeurIPS 2025), section 3.3: greedy MAP of a conditional DPP.

    ``L = diag(r) C diag(r)`` with C the cosines of the states; again and again the patch whose
    addition multiplies ``det L_kept`` by most (Chen et al., NeurIPS 2018). The factor is
    ``r_i^2 g_i`` with g the part of C_ii that the kept ones do not explain; it is g that is kept,
    so that rounding does not grow with r. The rank of C is at most d, and n - 1 when centred: once
    no g is above 1e-6, the highest scores fill up.

    ``r = exp(alpha minmax(q))`` with ``alpha = theta / (2 (1 - theta))`` is the paper's; the
    release has that commented out and takes ``r = minmax(q) + 1e-6 / (max q - min q)``.

    Attributes:
        theta: How much the score counts beside difference (paper: 0.5); only of ``"exp"``.
        relevance: ``"exp"`` as in the paper, or ``"linear"`` as in the release.
        centred: Take the image's mean off the states first (the paper does not).
    """

    summary: ClassVar[str] = "determinantal point process (CDPruner)"

    name: Literal["dpp"] = "dpp"
    theta: Annotated[
        float, Field(ge=0.0, le=0.95), Tunable(0.0, 0.875, shown="score against spread", levels=8)
    ] = 0.5
    relevance: Literal["exp", "linear"] = "exp"
    centred: bool = True

    def choose(self, ctx: SelectContext, count: int) -> Tensor:
        """Return the positions in the order in which they are taken, ``[count]`` int64."""
        similarity = ctx.cosines(centred=self.centred)
        rank = min(count, ctx.features.shape[1], len(ctx) - self.centred)
        taken = _greedy(similarity, self._weight(ctx.scores), rank)
        if len(taken) == count:
            return taken
        others = falling(ctx.scores.index_fill(0, taken, -torch.inf))
        return torch.cat([taken, others[: count - len(taken)]])

    def _weight(self, scores: Tensor) -> Tensor:
        """Return r^2 up to a factor, ``[n]`` float32 above 0."""
        share = minmax(scores)
        if self.relevance == "exp":
            alpha = self.theta / (2.0 * (1.0 - self.theta))
            return (2.0 * alpha * (share - 1.0)).exp()
        spread = scores.max() - scores.min()
        return torch.where(spread > 0, share + 1e-6 / spread, 1.0).square()


def _greedy(similarity: Tensor, weight: Tensor, steps: int) -> Tensor:
    """Return at most ``steps`` positions, fewer where the rank of ``similarity`` ends earlier."""
    n, device = len(weight), weight.device
    order = torch.empty(steps, dtype=torch.int64, device=device)
    found = torch.empty(steps, dtype=torch.float32, device=device)
    rows = torch.empty(steps, n, dtype=torch.float32, device=device)
    left = similarity.diagonal().clone()
    for t in range(steps):
        j = torch.where(left > _LEAST, left * weight, -torch.inf).argmax().view(1)
        own = left.index_select(0, j)
        row = similarity.index_select(0, j)
        if t:
            row = row - rows[:t].index_select(1, j).t() @ rows[:t]
        rows[t] = row[0] * own.clamp_min(_LEAST).rsqrt()
        left = left - rows[t].square()
        left.index_fill_(0, j, -torch.inf)
        order[t : t + 1], found[t : t + 1] = j, own
    return order[: int((found > _LEAST).sum())]
