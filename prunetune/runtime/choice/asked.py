"""What the question pays attention to: one attention row for every image, of any kernel."""

from typing import Any

import torch
from torch import Tensor

from prunetune.models.devices import brought
from prunetune.runtime.choice.taps import cached_keys, query_row
from prunetune.runtime.layers.segment import NOWHERE, Segment, places
from prunetune.runtime.layers.sight import Sight, visible


def asked_row(
    layer: Any,
    number: int,
    hidden: Tensor,
    mask: Any,
    rotary: tuple[Tensor, ...],
    cache: Any,
    segment: Segment,
    alive: Tensor,
    image_mask: Tensor,
    query: Tensor | None,
    sight: Sight | None,
    seen: int,
) -> Tensor:
    """Return what each image is given by the last token that sees it, ``[B, m]`` float32.

    Args:
        layer: Decoder layer.
        number: Its number, 0-based.
        hidden: ``[B, m, d]`` states entering it.
        mask: What the model made for it, over the whole sequence.
        rotary: Its cos and sin, ``[B or 1, m, head_dim]``.
        cache: The forward's cache, or None.
        segment: Of which the states are.
        alive: ``[B, S]`` bool, the input slots that they are of.
        image_mask: ``[B, S]`` bool.
        query: ``[B]`` int64, the prompt's last token; None: the last real one.
        sight: Which tokens see which, where that is more than "all real ones before".
        seen: Tokens of the sequence before this forward.
    """
    home, place = alive.device, places(segment, alive, sight)
    keys = brought(cached_keys(cache, number), home)

    def of(slot: Tensor) -> Tensor:
        at = place.gather(1, slot[:, None])[:, 0]
        past = 0 if keys is None else keys.shape[2]
        shown = _seen_by(slot, brought(mask, home), segment, sight, past, seen)
        bias = segment.key_bias(shown.shape[1])
        row: Tensor = brought(query_row(layer, hidden, rotary, shown, at, keys, bias), home)
        return row

    if sight is None:
        last = alive.shape[1] - 1 - alive.flip(1).int().argmax(1)
        return of(last if query is None else query)
    asked = sight.readers(image_mask, query).masked_fill(~image_mask, NOWHERE)
    if segment.index is not None:
        asked = asked.gather(1, segment.index).masked_fill(~segment.valid, NOWHERE)
    row = torch.zeros(asked.shape, dtype=torch.float32, device=home)
    for slot in sorted(set(asked.flatten().tolist())):
        if slot != NOWHERE:
            slots = torch.full((len(asked),), slot, dtype=torch.long, device=home)
            row = torch.where(asked == slot, of(slots), row)
    return row


def _seen_by(
    slot: Tensor, mask: Any, segment: Segment, sight: Sight | None, past: int, seen: int
) -> Tensor:
    """Return which keys of a segment's layer a token sees, ``[B, past + m]`` bool."""
    batch, device = len(slot), slot.device
    keys = segment.keys(seen, past + segment.valid.shape[1])
    real = keys != NOWHERE
    rows = torch.arange(batch, device=device)
    if isinstance(mask, Tensor) and mask.dim() == 4:
        shown = visible(mask).expand(batch, -1, -1)[rows, slot]
        # Of a cache that keeps a window only, the mask is over the last tokens.
        keys = keys - max(0, seen + mask.shape[-2] - mask.shape[-1])
        return shown.gather(1, keys.clamp_min(0)) & real & (keys >= 0)
    keys = keys.clamp_min(0)
    if isinstance(mask, Tensor) and mask.dim() == 2:
        real = real & mask.bool().expand(batch, -1).gather(1, keys)
    if sight is not None:
        return real & sight.seen.expand(batch, -1, -1)[rows, slot].gather(1, keys)
    return real & (keys <= (slot + seen)[:, None])
