"""What the runtime and a family tell each other of one forward."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

Survivors = Callable[[], tuple[Tensor, Tensor] | None]
"""Tells which input slots the states under way are of: (index ``[B, m]`` int64, valid ``[B, m]``
bool, False at padding); None while all slots are in place."""

Tokens = Callable[[], Tensor | None]
"""Tells which token of the sequence each of the states under way is, ``[B, m]`` int64, -1 at
padding; None while they are all of a forward's, and so is what is cached."""


@dataclass(frozen=True)
class VisionCall:
    """One call of the model's image or video encoder.

    Attributes:
        arguments: The call's arguments by name, defaults filled in from the model's config.
        lengths: Tokens each image (or video) takes in the language model's sequence, in order.
        modality: ``image`` or ``video``.
    """

    arguments: Mapping[str, Any]
    lengths: list[int]
    modality: str = "image"


@dataclass(frozen=True)
class TappedAttention:
    """What the vision tower gave one of its attention modules in one encoder call.

    Attributes:
        module: The attention module.
        states: Hidden states entering it.
        arguments: Its other arguments by name.
    """

    module: Any
    states: Tensor
    arguments: Mapping[str, Any]
