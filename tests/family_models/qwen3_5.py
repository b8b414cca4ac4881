"""Qwen3.5: layers that carry a state, two that attend."""

from typing import Any

from transformers import Qwen3_5Config, Qwen3_5ForConditionalGeneration

from family_models._hybrid import Qwen35


class Dense(Qwen35):
    model_type = "qwen3_5"

    def build(self, attention: str, **text: Any) -> Any:
        return self.made(Qwen3_5ForConditionalGeneration, Qwen3_5Config, **text)


FAMILY = Dense()
