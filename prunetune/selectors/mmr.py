"""Maximal marginal relevance."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field
from torch import Tensor

from prunetune.registry import Tunable
from prunetune.selectors.base import SelectContext, Selector
from prunetune.selectors.base_similarity import farthest_first, minmax


class Mmr(Selector):
    """Maximal marginal relevance (Carbonell and Goldstein, SIGIR 1998), as IDPruner has it.

    First the highest score, then again and again
    ``argmax_i r minmax(q)_i - (1 - r) max_(s kept) c_is`` with c the cosine of the states.

    Attributes:
        relevance: r, from 0 (as different as possible) to 1 (the highest scores).
        centred: Take the image's mean off the states first.
    """

    summary: ClassVar[str] = "score against likeness to what is kept (IDPruner)"

    name: Literal["mmr"] = "mmr"
    relevance: Annotated[
        float,
        Field(ge=0.0, le=1.0),
        Tunable(0.0, 0.875, shown="score against difference", levels=8),
    ] = 0.5
    centred: bool = True

    def choose(self, ctx: SelectContext, count: int) -> Tensor:
        """Return the positions in the order in which they are taken, ``[count]`` int64."""
        similarity = ctx.cosines(centred=self.centred)
        similarity.mul_(1.0 - self.relevance)
        bonus = self.relevance * minmax(ctx.scores)
        return farthest_first(similarity, bonus, ctx.scores.argmax(), count)
