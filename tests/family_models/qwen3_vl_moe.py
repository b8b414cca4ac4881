"""Qwen3-VL with experts."""

from typing import Any, ClassVar

from transformers import Qwen3VLMoeConfig, Qwen3VLMoeForConditionalGeneration

from family_models._base import widen
from family_models._qwen import QwenFrames


class Qwen3VLMoe(QwenFrames):
    model_type = "qwen3_vl_moe"
    mrope: ClassVar[list[int]] = [3, 3, 2]

    def build(self, attention: str, **text: Any) -> Any:
        vision = self.vision(
            depth=4, hidden_size=32, out_hidden_size=64, intermediate_size=48,
            num_position_embeddings=16, deepstack_visual_indexes=[0, 1, 2],
        )  # fmt: skip
        experts = {
            "head_dim": 16, "num_experts": 4, "num_experts_per_tok": 2,
            "moe_intermediate_size": 32, "mlp_only_layers": [1],
        }  # fmt: skip
        model = Qwen3VLMoeForConditionalGeneration(
            Qwen3VLMoeConfig(vision_config=vision, **self.settings(**experts | text))
        )
        widen(model, "model.visual.merger")
        widen(model, "model.visual.deepstack_merger_list", 0.1)
        return model


FAMILY = Qwen3VLMoe()
