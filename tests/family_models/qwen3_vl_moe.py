"""Qwen3-VL with experts."""

from typing import Any, ClassVar

from transformers import Qwen3VLMoeConfig, Qwen3VLMoeForConditionalGeneration

from family_models.qwen3_vl import Qwen3VL


class Qwen3VLMoe(Qwen3VL):
    model_type = "qwen3_vl_moe"
    classes: ClassVar[tuple[Any, Any]] = (Qwen3VLMoeConfig, Qwen3VLMoeForConditionalGeneration)
    own: ClassVar[dict[str, Any]] = {
        "head_dim": 16, "num_experts": 4, "num_experts_per_tok": 2,
        "moe_intermediate_size": 32, "mlp_only_layers": [1],
    }  # fmt: skip


FAMILY = Qwen3VLMoe()
