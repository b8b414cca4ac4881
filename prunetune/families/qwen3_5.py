"""Qwen3.5: Qwen3-VL's tower, before layers most of which carry a state along the sequence."""

from typing import ClassVar

from prunetune.families.bases.qwen import Qwen3Tower


class Qwen35(Qwen3Tower):
    """``Qwen3_5ForConditionalGeneration``: full attention in every 4th layer only.

    Its layer 0 carries a state, so tokens can be dropped before the language model only.
    """

    model_type: ClassVar[str] = "qwen3_5"
