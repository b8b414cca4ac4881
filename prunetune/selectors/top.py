"""The highest scores."""

from typing import ClassVar, Literal

from torch import Tensor

from prunetune.selectors.base import Scope, SelectContext, Selector
from prunetune.selectors.base_similarity import falling


class Top(Selector):
    """The ``count`` highest scores; equal ones by the lower position, NaN last.

    What a stage without a selector does, and every config of version 1: the same set as
    ``tokens.top_indices``.
    """

    summary: ClassVar[str] = "the highest scores (default)"
    pairwise: ClassVar[bool] = False

    name: Literal["top"] = "top"
    # Not searched: scorers rank in each crop where that is wanted.
    scope: Scope = "image"

    def choose(self, ctx: SelectContext, count: int) -> Tensor:
        """Return the positions by falling score, ``[count]`` int64."""
        return falling(ctx.scores)[:count]
