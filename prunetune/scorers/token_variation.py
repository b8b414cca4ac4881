"""How much the layer before moved a token."""

from typing import ClassVar, Literal

import torch
from torch import Tensor

from prunetune.scorers.base import Need, ScoreContext, Scorer

# Rows that are converted at a time.
_ROWS = 1024


class TokenVariation(Scorer):
    """``|h_l - h_(l-1)|``: what decoder layer ``l - 1`` added to a token's residual stream.

    V2Drop (arXiv 2509.01552): tokens that layers hardly change carry little. Needs no attention,
    so that FlashAttention stays on. Unit: that of the states. Standardised on a log scale.
    """

    needs: ClassVar[frozenset[Need]] = frozenset({"layer_states", "states"})
    standardise: ClassVar[Literal["linear", "log"]] = "log"
    summary: ClassVar[str] = "how much the layer before changed a token (V2Drop)"

    name: Literal["token_variation"] = "token_variation"

    @torch.no_grad()
    def score(self, ctx: ScoreContext) -> Tensor:
        """Return the length of the change, ``[visual]`` float32."""
        after, before = (
            torch.split(ctx.given("states"), _ROWS),
            torch.split(ctx.given("source_states"), _ROWS),
        )
        return torch.cat(
            [torch.linalg.vector_norm(a.float() - b.float(), dim=1) for a, b in zip(after, before)]
        )
