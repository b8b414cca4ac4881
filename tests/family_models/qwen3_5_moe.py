"""Qwen3.5 with experts: layers that carry a state, two that attend."""

from typing import Any

from transformers import Qwen3_5MoeConfig, Qwen3_5MoeForConditionalGeneration

from family_models._hybrid import Qwen35


class Qwen35Moe(Qwen35):
    model_type = "qwen3_5_moe"

    def build(self, attention: str, **text: Any) -> Any:
        text = {
            "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32,
            "shared_expert_intermediate_size": 24, **text,
        }  # fmt: skip
        return self.made(Qwen3_5MoeForConditionalGeneration, Qwen3_5MoeConfig, **text)


FAMILY = Qwen35Moe()
