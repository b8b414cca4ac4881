"""Which slots are real tokens, and the attention masks of layers that hold unequal numbers."""

from typing import Any

import torch
from torch import Tensor
from transformers.masking_utils import create_causal_mask

from prunetune.errors import UnsupportedModelError
from prunetune.families.base_configs import text_window
from prunetune.runtime.cache import CacheView, extend_prefix
from prunetune.runtime.segment import Segment


def new_slots(mask: Any, hidden: Tensor, past: int) -> Tensor:
    """Return which of a forward's slots are real tokens, ``[B, S]`` bool.

    Args:
        mask: What the caller passed for layer 0: None, 2-D or 4-D.
        hidden: ``[B, S, d]``.
        past: Tokens seen over the cache before this forward.
    """
    batch, length = hidden.shape[:2]
    if mask is None or length == 1:
        return torch.ones(batch, length, dtype=torch.bool, device=hidden.device)
    if mask.dim() == 2:
        new: Tensor = mask[:, -length:].to(hidden.device).bool()
        return new.expand(batch, -1)
    return _seen(mask)[:, past : past + length].expand(batch, -1)


def cached_slots(mask: Any, past: int, length: int, batch: int) -> Tensor | None:
    """Return which of ``past`` unpruned cached slots are real, as the caller's mask says.

    Returns:
        ``[batch, past]`` bool; None: all of them.
    """
    if not past or not isinstance(mask, Tensor):
        return None
    if mask.dim() == 4:
        head = _seen(mask)[:, :past]
    elif mask.shape[1] > length:
        head = mask[:, : mask.shape[1] - length].bool()[:, -past:]
    else:
        return None
    return None if bool(head.all()) else head.expand(batch, -1)


def _seen(mask: Tensor) -> Tensor:
    """Read key validity off a 4-D mask (StaticCache): the last token sees all real ones."""
    last: Tensor = mask[:, 0, -1]
    return last if last.dtype == torch.bool else last.eq(0)


def segment_mask(
    config: Any,
    hidden: Tensor,
    segment: Segment,
    cache: Any,
    layer: int,
    blocks: Tensor | None = None,
) -> Any:
    """Return the mask of those of a segment's layers that are of the kind of ``layer``.

    Args:
        config: Of the text model.
        hidden: ``[B, m, d]`` states entering the layer.
        segment: The segment.
        cache: The forward's cache, or None.
        layer: 0-based.
        blocks: ``[B, S]`` int64 over this forward's input: tokens of one number attend to one
            another in both directions, -1 attends causally. None: all of them do.
    """
    valid = None
    if segment.padded or segment.prefix is not None:
        valid = extend_prefix(segment.prefix, segment.past, segment.valid)
    view = None if cache is None else CacheView(cache)
    if blocks is not None:
        if segment.index is not None:
            blocks = blocks.gather(1, segment.index).masked_fill(~segment.valid, -1)
        blocks = torch.nn.functional.pad(blocks, (segment.past, 0), value=-1)
    return create_causal_mask(
        config,
        hidden,
        valid,
        view,
        position_ids=None,
        block_sequence_ids=blocks,
        layer_idx=layer,
    )


def check_window(config: Any, total: int) -> None:
    """Raise if ``total`` tokens exceed the sliding window of a text model's config."""
    window = text_window(config)
    if window is not None and total > window:
        raise UnsupportedModelError(
            f"sequence of {total} tokens exceeds the model's sliding window of "
            f"{window}: its cache would window over compacted slots and decode wrongly; use "
            "shorter prompts or a checkpoint without a sliding window"
        )
