"""The attention masks that a release of transformers makes."""

from typing import Any

from torch import Tensor
from transformers.masking_utils import (
    create_causal_mask,
    create_chunked_causal_mask,
    create_sliding_window_causal_mask,
)

__all__ = ["causal_mask", "image_blocks"]


def causal_mask(
    config: Any,
    hidden: Tensor,
    valid: Tensor | None,
    cache: Any,
    *,
    blocks: Tensor | None = None,
    layer: int | None = None,
    window: str = "",
) -> Any:
    """Return the causal mask of a decoder layer, as its attention implementation takes it.

    Args:
        config: Of the text model.
        hidden: ``[B, m, d]`` states entering the layer.
        valid: ``[B, keys]`` bool, False at padding; None: there is none.
        cache: What tells how many keys the layer holds; None: none.
        blocks: ``[B, keys]`` int64: tokens of one number attend to one another in both
            directions, -1 attends causally. None: all of them do.
        layer: 0-based; None: the first layer of full attention.
        window: What the layer attends within, ``sliding`` or ``chunked``; empty: everything.
    """
    makers = {"sliding": create_sliding_window_causal_mask, "chunked": create_chunked_causal_mask}
    # Before 5.18 chunks know no blocks.
    more = {} if blocks is None else {"block_sequence_ids": blocks}
    make = makers.get(window, create_causal_mask)
    return make(config, hidden, valid, cache, None, layer_idx=layer, **more)


def image_blocks(kinds: Tensor) -> Tensor:
    """Return Gemma 3's blocks, ``[B, S]`` int64, from its ``token_type_ids`` (1: image)."""
    from transformers.models.gemma3.modeling_gemma3 import get_block_sequence_ids_for_mask

    blocks: Tensor = get_block_sequence_ids_for_mask(kinds)
    return blocks
