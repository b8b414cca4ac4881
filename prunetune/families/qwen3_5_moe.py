"""Qwen3.5 with experts: what is pruned is the same."""

from typing import ClassVar

from prunetune.families.bases.qwen import Qwen3Tower


class Qwen35Moe(Qwen3Tower):
    """``Qwen3_5MoeForConditionalGeneration``."""

    model_type: ClassVar[str] = "qwen3_5_moe"
