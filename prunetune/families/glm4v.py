"""GLM-4.1V: see ``bases.glm``."""

from typing import ClassVar

from prunetune.families.bases.glm import Glm


class Glm4v(Glm):
    """``Glm4vForConditionalGeneration``."""

    model_type: ClassVar[str] = "glm4v"
