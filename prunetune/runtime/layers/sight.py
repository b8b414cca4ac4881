"""What the tokens of a forward may attend to: the model's own mask, read and carried over.

Padding is one reason to hide a token, and there are others: several samples packed into a row,
branches, blocks that attend in both directions, parts that a caller hides. All of them are in the
mask that the model itself made; layers that hold fewer tokens get the rows and columns of theirs.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from prunetune.errors import UnsupportedModelError
from prunetune.runtime.layers.segment import Segment


def visible(mask: Tensor) -> Tensor:
    """Return what a 4-D mask shows, ``[B, S, keys]`` bool; of several heads, what some head sees.

    Raises:
        UnsupportedModelError: It is neither bool nor additive.
    """
    if mask.dtype != torch.bool:
        if not mask.is_floating_point():
            raise UnsupportedModelError(
                f"attention_mask: received 4-D of {mask.dtype}, allowed bool (True: seen) or "
                "floating point (added to the logits); convert it"
            )
        mask = mask > torch.finfo(mask.dtype).min / 2
    return mask[:, 0] if mask.shape[1] == 1 else mask.any(1)


def own_slots(mask: Tensor, past: int, length: int) -> slice:
    """Return the columns of a model's own 4-D mask that are a forward's own tokens.

    Args:
        mask: ``[B or 1, heads or 1, S, keys]``; of a layer whose cache keeps a window only, over
            the last tokens of the sequence.
        past: Tokens of the sequence before the forward.
        length: Of the forward, S.
    """
    first = past - max(0, past + length - mask.shape[-1])
    return slice(first, first + length)


def carried_over(mask: Tensor, segment: Segment, seen: int, width: int, before: int = 0) -> Tensor:
    """Return a model's own mask for the layers of a segment.

    Args:
        mask: ``[B or 1, heads or 1, S, keys]``, or ``[B, keys]`` bool (FlashAttention), over
            the whole sequence, dropped tokens included.
        segment: The segment.
        seen: Tokens of the sequence before this forward.
        width: Keys of its layers.
        before: Tokens of the sequence before the first that the mask is about: no token of this
            forward reaches them.

    Returns:
        ``[B, heads or 1, m, width]``, or ``[B, width]``.
    """
    keys = segment.keys(seen, width) - before
    batch = keys.shape[0]
    # A static cache has room behind the end of the sequence.
    hidden = (keys < 0) | (keys >= mask.shape[-1])
    keys = keys.clamp(0, mask.shape[-1] - 1)
    if mask.dim() == 2:
        return mask.expand(batch, -1).gather(1, keys) & ~hidden
    mask = mask.expand(batch, -1, -1, -1)
    if segment.index is None:
        part = mask.gather(3, keys[:, None, None].expand(-1, mask.shape[1], mask.shape[2], -1))
    else:
        rows = torch.arange(batch, device=keys.device)[:, None, None]
        # [B, m, width, heads], read without a copy of whole rows.
        part = mask.movedim(1, -1)[rows, segment.index[:, :, None], keys[:, None]].movedim(-1, 1)
    least = False if part.dtype == torch.bool else torch.finfo(part.dtype).min
    return part.masked_fill(hidden[:, None, None], least)


@dataclass
class Sight:
    """Which tokens of a forward see which, where it is more than "all real ones before".

    Attributes:
        seen: ``[B, S, S]`` bool, query by key, of this forward's own tokens.
    """

    seen: Tensor

    def readers(self, image_mask: Tensor, last: Tensor | None) -> Tensor:
        """Return the last token that sees each one, ``[B, S]`` int64; 0 where none does.

        A packed sample's picture is asked for by its own sample's last token.

        Args:
            image_mask: ``[B, S]`` bool; only these are of meaning.
            last: ``[B]`` int64, the last token that may ask; None: any.
        """
        length = self.seen.shape[1]
        slots = torch.arange(length, device=self.seen.device)
        seen = self.seen & image_mask[:, None]
        asking = seen
        if last is not None:
            asking = seen & (slots <= last[:, None])[:, :, None]
            # An image behind the prompt's end is asked for by whoever sees it.
            asking = torch.where(asking.any(1, keepdim=True), asking, seen)
        return torch.where(asking, slots[None, :, None], 0).amax(1)

    def gone_before(self, gone: Tensor) -> Tensor:
        """Return how many of the tokens that each one saw before itself are gone, ``[B, S]``."""
        return (self.seen.tril() & gone[:, None]).sum(2)

    def last_before(self, alive: Tensor) -> Tensor:
        """Return the last one alive that each token sees up to itself, ``[B, S]``; -1: none."""
        slots = torch.arange(alive.shape[1], device=alive.device)
        return torch.where(self.seen.tril() & alive[:, None], slots, -1).amax(2)


def look(
    mask: Any,
    given: Any,
    positions: Tensor | None,
    past: int,
    shape: Sequence[int],
    bounds: Tensor | None = None,
) -> tuple[Sight | None, Tensor | None]:
    """Find out whether more than padding decides which tokens see which.

    Args:
        mask: What the model made for the first layer with a hook.
        given: What the model's caller passed: None, 2-D or 4-D.
        positions: ``[B or 1, S]`` int64, where transformers reads samples from them: without a
            mask and a cache.
        past: Tokens of the sequence before this forward.
        shape: ``(B, S)``.
        bounds: ``[samples + 1]`` int, where samples begin and end, as told to FlashAttention.

    Returns:
        The sight, or None; and the sample of each token, ``[B, S]`` int64, where the attention
        takes no mask and tells the samples of a row apart by their positions.
    """
    batch, length = shape
    samples = packed_samples(positions, batch)
    if isinstance(mask, Tensor) and mask.dim() == 4:
        if samples is None and not (isinstance(given, Tensor) and given.dim() == 4):
            return None, None
        seen = visible(mask)[:, :, own_slots(mask, past, length)]
        return Sight(seen.expand(batch, -1, -1)), None
    if bounds is not None and len(bounds) > 2:
        slots = torch.arange(length, device=bounds.device)
        samples = torch.bucketize(slots, bounds[1:-1], right=True)[None].to(bounds.device)
    if samples is None or batch > 1:
        return None, None
    same = samples[:, :, None] == samples[:, None]
    return Sight(same.tril()), samples


def new_slots(mask: Any, hidden: Tensor, past: int) -> Tensor:
    """Return which of a forward's slots are real tokens, ``[B, S]`` bool.

    Args:
        mask: What the caller passed for layer 0: None, 2-D or 4-D. Of a 4-D mask, a token is real
            if some token sees it, be it itself.
        hidden: ``[B, S, d]``.
        past: Tokens seen over the cache before this forward.
    """
    batch, length = hidden.shape[:2]
    if mask is None or length == 1 or mask.dim() not in (2, 4):
        return torch.ones(batch, length, dtype=torch.bool, device=hidden.device)
    if mask.dim() == 2:
        new: Tensor = mask[:, -length:].to(hidden.device).bool()
    else:
        new = visible(mask)[:, :, own_slots(mask, past, length)].any(1)
    return new.expand(batch, -1)


def packed_samples(positions: Tensor | None, batch: int) -> Tensor | None:
    """Return the number of each token's sample where rows hold several, ``[B, S]`` int64, or None.

    As transformers tells: positions that do not go on by one begin a sample.
    """
    if positions is None or positions.dim() != 2 or positions.shape[1] == 1:
        return None
    starts = positions.diff(dim=1) != 1
    if not bool(starts.any()):
        return None
    return torch.nn.functional.pad(starts, (1, 0)).long().cumsum(1).expand(batch, -1)


def renumbered(samples: Tensor, index: Tensor | None) -> Tensor:
    """Return positions that count each packed sample's survivors from 0, ``[B, m]`` int64.

    FlashAttention tells samples apart by them, without a mask.
    """
    if index is not None:
        samples = samples.gather(1, index)
    slots = torch.arange(samples.shape[1], device=samples.device).expand_as(samples)
    new = torch.ones_like(samples, dtype=torch.bool)
    new[:, 1:] = samples[:, 1:] != samples[:, :-1]
    return slots - torch.where(new, slots, 0).cummax(1).values
