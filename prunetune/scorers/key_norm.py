"""How long a token's keys are."""

from typing import ClassVar, Literal

import torch
from torch import Tensor

from prunetune.scorers.base import Need, ScoreContext, Scorer


class KeyNorm(Scorer):
    """Minus the mean length, over heads, of a token's keys in decoder layer ``l - 1``.

    Tokens of short keys receive much attention (Devoto et al., arXiv 2406.11430; ViTCoP uses it
    for visual tokens). Rotary positions change no length. Needs no attention, so that
    FlashAttention stays on. Unit: that of the keys. Standardised linearly.
    """

    needs: ClassVar[frozenset[Need]] = frozenset({"keys"})
    summary: ClassVar[str] = "short keys in the layer before (ViTCoP)"

    name: Literal["key_norm"] = "key_norm"

    @torch.no_grad()
    def score(self, ctx: ScoreContext) -> Tensor:
        """Return minus the mean length, ``[visual]`` float32."""
        lengths: Tensor = torch.linalg.vector_norm(ctx.given("keys"), dim=-1, dtype=torch.float32)
        return -lengths.mean(-1)
