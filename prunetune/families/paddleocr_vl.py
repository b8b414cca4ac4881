"""PaddleOCR-VL: a packed tower for pictures of any size, before Ernie's decoder."""

from typing import Any, ClassVar

from torch import nn

from prunetune.families.base_configs import CLIP_PIXELS
from prunetune.families.bases.raster import RasterPatches


class PaddleOCRVL(RasterPatches):
    """``PaddleOCRVLForConditionalGeneration``; positions are rotary triples, as Qwen-VL's."""

    model_type: ClassVar[str] = "paddleocr_vl"
    can_pack: ClassVar[bool] = False
    resizing = "enlarged"

    @property
    def merge(self) -> int:
        """Side of the blocks of patches that become one token."""
        return int(self.config.vision_config.spatial_merge_size)

    def pixel_statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """As CLIP's."""
        return CLIP_PIXELS

    @property
    def tower(self) -> Any:
        """The vision tower."""
        return self.base.visual

    def projectors(self) -> list[nn.Module]:
        """Return what turns the tower's rows into tokens."""
        base: Any = self.base
        return [base.projector]

    def vision_attention_module(self) -> nn.Module | None:
        """Attention of the last layer: its output, normed, are the features."""
        module: nn.Module = self.tower_layers()[-1].self_attn
        return module
