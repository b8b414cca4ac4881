"""PaliGemma: one square grid an image; the whole prompt attends in both directions."""

import inspect
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from prunetune.families.base import refuse
from prunetune.families.bases.views import FixedViews
from prunetune.release import cache_of


class PaliGemma(FixedViews):
    """``PaliGemmaForConditionalGeneration``, 1 (Gemma) and 2 (Gemma 2).

    Positions start at 1; an answer is of kind 1 and attends causally.
    """

    model_type: ClassVar[str] = "paligemma"
    one_view = True
    first_position: ClassVar[int] = 1
    answer_kind: ClassVar[int] = 1

    def logits(self, states: Tensor) -> Tensor:
        """Gemma 2's are capped, by a soft bound."""
        logits = super().logits(states)
        bound = getattr(self.config.get_text_config(), "final_logit_softcapping", None)
        # Older releases (5.17) leave them as they are; what counts is what the model puts out.
        forward = inspect.unwrap(type(self.model).forward)
        if bound is None or "final_logit_softcapping" not in forward.__code__.co_consts:
            return logits
        capped: Tensor = bound * (logits / bound).tanh()
        return capped

    def blocks(self, arguments: Mapping[str, Any]) -> Tensor | None:
        """The prompt is one block, where the caller passes ``token_type_ids`` (0: prompt)."""
        cache = cache_of(arguments)
        if cache is not None and int(cache.get_seq_length()):
            raise refuse(
                self.model,
                "a later turn brings images, but its prompt is one block that attends in both "
                "directions: what is cached cannot attend to them; start a new prompt",
            )
        kinds: Tensor | None = arguments.get("token_type_ids")
        return None if kinds is None else torch.where(kinds == 0, 0, -1)
