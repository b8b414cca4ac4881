"""Likeness to the question, before any layer of the language model has run."""

from typing import ClassVar, Literal

import torch
from torch import Tensor

from prunetune.scorers.base import Need, ScoreContext, Scorer
from prunetune.tokens import unit_rows

# Rows that are converted at a time.
_ROWS = 1024


class TextRelevance(Scorer):
    """Cosine of a patch's state and the mean input embedding of the question's tokens.

    CDPruner (arXiv 2506.10967), section 3.2, for models without a text tower, as OpenVINO has it.
    Only the question: the chat template's tokens would swamp the mean. The sign of its weight is
    searched, as the likeness is often reversed. An empty question gives a constant, so nothing.
    The choice then depends on the prompt. Unit: cosine. Standardised linearly.
    """

    needs: ClassVar[frozenset[Need]] = frozenset({"states", "question"})
    summary: ClassVar[str] = "likeness to the question's embeddings (CDPruner)"

    name: Literal["text_relevance"] = "text_relevance"

    @torch.no_grad()
    def score(self, ctx: ScoreContext) -> Tensor:
        """Return the cosine, ``[visual]`` float32; 0 for a state or a question of zeros."""
        states, text = ctx.given("states"), ctx.given("text")
        if not len(text):
            return torch.zeros(len(ctx), dtype=torch.float32, device=ctx.device)
        asked = unit_rows(text.float().mean(0))
        # Products and sums by hand: autocast would take a matrix product to half precision.
        return torch.cat([(unit_rows(rows) * asked).sum(-1) for rows in torch.split(states, _ROWS)])
