"""Which encoder call belongs to which forward: one thread's captures of images and videos."""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from prunetune.errors import UnsupportedModelError
from prunetune.families import Family
from prunetune.runtime.vision.tower import VisionCapture

CAPTURE = "_prunetune_capture"
PIXELS = {
    "image": ("pixel_values", "pixel_values_images"),
    "video": ("pixel_values_videos",),
}
"""Names under which forwards take what their encoders see."""

SAMPLED = 64
"""Numbers of an image's features that tell whether others are the same."""


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

    Args:
        features: What stands in the sequence, of what an encoder returned; see
            ``Family.features``.

    Attributes:
        step: The forward under way, where it is one of a loop that encodes anew at every step.
    """

    def __init__(self, features: Callable[[Any], Any]) -> None:
        self._features = features
        self.step: Step | None = None
        self._last: dict[str, tuple[VisionCapture, list[bytes]]] = {}
        self._lengths: dict[str, list[int]] = {}
        self._first: dict[str, tuple[VisionCapture, Step | None]] = {}

    def note(self, modality: str, capture: VisionCapture, output: Any) -> None:
        """Remember the capture of an encoder call, on its output and as the thread's last."""
        features = self._features(output)
        if not isinstance(output, tuple):
            setattr(output, CAPTURE, capture)
        # As they stand in the sequence: a tower may give features of each view in two dimensions.
        flat = [part.flatten(0, -2) for part in features]
        self._last[modality] = capture, _samples(flat)
        self._lengths[modality] = [len(part) for part in flat]

    def of(self, modality: str, encoded: Any) -> VisionCapture | None:
        """Return the capture of features that were encoded before the forward, or None.

        Args:
            modality: ``image`` or ``video``.
            encoded: The features, as the encoder returned them, moved to another device or rebuilt
                (as accelerate's hooks do).
        """
        capture: VisionCapture | None = getattr(encoded, CAPTURE, None)
        return capture or self._moved(modality, encoded)

    def merged(self, modality: str, embeds: Tensor, mask: Tensor) -> VisionCapture | None:
        """Return the thread's last capture if its features stand in embeddings, in their order.

        Args:
            modality: ``image`` or ``video``.
            embeds: ``[B, S, d]``, features merged by the caller.
            mask: ``[B, S]`` bool, where they stand.
        """
        capture, own = self._last.get(modality, (None, []))
        if capture is None or int(mask.sum()) != sum(self._lengths.get(modality, [])):
            return None
        parts = torch.split(embeds[mask], self._lengths[modality])
        return capture if _samples(parts) == own else None

    def _moved(self, modality: str, encoded: Any) -> VisionCapture | None:
        """Return the thread's last capture if ``encoded`` are its features."""
        capture, own = self._last.get(modality, (None, []))
        if not own:
            return None
        given = _samples([part.flatten(0, -2) for part in self._features(encoded)])
        # Beams repeat each sample's features.
        times = len(given) // len(own)
        same = sorted(given) == sorted(own * times)
        return capture if same and list(dict.fromkeys(given)) == list(dict.fromkeys(own)) else None

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


def _samples(features: Any) -> list[bytes]:
    """Return some numbers of each image's features, and their shape; no device changes them."""
    flat = [part.detach().flatten() for part in features]
    some = [part[:: max(1, len(part) // SAMPLED)] for part in flat]
    if not some:
        return []
    # Together: one transfer, however many images there are.
    numbers = torch.split(torch.cat(some).float().cpu(), [len(part) for part in some])
    return [
        f"{tuple(part.shape)}".encode() + number.numpy().tobytes()
        for part, number in zip(features, numbers, strict=True)
    ]


def given_to(family: Family, bound: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the features and the pixels that a forward was passed, by modality.

    Args:
        family: The model's family.
        bound: The forward's arguments by name.
    """
    outputs = bound.get("mm_encoder_outputs")
    # Idefics 3 also takes a tensor, of which nothing is known.
    outputs = outputs if isinstance(outputs, dict) else {}
    films = outputs.get("video"), *(bound.get(name) for name in PIXELS["video"])
    if "video" not in family.encoders and any(film is not None for film in films):
        raise UnsupportedModelError(
            f"videos: received one, allowed none for {family.config.model_type}: its family prunes "
            "pictures only; pass frames as pictures, or remove the config for prompts with videos"
        )
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
    token = torch.tensor(placeholder, dtype=torch.long, device=embeds.device)
    same: Tensor = embeds.eq(family.text_model.get_input_embeddings()(token)).all(-1)
    return same
