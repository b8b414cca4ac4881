"""Gemma 3: one pooled square grid a view; images attend in both directions; two kinds of layers."""

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from prunetune.families.base import refuse
from prunetune.families.bases.views import FixedViews
from prunetune.masking import image_blocks


class Gemma3(FixedViews):
    """``Gemma3ForConditionalGeneration``.

    Pan-and-scan crops are images of their own: nothing in the model's inputs ties them to the
    picture they were cut from. Sliding and full layers alternate, with rotary rows and masks of
    their own.
    """

    model_type: ClassVar[str] = "gemma3"

    def check(self) -> None:
        """Refuse text models without causal attention."""
        if getattr(self.config.text_config, "use_bidirectional_attention", False):
            raise refuse(self.model, "its text attends in both directions, so nothing is cached")

    @property
    def merge(self) -> int:
        """Side of the average pooling."""
        projector: Any = self.base.multi_modal_projector
        return int(projector.kernel_size)

    def rotary(self, layer: int, hidden: Tensor, position_ids: Tensor) -> tuple[Tensor, ...]:
        """Sliding and full layers turn at different speeds."""
        embeddings: tuple[Tensor, ...] = self.text_model.rotary_emb(
            hidden, position_ids, self.layer_kind(layer)
        )
        return embeddings

    def blocks(self, arguments: Mapping[str, Any]) -> Tensor | None:
        """An image's tokens see one another, where the caller passes ``token_type_ids``."""
        kinds: Tensor | None = arguments.get("token_type_ids")
        if kinds is None:
            return None
        tokens = arguments.get("input_ids")
        tokens = arguments["inputs_embeds"] if tokens is None else tokens
        # Of a conversation's later turn they may come from its start on.
        return image_blocks(kinds[:, -tokens.shape[1] :])
