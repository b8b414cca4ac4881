"""The patch that is farthest from all that are kept."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field
from torch import Tensor

from prunetune.registry import Tunable
from prunetune.selectors.base import SelectContext, Selector
from prunetune.selectors.base_similarity import farthest_first


class MaxMin(Selector):
    """DivPrune, arXiv 2503.02175 (CVPR 2025), section 3.2; the score term is ReDiPrune's.

    First the highest score, then again and again ``argmax_i min_(s kept) (1 - c_is) + alpha q_i``
    with c the cosine of the states. DivPrune has no score, starts from the patch whose nearest
    neighbour is farthest, and takes no mean off: ``alpha=0, first="isolated", centred=False``.

    Attributes:
        alpha: Weight of a standardised score of 1 beside a cosine distance of 1.
        first: ``"score"``: start from the highest score. ``"isolated"``: see above.
        centred: Take the image's mean off the states first. States of a language model share a
            large mean, beside which all cosines are near 1.
    """

    summary: ClassVar[str] = "farthest from what is kept (DivPrune)"

    name: Literal["maxmin"] = "maxmin"
    alpha: Annotated[
        float, Field(ge=0.0, le=10.0), Tunable(0.0, 0.7, shown="weight of the score", levels=8)
    ] = 0.0
    first: Literal["score", "isolated"] = "score"
    centred: bool = True

    @property
    def ignores_scores(self) -> bool:
        """DivPrune has none."""
        return not self.alpha and self.first == "isolated"

    def choose(self, ctx: SelectContext, count: int) -> Tensor:
        """Return the positions in the order in which they are taken, ``[count]`` int64."""
        similarity = ctx.cosines(centred=self.centred)
        start = ctx.scores
        if self.first == "isolated":
            alone = similarity.clone()
            alone.fill_diagonal_(-2.0)
            start = -alone.amax(1)
        return farthest_first(similarity, self.alpha * ctx.scores, start.argmax(), count)
