"""The layers between two stages: all of them see the same slots."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from prunetune.models.devices import brought


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
class Segment:
    """The layers from one stage to the next.

    Attributes:
        index: ``[B, m]`` int64, slots of this forward's input; None: all of them, in place.
        valid: ``[B, m]`` bool, False at padding.
        padded: Whether some of ``valid`` is False.
        move: What the stage does to the states entering it.
        past: Slots its layers had cached before this forward.
        prefix: ``[B, past]`` bool, which of those are real; None: all.
        inputs: By kind of layer, what its layers get instead of what the model prepared.
    """

    index: Tensor | None
    valid: Tensor
    padded: bool
    move: Move = field(default_factory=Move)
    past: int = 0
    prefix: Tensor | None = None
    inputs: dict[str, dict[str, Any]] = field(default_factory=dict)

    def scatter(self, hidden: Tensor, length: int) -> Tensor:
        """Put ``[B, m, d]`` states back to ``length`` input slots; 0 where dropped."""
        if self.index is None:
            return hidden
        batch, _, width = hidden.shape
        full = hidden.new_zeros(batch, length + 1, width)
        # The last layer may be on another device than where slots are counted.
        target = brought(self.index.masked_fill(~self.valid, length), hidden.device)
        return full.scatter(1, target[..., None].expand(-1, -1, width), hidden)[:, :-1]


def places(segment: Segment | None, hidden: Tensor, length: int) -> Tensor:
    """Return where each of ``length`` input slots stands in the states ``hidden``, ``[B, S]``."""
    batch, device = hidden.shape[0], hidden.device
    if segment is None or segment.index is None:
        return torch.arange(length, device=device).expand(batch, -1)
    place = torch.zeros(batch, length + 1, dtype=torch.long, device=device)
    # Padding points at the spare column, so it can't overwrite slot 0.
    target = segment.index.masked_fill(~segment.valid, length)
    here = torch.arange(target.shape[1], device=device).expand(batch, -1)
    return place.scatter_(1, target, here)[:, :-1]
