"""The thumbnail against the tiles."""

from typing import ClassVar, Literal

from torch import Tensor

from prunetune.scorers.base import ScoreContext, Scorer


class TilePrior(Scorer):
    """Prior on any-resolution images: +1 for a token of the thumbnail, -1 for one of a tile.

    No paper; the knob that FasterVLM and VFlowOpt set by hand when they give the crops equal
    shares or one global ranking. No unit; standardised linearly, so it says nothing on images of
    one view and on videos. A positive score weight favours the thumbnail.
    """

    summary: ClassVar[str] = "thumbnail (+1) against tiles (-1)"

    name: Literal["tile_prior"] = "tile_prior"
    # Inside a crop the prior is constant: there is nothing to rank.
    per_crop: Literal[False] = False

    def score(self, ctx: ScoreContext) -> Tensor:
        """Return the prior, ``[visual]`` float32."""
        return ctx.geometry.whole.float() * 2.0 - 1.0
