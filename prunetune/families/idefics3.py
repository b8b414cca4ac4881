"""Idefics 3: see ``base_idefics``."""

from typing import ClassVar

from prunetune.families.base_idefics import IdeficsLike


class Idefics3(IdeficsLike):
    """``Idefics3ForConditionalGeneration``."""

    model_type: ClassVar[str] = "idefics3"
