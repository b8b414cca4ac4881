"""The layers between two stages: all of them see the same slots."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from prunetune.models.devices import brought
from prunetune.release import Told

NOWHERE = -1
"""Slot of a token that holds nothing: padding of ragged rows."""


@dataclass
class Move:
    """What a stage does to the states entering its layer.

    Attributes:
        writes: (batch row, places ``[k]`` int64, new states ``[k, d]``): what a restorer blends.
        index: ``[B, m]`` int64, the places that move up; None: all states stay where they are.
    """

    writes: list[tuple[int, Tensor, Tensor]] = field(default_factory=list)
    index: Tensor | None = None

    def __call__(self, hidden: Tensor) -> Tensor:
        """Return ``[B, m, d]`` states of the survivors."""
        if self.writes:
            hidden = hidden.clone()
            for row, places, states in self.writes:
                hidden[row, places] = states
        if self.index is None:
            return hidden
        return hidden.gather(1, self.index[..., None].expand(-1, -1, hidden.shape[-1]))


@dataclass
class Held:
    """Which tokens of the sequence some layers of a cache hold.

    Attributes:
        slots: ``[B, n]`` int64, the token that each of the first ``n`` cached ones is, counted from
            the start of the sequence, dropped ones included; ``NOWHERE``: padding. None: cached
            token ``i`` is token ``i`` of the sequence.
        behind: What is cached behind them, at ``i``, is token ``i + behind``.
        padded: Whether some of ``slots`` is ``NOWHERE``.
        bias: ``[B, n]`` float32, what is added to the logits of the first ``n`` cached ones as
            keys; None: nothing.
    """

    slots: Tensor | None = None
    behind: int = 0
    padded: bool = False
    bias: Tensor | None = None

    def cropped(self, past: int) -> "Held":
        """Return the same of a cache that holds ``past`` tokens now: some may be cropped off."""
        if self.slots is None or self.slots.shape[1] <= past:
            return self
        bias = None if self.bias is None else self.bias[:, :past]
        return Held(self.slots[:, :past], self.behind, self.padded, bias)

    def of(self, count: int, batch: int, device: Any) -> Tensor:
        """Return the tokens that the first ``count`` cached ones are, ``[batch, count]`` int64."""
        if self.slots is None:
            return torch.arange(count, device=device).expand(batch, -1)
        head = brought(self.slots, device)[:, :count]
        tail = torch.arange(head.shape[1], count, device=device) + self.behind
        return torch.cat([head, tail.expand(batch, -1)], 1)


@dataclass
class Segment:
    """The layers from one stage to the next.

    Attributes:
        index: ``[B, m]`` int64, slots of this forward's input; None: all of them, in place.
        valid: ``[B, m]`` bool, False at padding.
        padded: Whether some of ``valid`` is False.
        move: What the stage does to the states entering it.
        past: Tokens that its layers had cached before this forward.
        held: Which ones those are.
        bias: ``[B, m]`` float32, what is added to the logits of its own tokens as keys; None:
            nothing.
        inputs: By kind of layer, what its layers get instead of what the model prepared.
    """

    index: Tensor | None
    valid: Tensor
    padded: bool
    move: Move = field(default_factory=Move)
    past: int = 0
    held: Held = field(default_factory=Held)
    bias: Tensor | None = None
    inputs: dict[str, Told] = field(default_factory=dict)

    @property
    def in_place(self) -> bool:
        """Whether its layers hold the whole sequence, token by token."""
        return self.index is None and self.held.slots is None

    def tokens(self, seen: int) -> Tensor:
        """Return which token of the sequence each state is, ``[B, m]`` int64.

        Args:
            seen: Tokens of the sequence before this forward.
        """
        own = self.index
        if own is None:
            batch, length = self.valid.shape
            own = torch.arange(length, device=self.valid.device).expand(batch, -1)
        return (own + seen).masked_fill(~self.valid, NOWHERE)

    def keys(self, seen: int, width: int) -> Tensor:
        """Return which token of the sequence each key of its layers is, ``[B, width]`` int64.

        Args:
            seen: Tokens of the sequence before this forward.
            width: Keys of the layers; a static cache has more than it holds, one of a sliding
                window fewer than its layers have been given: the last of them.
        """
        batch, length = self.valid.shape
        whole = self.past + length
        if self.index is None and not self.padded:
            # The same for every decoding step: a mask of the sequence hides what is not there yet.
            keys = self.held.of(max(width, whole), batch, self.valid.device)
            return keys[:, max(0, whole - width) :]
        held = self.held.of(self.past, batch, self.valid.device)
        keys = torch.cat([held, self.tokens(seen)], 1)[:, max(0, whole - width) :]
        return torch.nn.functional.pad(keys, (0, width - keys.shape[1]), value=NOWHERE)

    def real_keys(self) -> Tensor | None:
        """Return which keys, of ``past`` and of its own, are no padding; None: all of them."""
        if not self.padded and not self.held.padded:
            return None
        held = self.held.of(self.past, len(self.valid), self.valid.device) != NOWHERE
        return torch.cat([held, self.valid], 1)

    def key_bias(self, width: int) -> Tensor | None:
        """Return what is added to the logits of each key of its layers, ``[B, width]`` float32.

        Args:
            width: Keys of the layers, see ``keys``.
        """
        held, own = self.held.bias, self.bias
        if held is None and own is None:
            return None
        batch, device = len(self.valid), self.valid.device
        none = torch.zeros(batch, 0, dtype=torch.float32, device=device)
        first = none if held is None else brought(held, device)[:, : self.past]
        # What was cached behind the last pruned forward is text.
        first = torch.nn.functional.pad(first, (0, self.past - first.shape[1]))
        # What a decoding step brings has none of its own.
        own = none.new_zeros(self.valid.shape) if own is None else own
        bias = torch.cat([first, own], 1)[:, -width:]
        return torch.nn.functional.pad(bias, (0, width - bias.shape[1]))

    def after(self, seen: int, length: int) -> Held:
        """Return which tokens its layers hold after this forward, of ``length`` input slots."""
        if self.index is None and not self.padded:
            return self.held
        batch, own = self.valid.shape
        held = self.held.of(self.past, batch, self.valid.device)
        slots = torch.cat([held, self.tokens(seen)], 1)
        behind = seen + length - self.past - own
        bias = self.key_bias(self.past + own)
        return Held(slots, behind, self.padded or self.held.padded, bias)


def places(segment: Segment | None, alive: Tensor, sight: Any = None, *, none: int = 0) -> Tensor:
    """Return where each input slot stands in the states of a segment, ``[B, S]`` int64.

    A dropped token has the place of the last survivor before it that it saw.

    Args:
        segment: The segment; None: no token has moved.
        alive: ``[B, S]`` bool, the input slots that its states are of.
        sight: Which tokens see which; None: all those before.
        none: Place of those that have no survivor before them.
    """
    batch, length = alive.shape
    if segment is None or segment.index is None:
        return torch.arange(length, device=alive.device).expand(batch, -1)
    count = alive.long().cumsum(1)
    # Rows are padded on the left.
    place = segment.index.shape[1] - count[:, -1:] + count - 1
    if sight is None:
        return place.masked_fill(count == 0, none)
    before = sight.last_before(alive)
    return place.gather(1, before.clamp_min(0)).masked_fill(before < 0, none)


def of_last_survivors(hidden: Tensor, place: Tensor, count: int) -> Tensor:
    """Return the states at ``place``, ``[B, S, d]``.

    Args:
        hidden: ``[B, m, d]``, or the last of them only, of a model that computes no others: then
            those of as many last slots are returned.
        place: ``[B, S]`` int64; below 0: nowhere, which gives zeros.
        count: m.
    """
    if short := count - hidden.shape[1]:
        # A survivor for each of n last slots is among the last n states.
        place = place[:, -hidden.shape[1] :] - short
    # The last layer may be on another device than where slots are counted.
    place = brought(place, hidden.device)
    states = hidden.gather(1, place.clamp_min(0)[..., None].expand(-1, -1, hidden.shape[-1]))
    return states.masked_fill((place < 0)[..., None], 0)
