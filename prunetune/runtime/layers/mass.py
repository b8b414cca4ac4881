"""Proportional attention: a token that stands for many is attended to as if it were that many."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from prunetune.errors import UnsupportedModelError
from prunetune.numerics import exactly
from prunetune.runtime.layers.segment import Segment
from prunetune.runtime.layers.widened import WIDENED, check_heads
from prunetune.runtime.vision.images import ImageTokens
from prunetune.tokens import unit_rows

KERNELS = ("sdpa", "eager")
"""Attention implementations that take a bias with their mask."""

LIMIT = 1 << 24
"""Elements of the similarities that exist at once: 64 MiB of float32."""


@exactly()
def joined(states: Tensor, kept: Tensor) -> Tensor:
    """Return which kept token each token joins: that of the largest cosine, itself where kept.

    Args:
        states: ``[n, d]`` of any floating dtype, one image's tokens, separators included.
        kept: ``[k]`` int64 ascending, at least one.

    Returns:
        ``[n]`` int64, positions in ``kept``; of equal ones the first.
    """
    target = unit_rows(states[kept])
    step = max(1, LIMIT // len(kept))
    near = [
        (unit_rows(rows) @ target.T).nan_to_num(-2.0).argmax(1)
        for rows in torch.split(states, step)
    ]
    home = torch.cat(near)
    home[kept] = torch.arange(len(kept), device=kept.device)
    return home


def stood_for(states: Tensor, kept: Tensor, mass: Tensor) -> Tensor:
    """Return how many tokens each kept one stands for after a stage.

    ToMe's proportional attention (arXiv 2210.09461, section 3) with the joining above in place of
    its bipartite matching, which is ours.

    Args:
        states: ``[n, d]``, one image's tokens alive before the stage, entering its layer.
        kept: ``[k]`` int64 ascending, those alive after it.
        mass: ``[n]`` float32, how many each stood for before.

    Returns:
        ``[k]`` float32, at least 1; its sum is that of ``mass``.
    """
    if not len(kept):
        return mass[:0]
    home = joined(states, kept)
    total = torch.zeros(len(kept), dtype=torch.float64, device=mass.device)
    # Whole numbers: their sum is the same in any order.
    return total.index_add_(0, home, mass.double()).float()


def bias_of(
    images: Sequence[Sequence[ImageTokens]], segment: Segment, valid: Tensor, share: float
) -> Tensor:
    """Return what is added to the logits of a segment's own tokens as keys, ``[B, m]`` float32.

    Args:
        images: Of each batch row.
        segment: The segment.
        valid: ``[B, S]`` bool, the forward's real tokens.
        share: h in [0, 1]: a token that stands for n gets h log(n).
    """
    bias = torch.zeros(valid.shape, dtype=torch.float32, device=valid.device)
    for b, row in enumerate(images):
        for image in row:
            bias[b, image.slots[image.alive]] = share * image.mass[image.alive].log()
    return bias if segment.index is None else bias.gather(1, segment.index) * segment.valid


def biased(mask: Any, bias: Tensor, hidden: Tensor, implementation: str | None) -> Tensor:
    """Return a mask with what is added to the logits of each key.

    Args:
        mask: None (causal), or ``[B or 1, heads or 1, m, keys]``, bool or additive.
        bias: ``[B, keys]`` float32.
        hidden: ``[B, m, d]`` states entering the layer; the mask gets their dtype.
        implementation: Of the attention.

    Returns:
        ``[B, heads or 1, m, keys]``, additive.

    Raises:
        UnsupportedModelError: The attention takes no such mask.
    """
    if implementation not in KERNELS:
        raise _refused(implementation)
    length, keys, dtype = hidden.shape[1], bias.shape[1], hidden.dtype
    added = bias.to(dtype)[:, None, None]
    least = torch.finfo(dtype).min
    if mask is None:
        if length == 1:
            return added
        mask = torch.ones(length, keys, dtype=torch.bool, device=bias.device)
        mask = mask.tril(keys - length)[None, None]
    if mask.dtype == torch.bool:
        return added.masked_fill(~mask, least)
    # A sum could run over the smallest number.
    return torch.where(mask > torch.finfo(mask.dtype).min / 2, mask.to(dtype) + added, least)


def check_kernel(config: Any) -> None:
    """Raise unless the attention implementation of a text model takes a bias.

    Raises:
        UnsupportedModelError: It does not.
    """
    implementation = getattr(config, "_attn_implementation", None)
    if implementation in WIDENED:
        check_heads(config)
    elif implementation not in KERNELS:
        raise _refused(implementation)


def _refused(implementation: str | None) -> UnsupportedModelError:
    known = f"{', '.join(KERNELS)} or {' or '.join(WIDENED)}"
    return UnsupportedModelError(
        f"attention {implementation!r} takes no bias of keys, which the config's mass needs; "
        f"load the model with attn_implementation {known}, or use a config without mass"
    )
