"""Attention received from the tokens that matter, and patch entropy (VFlowOpt)."""

from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from prunetune.numerics import exactly
from prunetune.registry import Tunable
from prunetune.scorers.base import Need, ScoreContext, Scorer


class ContextEntropy(Scorer):
    """VFlowOpt, arXiv 2508.05211 (ICCV 2025), section 3.2: calibrated attention and entropy.

    With the vision tower's attention ``A`` (query by key, head mean) of one crop of N patches:

        r_j = mean_i A_ij                                attention that patch j receives
        K   = {j : r_j > threshold / N}                  patches that matter, the queries
        I_j = mean_{k in K} A_kj + alpha * softmax(H)_j  H: entropy of the patch's grey values

    The mean over K, as in the released code; the paper's Eq. 4 has a sum, next to which no
    ``alpha`` in [-1, 1] would count. Both terms then sum to about 1 over a crop. Where K is empty
    (``threshold`` is in mean attentions, so always from N on) all patches are queries: the release
    divides by zero there. Crops are ranked together, as published, unless ``per_crop``. Unit:
    attention probability over the token's own crop. Standardised linearly: it may be negative.

    Attributes:
        threshold: The paper's t: attention a patch must receive to be a query, in units of the
            crop's mean. Released: 28.7, 34.8 and 39.3 of 729 patches, for 50, 25 and 10%.
        alpha: Weight of the entropy term. Released: 0.
    """

    needs: ClassVar[frozenset[Need]] = frozenset({"vision_map", "patch_entropy"})
    summary: ClassVar[str] = "attention from the patches that receive much, and entropy (VFlowOpt)"

    name: Literal["context_entropy"] = "context_entropy"
    threshold: Annotated[
        float,
        Field(ge=0.0, le=10000.0),
        # No patch receives more than N means: on small crops only low values leave a query.
        Tunable(0.0, 50.0, log=True, shown="attention that makes a patch a query, in means"),
    ] = 1.0
    alpha: Annotated[
        float, Field(ge=-10.0, le=10.0), Tunable(-1.0, 1.0, shown="weight of the patch entropy")
    ] = 0.0

    @exactly()
    def score(self, ctx: ScoreContext) -> Tensor:
        """Return the importance, ``[visual]`` float32."""
        attention = ctx.given("vision_map").float()
        entropy = ctx.given("patch_entropy").float()
        received = attention.mean(1)
        query = received > self.threshold / received.shape[1]
        query = query | ~query.any(1, keepdim=True)
        share = query.float() / query.sum(1, keepdim=True)
        context = torch.bmm(share[:, None], attention)[:, 0]
        importance = context + self.alpha * entropy.softmax(1)
        place = ctx.geometry
        return importance.to(ctx.device)[place.tile, place.inside]
