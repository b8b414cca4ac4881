"""Qwen3-VL: DeepStack behind the first three layers; a video's frames stand apart in the prompt."""

from typing import Any, ClassVar

from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

from family_models._base import widen
from family_models._qwen import QwenFrames


class Qwen3VL(QwenFrames):
    model_type = "qwen3_vl"
    mrope: ClassVar[list[int]] = [3, 3, 2]
    classes: ClassVar[tuple[Any, Any]] = (Qwen3VLConfig, Qwen3VLForConditionalGeneration)
    own: ClassVar[dict[str, Any]] = {"head_dim": 16}

    def build(self, attention: str, **text: Any) -> Any:
        vision = self.vision(
            depth=4, hidden_size=32, out_hidden_size=64, intermediate_size=48,
            num_position_embeddings=16, deepstack_visual_indexes=[0, 1, 2],
        )  # fmt: skip
        configured, built = self.classes
        model = built(configured(vision_config=vision, **self.settings(**self.own | text)))
        widen(model, "model.visual.merger")
        widen(model, "model.visual.deepstack_merger_list", 0.1)
        return model


FAMILY = Qwen3VL()
