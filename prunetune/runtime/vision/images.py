"""Which image stands where: distinct images (and videos) and their tokens in a batch's rows."""

from collections.abc import Mapping

import torch
from torch import Tensor

from prunetune.errors import UnsupportedModelError
from prunetune.runtime.trace import StageTrace
from prunetune.runtime.vision.tower import ImageCapture, VisionCapture


class ImageTokens:
    """One image in one batch row during one forward.

    Attributes:
        slots: ``[n]`` int64, its tokens' slots in the input sequence.
        capture: What is known of the image.
        alive: ``[m]`` int64 ascending, which of its tokens are alive.
        importance: ``[n]`` float32 of the last scored stage; 0 at separators.
        stage_scores: ``[patches]`` float32 of the last stage.
        question: ``[t, d]`` input embeddings of the question about it; None: nobody asks for it.
        asked: Slots of the input up to the last token of the question; 0: it is empty.
        mass: ``[n]`` float32, how many tokens each one that is alive stands for.
    """

    __slots__ = (
        "alive", "asked", "capture", "importance", "mass", "question", "slots", "stage_scores",
    )  # fmt: skip

    def __init__(self, slots: Tensor, capture: ImageCapture) -> None:
        self.slots = slots
        self.capture = capture
        self.alive = torch.arange(len(slots), device=slots.device)
        self.importance: Tensor | None = None
        self.stage_scores = torch.zeros(0, dtype=torch.float32, device=slots.device)
        self.mass = torch.ones(len(slots), dtype=torch.float32, device=slots.device)
        self.question = capture.question
        self.asked = 0

    def hide(self, valid: Tensor) -> None:
        """Take tokens that the caller hides for gone.

        Args:
            valid: ``[S]`` bool, over the slots of the image's row.
        """
        self.alive = valid[self.slots].nonzero().flatten()


def assign_images(
    mask: Tensor, video: Tensor | None, captures: Mapping[str, VisionCapture]
) -> list[list[ImageTokens]]:
    """Return the images and videos of each batch row, in order of their first slot.

    Args:
        mask: ``[B, S]`` bool, True at image and video tokens.
        video: ``[B, S]`` bool, True at video tokens; None: there are none.
        captures: Of the encoder calls that belong to the forward, by modality.

    Raises:
        UnsupportedModelError: The features are unknown or do not fit.
    """
    if video is None:
        return _assign(mask, captures.get("image"))
    rows = _assign(mask & video, captures.get("video"))
    images = mask & ~video
    if "image" in captures or bool(images.any()):
        for row, more in zip(rows, _assign(images, captures.get("image")), strict=True):
            row += more
            row.sort(key=lambda image: int(image.slots[0]))
    return rows


def _assign(mask: Tensor, capture: VisionCapture | None) -> list[list[ImageTokens]]:
    if capture is None:
        raise UnsupportedModelError(
            "the features of this forward's images or videos were computed before "
            "prunetune.apply of this config, or sliced by prefill_chunk_size; pass their "
            "pixels and leave prefill_chunk_size unset"
        )
    slots = [row.nonzero().flatten() for row in mask]
    members = spread_images([len(s) for s in slots], [i.length for i in capture.images])
    result = []
    for row_slots, row in zip(slots, members, strict=True):
        images = [capture.images[m] for m in row]
        parts = torch.split(row_slots, [image.length for image in images])
        result.append(
            [ImageTokens(part, image.to(mask.device)) for part, image in zip(parts, images)]
        )
    return result


def stage_trace(
    layer: int, before: list[int], after: list[int], rows: list[list[ImageTokens]]
) -> StageTrace:
    """Return what a stage at ``layer`` did, from the state it left the images in."""
    kept = [
        torch.cat([i.slots[i.alive] for i in row])
        if row
        else torch.zeros(0, dtype=torch.long, device="cpu")
        for row in rows
    ]
    return StageTrace(layer, before, after, kept, [[i.stage_scores for i in row] for row in rows])


def spread_images(rows: list[int], lengths: list[int]) -> list[list[int]]:
    """Assign distinct images to batch rows by their token counts.

    Beams repeat each sample: then every row of a sample gets the same images.

    Args:
        rows: Image tokens of each batch row.
        lengths: Tokens of each distinct image, in order.

    Raises:
        UnsupportedModelError: The counts do not fit.
    """
    total, distinct = sum(rows), sum(lengths)
    fits = distinct > 0 and total % distinct == 0 and len(rows) % (total // distinct or 1) == 0
    times = total // distinct if fits and total else 0
    result: list[list[int]] = []
    image = 0
    for b in range(0, len(rows), times or 1):
        members, missing = [], rows[b]
        while times and missing > 0 and image < len(lengths):
            members.append(image)
            missing -= lengths[image]
            image += 1
        if not times or missing or any(n != rows[b] for n in rows[b : b + times]):
            raise UnsupportedModelError(
                f"a forward with {total} image tokens got features of {distinct}: pass every image "
                "whole and once; prefill_chunk_size is not supported, leave it unset"
            )
        result.extend([members] * times)
    return result
