"""Qwen3-VL: as Qwen2-VL, with features of earlier tower blocks added behind the first layers."""

from typing import ClassVar

from prunetune.families.bases.deepstack import DeepStack


class Qwen3VL(DeepStack):
    """``Qwen3VLForConditionalGeneration``."""

    model_type: ClassVar[str] = "qwen3_vl"
