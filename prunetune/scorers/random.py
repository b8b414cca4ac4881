"""The control: chance."""

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from prunetune.scorers.base import Need, ScoreContext, Scorer

_MASK = (1 << 64) - 1


class Random(Scorer):
    """Uniform noise in [0, 1): the control that every method must beat.

    A hash (the finaliser of SplitMix64, Steele et al. 2014, section 3) of ``seed``, the image's
    seed and the token's tile, row and column. So a token keeps its score on every device, in every
    stage and beam and whichever other tokens are alive. No unit; standardised linearly.
    """

    needs: ClassVar[frozenset[Need]] = frozenset({"image_seed"})
    summary: ClassVar[str] = "uniform noise, seeded by the image (control)"

    name: Literal["random"] = "random"
    seed: int = Field(default=0, ge=0, lt=1 << 63)

    def score(self, ctx: ScoreContext) -> Tensor:
        """Return the noise, ``[visual]`` float32."""
        place = (ctx.geometry.tile << 40) + (ctx.geometry.row << 20) + ctx.geometry.col
        offset = _mixed(_mixed(self.seed) ^ (ctx.image_seed & _MASK))
        x = place * _signed(0x9E3779B97F4A7C15) + _signed(offset)
        x = (x ^ _shift(x, 30)) * _signed(0xBF58476D1CE4E5B9)
        x = (x ^ _shift(x, 27)) * _signed(0x94D049BB133111EB)
        return _shift(x ^ _shift(x, 31), 40).float() / (1 << 24)


def _mixed(x: int) -> int:
    x = (x + 0x9E3779B97F4A7C15) & _MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK
    return x ^ (x >> 31)


def _signed(x: int) -> int:
    return x - (1 << 64) if x >> 63 else x


def _shift(x: Tensor, bits: int) -> Tensor:
    # torch shifts int64 arithmetically; the hash needs zeros from the left.
    return torch.bitwise_and(x >> bits, (1 << (64 - bits)) - 1)
