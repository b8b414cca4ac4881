"""LLaVA 1.5: one square view an image, row-major patches, CLS cut."""

from typing import ClassVar

import torch
from torch import Tensor, nn

from prunetune.families.base import Family, VisionCall, refuse
from prunetune.families.base_configs import grid_side
from prunetune.families.bases.clip import clip_has_cls, clip_like_attention
from prunetune.tokens import ImageGeometry, grid_geometry


class Llava(Family):
    """``LlavaForConditionalGeneration`` with a CLIP-like tower.

    With ``vision_feature_select_strategy="full"`` the tower's CLS token enters the language model
    too; it counts as a separator.
    """

    model_type: ClassVar[str] = "llava"
    one_view = True

    def check(self) -> None:
        """Refuse towers whose grid depends on the image (Pixtral)."""
        if str(getattr(self.config.vision_config, "model_type", "")) == "pixtral":
            raise refuse(self.model, "its Pixtral tower gives every image another grid")

    def geometries(self, call: VisionCall) -> list[ImageGeometry]:
        """One grid an image."""
        grid = grid_geometry(*grid_side(self.config))
        return [self._with_cls(grid, length) for length in call.lengths]

    def _with_cls(self, grid: ImageGeometry, length: int) -> ImageGeometry:
        if length == len(grid):
            return grid
        if length == len(grid) + 1:
            padded = grid.select(torch.arange(-1, len(grid), device="cpu").clamp_min(0))
            padded.separator[0] = True
            return padded
        raise refuse(
            self.model,
            f"an image takes {length} tokens where its tower's grid has {len(grid)} patches",
        )

    def views(self, call: VisionCall) -> list[int]:
        """One view an image."""
        return [1] * len(call.lengths)

    def pixels(self, call: VisionCall) -> list[Tensor]:
        """The one view."""
        return list(call.arguments["pixel_values"][:, None])

    def vision_attention_module(self) -> nn.Module | None:
        """Attention of the feature layer."""
        return clip_like_attention(self)

    def vision_has_cls(self) -> bool:
        """CLIP has a CLS token, SigLIP has none."""
        return clip_has_cls(self)
