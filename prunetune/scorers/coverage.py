"""An even spread over the picture."""

from functools import lru_cache
from typing import ClassVar, Literal

import torch
from torch import Tensor

from prunetune.scorers.base import ScoreContext, Scorer

_BITS = 10
_PHASES = 16
# 1/3 in binary, the nested lattice nearest to the middle of the cells: without it every lattice
# would start in the upper left corner.
_CENTRE = 0b0101010101


class Coverage(Scorer):
    """Rank of a token in an ordered dither of its tile, so that any top-k is an even spread.

    No paper of this field; the matrix is Bayer's (ICC 1973): the bits of ``row ^ col`` and
    ``row`` interleaved, finest first. The first quarter of an even grid is every second row
    and column, the first half a chequerboard; tiles share the count in proportion to their sizes.
    Alone it keeps every n-th token; beside other scorers it keeps them from spending everything on
    one region. Depends on tile, row and column only, so stages nest. No unit; standardised
    linearly.
    """

    summary: ClassVar[str] = "even spread over the picture: every n-th token"

    name: Literal["coverage"] = "coverage"

    def score(self, ctx: ScoreContext) -> Tensor:
        """Return minus the dither threshold, ``[visual]`` float32 in (-1, 0]."""
        place = ctx.geometry
        diagonal, down, phase = _tables(place.tile.device)
        side = (1 << _BITS) - 1
        rank = diagonal[(place.row ^ place.col) & side] + down[place.row & side]
        return -(rank + phase[place.tile % _PHASES]) / (1 << 2 * _BITS)


@lru_cache(maxsize=16)
def _tables(device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Return what ``row ^ col``, ``row`` and the tile add to the rank; exact in float32."""
    side = range(1 << _BITS)
    diagonal = [2 * _reversed(x) for x in side]
    down = [_reversed(x ^ _CENTRE) for x in side]
    phase = [int(f"{t:04b}"[::-1], 2) / _PHASES for t in range(_PHASES)]
    return (
        torch.tensor(diagonal, dtype=torch.float32, device=device),
        torch.tensor(down, dtype=torch.float32, device=device),
        torch.tensor(phase, dtype=torch.float32, device=device),
    )


def _reversed(x: int) -> int:
    """Return the bits of ``x`` in reverse, one zero between neighbours."""
    return sum(((x >> i) & 1) << 2 * (_BITS - 1 - i) for i in range(_BITS))
