"""GLM-4.6V: see ``bases.glm``."""

from typing import ClassVar

from prunetune.families.bases.glm import Glm


class Glm46V(Glm):
    """``Glm46VForConditionalGeneration``."""

    model_type: ClassVar[str] = "glm46v"
