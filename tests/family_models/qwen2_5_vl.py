"""Qwen2.5-VL: a tower that sorts patches by window, and time in a video's positions."""

from typing import Any

import torch
from torch import Tensor
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from family_models._base import widen
from family_models._qwen import CELL, QwenVL


class Qwen25VL(QwenVL):
    model_type = "qwen2_5_vl"

    def build(self, attention: str, **text: Any) -> Any:
        # Windows of 2 x 2 tokens: most images have several, some of them cut off.
        vision = self.vision(
            hidden_size=32, out_hidden_size=64, intermediate_size=48, window_size=2 * CELL,
            fullatt_block_indexes=[0, 2], tokens_per_second=1,
        )  # fmt: skip
        model = Qwen2_5_VLForConditionalGeneration(
            Qwen2_5_VLConfig(vision_config=vision, **self.settings(**text))
        )
        widen(model, "model.visual.merger")
        return model

    def timing(self) -> dict[str, Tensor]:
        return {"second_per_grid_ts": torch.tensor([2.0])}


FAMILY = Qwen25VL()
