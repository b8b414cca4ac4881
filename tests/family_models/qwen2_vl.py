"""Qwen2-VL: images of any size, 2 x 2 patches merged, multimodal rotary positions."""

from typing import Any

from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

from family_models._base import widen
from family_models._qwen import QwenVL


class Qwen2VL(QwenVL):
    model_type = "qwen2_vl"

    def build(self, attention: str, **text: Any) -> Any:
        vision = self.vision(embed_dim=32, hidden_size=64, mlp_ratio=2)
        model = Qwen2VLForConditionalGeneration(
            Qwen2VLConfig(vision_config=vision, **self.settings(**text))
        )
        widen(model, "model.visual.merger")
        return model


FAMILY = Qwen2VL()
