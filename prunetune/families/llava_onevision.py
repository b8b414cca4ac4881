"""LLaVA-OneVision: any-resolution images shrunk to a limit, several images, videos."""

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from prunetune.families.base import VisionCall
from prunetune.families.base_configs import grid_side
from prunetune.families.bases.anyres import AnyResolution, marker, pooling_matrix, video_pixels
from prunetune.tokens import ImageGeometry, with_separators

UNLIMITED = "anyres_max_1000000"


class LlavaOnevision(AnyResolution):
    """``LlavaOnevisionForConditionalGeneration``.

    One image of a prompt is tiled, and interpolated where its tiles have more patches than
    ``vision_aspect_ratio`` allows; where ``batch_num_images`` says that a prompt has several, each
    is one view and a newline. A video is one item: its frames' grids, halved by interpolation, one
    after another and one newline.
    """

    model_type: ClassVar[str] = "llava_onevision"
    video_encoder_method: ClassVar[str | None] = "get_video_features"

    def pack(self, coordinates: Tensor, size: tuple[int, int], call: VisionCall | None) -> Tensor:
        """Tokens of a large image are interpolated, and so are their coordinates."""
        limit = UNLIMITED
        if call is not None:
            limit = call.arguments.get("vision_aspect_ratio") or self.config.vision_aspect_ratio
        base: Any = self.base
        packed, _ = base.pack_image_features(
            [coordinates],
            torch.tensor([size], device="cpu"),
            image_newline=marker(coordinates),
            vision_aspect_ratio=limit,
        )
        tokens: Tensor = packed[0]
        return tokens

    def lengths(self, arguments: Mapping[str, Any], features: Any, modality: str) -> list[int]:
        """The newline of a video counts, though before transformers 5.23 it came later."""
        lengths = super().lengths(arguments, features, modality)
        if modality == "image":
            return lengths
        rows, cols = self.video_grid()
        patches = video_pixels(arguments).shape[1] * rows * cols
        return [n + 1 if n == patches else n for n in lengths]

    def views(self, call: VisionCall) -> list[int]:
        """One view an image of a prompt that has several, if the processor told so."""
        views = super().views(call)
        images = call.arguments.get("batch_num_images")
        if call.modality == "video" or images is None:
            return views
        alone = [int(n) == 1 for n in images for _ in range(int(n))]
        return [n if tiled else 1 for n, tiled in zip(views, alone, strict=True)]

    def video_geometries(self, call: VisionCall) -> list[ImageGeometry]:
        """All frames' tokens and one newline."""
        result = []
        for frames in super().video_geometries(call):
            number = torch.arange(len(frames) + 1, device="cpu")
            source = number.clamp_max(len(frames) - 1)
            result.append(with_separators(frames, source, number == len(frames)))
        return result

    def video_grid(self) -> tuple[int, int]:
        """Half of the tower's grid, rounded up."""
        rows, cols = grid_side(self.config)
        return math.ceil(rows / 2), math.ceil(cols / 2)

    def pooling(self, call: VisionCall) -> Tensor | None:
        """Attention is interpolated as features are (VFlowOpt's release does so too)."""
        if call.modality == "image":
            return None
        return pooling_matrix(*grid_side(self.config), "bilinear", self.video_grid())
