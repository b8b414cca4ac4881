"""Facility location: what is kept stands for all."""

from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from prunetune.registry import Tunable
from prunetune.selectors.base import SelectContext, SelectNeed, Selector
from prunetune.selectors.base_covering import most_covering
from prunetune.selectors.base_similarity import cross_cosines

# Rows of a block of distances.
_ROWS = 256


class Cover(Selector):
    """Greedy facility location over what patches look like and where they are.

    ``s_ij`` is how well j stands for i; b_i how well the kept ones do so far (0 at first). Again
    and again ``j = argmax_j exp(beta q_j) sum_i w_i max(s_ij - b_i, 0)``, with the demand
    ``w_i = exp(delta q_i)`` scaled to add up to 1. MMTok's vision part (arXiv 2508.18264), SCOPE
    (arXiv 2510.24214); the spatial term and the defaults are ours, measured on the embedded model.

    - ``"exp"``: ``s_ij = exp(-((1 - c_ij) + spatial d_ij^2) / tau)`` with c the cosine of the
      states and d the distance in the picture, both sides scaled to 1.
    - ``"softmax"``: the same, scaled so that each i's add up to 1 (MMTok: spatial 0, tau 0.2).
    - ``"cosine"``: ``s_ij = max(c_ij, 0)^power`` (SCOPE: power 1).

    Attributes:
        kernel: See above.
        spatial: lambda; 0 is states only, a large one an even spread.
        tau: Reach of the kernel, above 0.
        power: Of the ``"cosine"`` kernel.
        beta: Who may be chosen: weight of the score in the exponent.
        delta: What must be covered: weight of the score in the exponent of the demand.
        text: Weight of the question beside the patches' own 1: each of its t tokens is one more
            row to be covered, with demand ``text / t`` and ``s = softmax_i(cos(z, x_i) /
            text_tau)`` (MMTok: 2, text_tau 0.02). Above 0 the choice depends on the prompt.
        text_tau: See ``text``.
        centred: Take the image's mean off the states first; the exponential does not need it.
    """

    summary: ClassVar[str] = "facility location: the kept ones stand for all (MMTok, SCOPE)"

    name: Literal["cover"] = "cover"
    kernel: Literal["exp", "softmax", "cosine"] = "exp"
    spatial: Annotated[
        float,
        Field(ge=0.0, le=1000.0),
        Tunable(0.0, 5.275, log=True, shown="place beside states", levels=8),
    ] = 0.3
    tau: Annotated[
        float,
        Field(gt=0.0, le=100.0),
        Tunable(0.05, 1.903, log=True, shown="reach of the kernel", levels=8),
    ] = 0.4
    power: float = Field(default=1.0, gt=0.0, le=16.0)
    beta: Annotated[
        float, Field(ge=-10.0, le=10.0), Tunable(0.0, 1.4, shown="who may be chosen", levels=8)
    ] = 0.0
    delta: Annotated[
        float, Field(ge=-10.0, le=10.0), Tunable(0.0, 1.4, shown="what must be covered", levels=8)
    ] = 0.0
    text: Annotated[
        float,
        Field(ge=0.0, le=1000.0),
        Tunable(0.0, 5.275, log=True, shown="weight of the question", levels=8),
    ] = 0.0
    text_tau: float = Field(default=0.1, gt=0.0, le=100.0)
    centred: bool = False

    @property
    def needs(self) -> frozenset[SelectNeed]:
        """The question, where it has weight."""
        return frozenset({"question"}) if self.text else frozenset()

    @property
    def ignores_scores(self) -> bool:
        """Where neither who may be chosen nor what must be covered follows them."""
        return not (self.beta or self.delta)

    def choose(self, ctx: SelectContext, count: int) -> Tensor:
        """Return the positions in the order in which they are taken, ``[count]`` int64."""
        n = len(ctx)
        text = ctx.text if self.text and ctx.text is not None else ctx.features[:0]
        rows = torch.empty(n, n + len(text), dtype=torch.float32, device=ctx.device)
        patches = self._kernel(ctx, rows[:, :n])
        demand = torch.softmax(self.delta * ctx.scores, dim=0)
        if self.kernel == "softmax":
            demand = demand / patches.sum(0)
        patches.mul_(demand)
        if len(text):
            rows[:, n:] = self._question(ctx, text)
        factor = self.beta * ctx.scores
        return most_covering(rows, (factor - factor.max()).exp(), count)

    def _kernel(self, ctx: SelectContext, out: Tensor | None = None) -> Tensor:
        """Return how well each patch (row) stands for each, ``[n, n]`` float32, at least 0."""
        out = ctx.cosines(centred=self.centred, out=out)
        if self.kernel == "cosine":
            return out.clamp_min_(0.0).pow_(self.power)
        out.sub_(1.0)
        if self.spatial:
            place = torch.stack([ctx.geometry.y, ctx.geometry.x]).to(torch.float32)
            for start in range(0, len(ctx), _ROWS):
                at = slice(start, start + _ROWS)
                away = (place[:, at, None] - place[:, None]).square_().sum(0)
                out[at].sub_(away, alpha=self.spatial)
        return out.div_(self.tau).exp_()

    def _question(self, ctx: SelectContext, text: Tensor) -> Tensor:
        """Return how well each patch stands for the question's tokens, ``[n, t]`` float32."""
        close = torch.nan_to_num(cross_cosines(text, ctx.features), nan=0.0)
        return torch.softmax(close / self.text_tau, dim=1).t() * (self.text / len(text))
