"""Whole pictures, where the encoder took each of their views for an image."""

from collections.abc import Iterable

import torch
from torch import Tensor

from prunetune.families import Family
from prunetune.runtime.trace import ForwardTrace
from prunetune.runtime.vision.forward import Forward
from prunetune.runtime.vision.images import ImageTokens, assign_images, spread_images
from prunetune.runtime.vision.tower import ImageCapture, VisionCapture
from prunetune.tokens import Mosaic


def token_labels(embeddings: Tensor) -> Tensor:
    """Return ``[B, S]`` int64 that is equal where ``[B, S, d]`` embeddings are."""
    labels: Tensor = torch.unique(embeddings.flatten(0, 1), dim=0, return_inverse=True)[1]
    return labels.view(embeddings.shape[:2])


def find_images(
    family: Family, call: Forward, gone: Tensor | None
) -> tuple[list[list[ImageTokens]], ForwardTrace]:
    """Return the images of each batch row of a forward, and the trace that stages will fill.

    Args:
        family: Of the model.
        call: What the forward was given, with images.
        gone: ``[B, S]`` bool, slots that the caller hides; None: none.
    """
    mask = call.image_mask
    assert mask is not None
    slots = [row.nonzero().flatten() for row in mask]
    if family.joins_views and "image" in call.captures:
        join_views(family, call.captures["image"], slots, call.labels)
    rows = assign_images(mask, call.video_mask, call.captures)
    if gone is not None:
        for hidden, row in zip(gone, rows):
            for image in row:
                image.hide(~hidden)
    trace = ForwardTrace(
        slots,
        [[len(image.slots) for image in row] for row in rows],
        [[image.capture.geometry for image in row] for row in rows],
    )
    return rows, trace


def join_views(
    family: Family, capture: VisionCapture, slots: list[Tensor], labels: Tensor | None
) -> None:
    """Make ``capture.images`` whole pictures; a second call does nothing.

    Args:
        family: Of the model, with ``joins_views``.
        capture: Its images are views.
        slots: Per batch row the slots of its image tokens, ``[n]`` int64 ascending.
        labels: ``[B, S]`` int64, equal where tokens are equal.
    """
    if capture.joined:
        return
    assert labels is not None
    members = spread_images([len(s) for s in slots], [view.length for view in capture.images])
    pictures: list[ImageCapture] = []
    done = 0
    for row, own, tokens in zip(members, slots, labels, strict=True):
        # Beams repeat their sample's views.
        if not row or row[0] < done:
            continue
        views = iter([capture.images[v] for v in row])
        done = row[-1] + 1
        sketches = [capture.images[v].sketch for v in row]
        for mosaic in family.mosaics(own, tokens, [s for s in sketches if s is not None]):
            pictures.append(_picture(mosaic, [next(views) for _ in range(mosaic.views)]))
    capture.images = pictures
    capture.joined = True


def _picture(mosaic: Mosaic, views: list[ImageCapture]) -> ImageCapture:
    # Tile 0 is the thumbnail: what is kept by view is sorted likewise.
    by_tile = mosaic.by_tile(views)
    return ImageCapture(
        geometry=mosaic.geometry([view.geometry for view in views]),
        vision_attention=_joined(view.vision_attention for view in views),
        vision_map=_joined(view.vision_map for view in by_tile),
        patch_entropy=_joined(view.patch_entropy for view in by_tile),
        seed=by_tile[0].seed,
    )


def _joined(parts: Iterable[Tensor | None]) -> Tensor | None:
    given = [part for part in parts if part is not None]
    return torch.cat(given) if given else None
