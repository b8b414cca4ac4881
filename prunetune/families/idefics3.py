"""Idefics 3: see ``bases.idefics``."""

from typing import ClassVar

from prunetune.families.bases.idefics import IdeficsLike


class Idefics3(IdeficsLike):
    """``Idefics3ForConditionalGeneration``."""

    model_type: ClassVar[str] = "idefics3"
