"""Attention from the last text token inside the language model (FastV)."""

from typing import ClassVar, Literal

from torch import Tensor

from prunetune.scorers.base import Need, ScoreContext, Scorer


class LastQuery(Scorer):
    """FastV, arXiv 2403.06764, section 4: attention a token receives in a decoder layer.

    ``a_i = mean over heads of A[last, i]`` at decoder layer ``layer - 1``, the row of the last
    prompt token only, so no attention map is materialised. Unit: probability over all tokens.
    Standardised on a log scale. The only scorer that always sees the question.
    """

    needs: ClassVar[frozenset[Need]] = frozenset({"last_query"})
    standardise: ClassVar[Literal["linear", "log"]] = "log"
    summary: ClassVar[str] = "attention from the last text token (FastV)"

    name: Literal["last_query"] = "last_query"

    def score(self, ctx: ScoreContext) -> Tensor:
        """Return the last token's attention, ``[visual]`` float32."""
        return ctx.given("last_query").float()
