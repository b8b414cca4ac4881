"""GLM-4.1V: merged patches of pictures of any size, rotary triples."""

from typing import Any

from transformers import Glm4vConfig, Glm4vForConditionalGeneration

from family_models._glm import Glm


class Glm4v(Glm):
    model_type = "glm4v"

    def build(self, attention: str, **text: Any) -> Any:
        return self.made(Glm4vForConditionalGeneration, Glm4vConfig, **text)


FAMILY = Glm4v()
