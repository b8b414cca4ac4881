"""Where tokens stand: rotary rows of survivors, packed position ids, the prompt's last token."""

import torch
from torch import Tensor


def rows_of(embeddings: tuple[Tensor, ...], index: Tensor | None) -> tuple[Tensor, ...]:
    """Return rotary cos and sin at ``index`` (``[B, m]`` int64; None: all, as they are)."""
    if index is None:
        return embeddings
    batch = index.shape[0]
    return tuple(
        part.expand(batch, -1, -1).gather(1, index[..., None].expand(-1, -1, part.shape[-1]))
        for part in embeddings
    )


def packed_ids(position_ids: Tensor, shift: Tensor | None, before: Tensor | None) -> Tensor:
    """Return position ids that have no gaps after a layer-0 stage.

    Args:
        position_ids: ``[B, S]`` int64, the model's.
        shift: ``[B]`` int64, tokens that earlier forwards over the cache dropped there.
        before: ``[B, S]`` int64, how many of the tokens before each one this forward drops there.

    Returns:
        ``[B, S]`` int64; of no meaning at dropped tokens.
    """
    if shift is not None:
        position_ids = position_ids - shift[:, None].to(position_ids.device)
    return position_ids if before is None else position_ids - before


def prompt_end(valid: Tensor, image_mask: Tensor, tail: int) -> Tensor | None:
    """Return the slot of each prompt's last token, ``[B]``; None where no token follows it.

    Args:
        valid: ``[B, S]`` bool, False at padding.
        image_mask: ``[B, S]`` bool, True at image tokens.
        tail: Tokens that follow the prompt.
    """
    if not tail:
        return None
    slots = torch.arange(valid.shape[1], device=valid.device)
    last = torch.where(valid, slots, -1).amax(1)
    last_image = torch.where(image_mask & valid, slots, -1).amax(1)
    # A caller who asks for the logits of images too has not told where the prompt ends.
    return torch.where(last - tail > last_image, last - tail, last)
