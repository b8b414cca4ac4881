"""Attention of the vision tower's CLS token (FasterVLM)."""

from typing import ClassVar, Literal

from torch import Tensor

from prunetune.scorers.base import Need, ScoreContext, Scorer


class ClsAttention(Scorer):
    """FasterVLM, arXiv 2412.01818, section 3: ``a_i = mean over heads of A[CLS, i]``.

    Taken at the vision layer whose output is the feature map, after the softmax, without
    renormalising. A tower without a CLS token gives the mean attention a patch receives.
    Unit: probability over the token's own crop. Standardised on a log scale. ``per_crop=True`` is
    the paper's choice: every crop keeps the same number.
    """

    needs: ClassVar[frozenset[Need]] = frozenset({"vision_attention"})
    standardise: ClassVar[Literal["linear", "log"]] = "log"
    summary: ClassVar[str] = "attention of the vision tower's CLS token (FasterVLM)"

    name: Literal["cls_attention"] = "cls_attention"

    def score(self, ctx: ScoreContext) -> Tensor:
        """Return the CLS attention, ``[visual]`` float32."""
        return ctx.given("vision_attention").float()
