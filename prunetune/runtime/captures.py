"""Which encoder call belongs to which forward: one thread's captures of images and videos."""

import threading
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from prunetune.families import Family
from prunetune.runtime.vision import VisionCapture

CAPTURE = "_prunetune_capture"
PIXELS = {
    "image": ("pixel_values", "pixel_values_images"),
    "video": ("pixel_values_videos",),
}
"""Names under which forwards take what their encoders see."""


@dataclass(frozen=True)
class Step:
    """One forward of a decoding loop without a cache.

    Attributes:
        pixels: By modality, what the forward's encoders are given.
        length: Tokens of the forward.
    """

    pixels: dict[str, Any]
    length: int


class Captures(threading.local):
    """What this thread's encoder calls yielded, by modality (``image``, ``video``).

    Attributes:
        step: The forward under way, where it is one of a loop that encodes anew at every step.
    """

    def __init__(self) -> None:
        self.step: Step | None = None
        self._last: dict[str, VisionCapture] = {}
        self._first: dict[str, tuple[VisionCapture, Step | None]] = {}

    def note(self, modality: str, capture: VisionCapture, output: Any) -> None:
        """Remember the capture of an encoder call, on its output and as the thread's last."""
        if not isinstance(output, tuple):
            setattr(output, CAPTURE, capture)
        self._last[modality] = capture

    def of(self, modality: str, encoded: Any, *, spread: bool = False) -> VisionCapture | None:
        """Return the capture of features that were encoded before the forward, or None.

        Args:
            modality: ``image`` or ``video``.
            encoded: The features, as the encoder returned them.
            spread: Whether accelerate's hooks are on the model: they rebuild what they pass on.
        """
        capture: VisionCapture | None = getattr(encoded, CAPTURE, None)
        return capture or self._moved(modality, encoded, spread)

    def _moved(self, modality: str, encoded: Any, spread: bool) -> VisionCapture | None:
        """Return the thread's last capture if ``encoded`` can be its features, moved or rebuilt."""
        capture = self._last.get(modality)
        if capture is None:
            return None
        features = encoded.pooler_output
        elsewhere = features[0].device != capture.images[0].geometry.tile.device
        total = sum(part.shape[:-1].numel() for part in features)
        own = sum(image.length for image in capture.images)
        # Beams repeat each sample's features.
        return capture if (elsewhere or spread) and own and total % own == 0 else None

    def first_of(self, modality: str, capture: VisionCapture) -> VisionCapture:
        """Return the first step's capture where each step encodes the same images again.

        So does ``generate`` without a cache before transformers 5.18.
        """
        step = self.step
        first, last = self._first.get(modality, (capture, None))
        self._first[modality] = (capture, step)
        if step is None or last is None or step.length != last.length + 1:
            return capture
        here, before = (s.pixels.get(modality) for s in (step, last))
        if here is None or before is None or here.device != before.device:
            return capture
        # Sums: of the first one's views, pictures may have been made.
        if sum(i.length for i in capture.images) != sum(i.length for i in first.images):
            return capture
        if torch.equal(here, before):
            self._first[modality] = (first, step)
            return first
        return capture


def given_to(family: Family, bound: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the features and the pixels that a forward was passed, by modality.

    Args:
        family: The model's family.
        bound: The forward's arguments by name.
    """
    outputs = bound.get("mm_encoder_outputs")
    # Idefics 3 also takes a tensor, of which nothing is known.
    outputs = outputs if isinstance(outputs, dict) else {}
    encoded, pixels = {}, {}
    for modality in family.encoders:
        if outputs.get(modality) is not None:
            encoded[modality] = outputs[modality]
        for name in PIXELS[modality]:
            if bound.get(name) is not None and len(bound[name]):
                pixels[modality] = bound[name]
    return encoded, pixels


def placeholder_mask(family: Family, bound: dict[str, Any], modality: str) -> Tensor:
    """Return where the placeholders of a modality are in a forward, ``[B, S]`` bool."""
    placeholder, ids = family.placeholders[modality], bound.get("input_ids")
    if ids is not None:
        mask: Tensor = ids.eq(placeholder)
        return mask
    embeds: Tensor = bound["inputs_embeds"]
    token = torch.tensor(placeholder, device=embeds.device)
    same: Tensor = embeds.eq(family.text_model.get_input_embeddings()(token)).all(-1)
    return same
