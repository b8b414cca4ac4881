"""Qwen3-VL with experts: what is pruned is the same."""

from typing import ClassVar

from prunetune.families.bases.deepstack import DeepStack


class Qwen3VLMoe(DeepStack):
    """``Qwen3VLMoeForConditionalGeneration``."""

    model_type: ClassVar[str] = "qwen3_vl_moe"
