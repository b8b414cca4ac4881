"""What one forward of a base model was given, as far as pruning asks."""

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from prunetune.models.devices import brought
from prunetune.runtime.vision.tower import VisionCapture


@dataclass
class Forward:
    """One forward's inputs.

    Attributes:
        image_mask: ``[B, S]`` bool, True at the tokens of images and videos; None when the forward
            has neither.
        video_mask: ``[B, S]`` bool, True at those of videos; None when it has no videos.
        mask: What the caller passed for layer 0: None, 2-D or 4-D.
        ids: ``[B, S]`` int64, where passed.
        embeds: ``[B, S, d]`` input embeddings, where passed.
        labels: ``[B, S]`` int64, equal where tokens are equal; None where nobody asks.
        captures: Of the encoder calls that belong to this forward, by modality.
        cache: The cache that the base model was given, or None.
        past: Tokens seen over it before this forward, dropped ones included. Read before any layer
            runs: by the first stage's layer, the layers below have grown already.
        query: ``[B]`` int64, the slot whose attention row scorers get; None: the last real one.
        tail: Tokens after the prompt's last one, that a caller wants checked (assisted decoding).
        positions: ``[B or 1, S]`` or ``[rows, B, S]`` int64, of the text model; None: its own.
        chosen_positions: Whether the model's caller chose them.
        memoise: Whether captures live on and may keep scores (a search's trials).
    """

    image_mask: Tensor | None = None
    video_mask: Tensor | None = None
    mask: Any = None
    ids: Tensor | None = None
    embeds: Tensor | None = None
    labels: Tensor | None = None
    captures: dict[str, VisionCapture] = field(default_factory=dict)
    cache: Any = None
    past: int = 0
    query: Tensor | None = None
    tail: int = 0
    positions: Tensor | None = None
    chosen_positions: bool = False
    memoise: bool = False

    def bring(self, device: Any) -> None:
        """Bring all that is compared with slots to a device."""
        for name in ("image_mask", "video_mask", "labels", "mask"):
            setattr(self, name, brought(getattr(self, name), device))
