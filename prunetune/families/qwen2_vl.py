"""Qwen2-VL: every image at its own size, 2 x 2 patches a token, full attention in the tower."""

from typing import ClassVar

from prunetune.families.bases.qwen import QwenVL


class Qwen2VL(QwenVL):
    """``Qwen2VLForConditionalGeneration``."""

    model_type: ClassVar[str] = "qwen2_vl"
