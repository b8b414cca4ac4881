"""Video-LLaVA: square images, and videos of square frames, each with a tower of its own."""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from prunetune.families.base import Family, VisionCall
from prunetune.families.base_configs import grid_side
from prunetune.families.bases.clip import clip_has_cls, clip_like_attention
from prunetune.tokens import ImageGeometry, frames_geometry, grid_geometry, with_separators


class VideoLlava(Family):
    """``VideoLlavaForConditionalGeneration``.

    A video is one item, frame by frame. Each frame's CLS token enters the language model too: it
    counts as a separator, as does an image's with ``vision_feature_select_strategy="full"``.
    """

    model_type: ClassVar[str] = "video_llava"
    video_encoder_method: ClassVar[str | None] = "get_video_features"
    has_separators: ClassVar[bool] = True

    def lengths(self, arguments: Mapping[str, Any], features: Any, modality: str) -> list[int]:
        """The encoder returns ``[images, tokens, d]``, and ``[videos * frames, tokens, d]``."""
        frames = _pixels(arguments, modality).shape[1] if modality == "video" else 1
        items, tokens = len(features) // frames, features.shape[1] * frames
        return [tokens] * items

    def geometries(self, call: VisionCall) -> list[ImageGeometry]:
        """One grid an image or frame, behind its CLS token where that is kept."""
        rows, cols = grid_side(self.config)
        result = []
        for length, frames in zip(call.lengths, self.views(call), strict=True):
            patches = frames_geometry(frames, rows, cols)
            if call.modality == "image":
                patches = grid_geometry(rows, cols)
            if length != len(patches):
                number = torch.arange(frames * (rows * cols + 1), device="cpu")
                frame, inside = number // (rows * cols + 1), number % (rows * cols + 1)
                source = frame * rows * cols + (inside - 1).clamp_min(0)
                patches = with_separators(patches, source, inside == 0)
            result.append(patches)
        return result

    def views(self, call: VisionCall) -> list[int]:
        """One an image, one a frame."""
        pixels = _pixels(call.arguments, call.modality)
        return [pixels.shape[1] if call.modality == "video" else 1] * len(call.lengths)

    def pixels(self, call: VisionCall) -> list[Tensor]:
        """The image, or the frames."""
        pixels = _pixels(call.arguments, call.modality)
        return list(pixels if call.modality == "video" else pixels[:, None])

    @property
    def tower(self) -> Any:
        """The image tower; that of the frames is alike."""
        return self.base.image_tower

    def projected(self, call: VisionCall, rows: int) -> float:
        """A frame's CLS token is projected too."""
        return rows if call.modality == "video" else super().projected(call, rows)

    def vision_attention_module(self) -> nn.Module | None:
        """Attention of the image tower's feature layer."""
        return clip_like_attention(self, "image_tower")

    def vision_attention_modules(self) -> list[nn.Module]:
        """That of the image tower and of the video tower."""
        modules = [clip_like_attention(self, tower) for tower in ("image_tower", "video_tower")]
        return [module for module in modules if module is not None]

    def vision_has_cls(self) -> bool:
        """Both towers are CLIP's."""
        return clip_has_cls(self)


def _pixels(arguments: Mapping[str, Any], modality: str) -> Tensor:
    """Return ``[images, 3, height, width]`` or ``[videos, frames, 3, height, width]``."""
    # Before transformers 5.23 images went by the second name.
    names = {
        "image": ("pixel_values", "pixel_values_images"),
        "video": ("pixel_values_videos",),
    }[modality]
    values: Tensor = next(arguments[n] for n in names if arguments.get(n) is not None)
    return values
