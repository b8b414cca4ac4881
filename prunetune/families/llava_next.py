"""LLaVA-NeXT: any-resolution images, a newline after each row of the tiles."""

from typing import Any, ClassVar

import torch
from torch import Tensor

from prunetune.families.base import VisionCall
from prunetune.families.base_anyres import AnyResolution, marker


class LlavaNext(AnyResolution):
    """``LlavaNextForConditionalGeneration``."""

    model_type: ClassVar[str] = "llava_next"

    def pack(self, coordinates: Tensor, size: tuple[int, int], call: VisionCall | None) -> Tensor:
        """Every token is one patch or a newline."""
        base: Any = self.base
        packed, _ = base.pack_image_features(
            [coordinates],
            torch.tensor([size]),
            vision_feature_select_strategy="full",
            image_newline=marker(coordinates),
        )
        tokens: Tensor = packed[0]
        return tokens
