"""LLaVA-NeXT-Video: LLaVA-NeXT's images, and videos whose frames are pooled."""

from typing import ClassVar

from torch import Tensor

from prunetune.families.base import VisionCall, refuse
from prunetune.families.base_configs import grid_side
from prunetune.families.bases.anyres import AnyResolution, pooling_matrix


class LlavaNextVideo(AnyResolution):
    """``LlavaNextVideoForConditionalGeneration``.

    A video is one item: its frames' pooled grids one after another, without newlines.
    """

    model_type: ClassVar[str] = "llava_next_video"
    video_encoder_method: ClassVar[str | None] = "get_video_features"

    def check(self) -> None:
        """Refuse pooling that leaves patches over."""
        rows, cols = grid_side(self.config)
        stride = int(self.config.spatial_pool_stride)
        if rows % stride or cols % stride:
            raise refuse(
                self.model,
                f"spatial_pool_stride {stride} does not divide its grid of {rows} x {cols} patches",
            )

    def video_grid(self) -> tuple[int, int]:
        """Blocks of ``spatial_pool_stride`` squared patches."""
        rows, cols = grid_side(self.config)
        stride = int(self.config.spatial_pool_stride)
        return rows // stride, cols // stride

    def projected(self, call: VisionCall, rows: int) -> float:
        """A frame is pooled before it is projected."""
        if call.modality == "image":
            return super().projected(call, rows)
        pooled, cols = self.video_grid()
        return float(pooled * cols)

    def pooling(self, call: VisionCall) -> Tensor | None:
        """Attention is averaged over a block, whatever ``spatial_pool_mode`` does to features."""
        if call.modality == "image":
            return None
        return pooling_matrix(*grid_side(self.config), "average", self.video_grid())
