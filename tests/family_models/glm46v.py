"""GLM-4.6V: merged patches of pictures of any size, rotary triples."""

from typing import Any

from transformers import Glm46VConfig, Glm46VForConditionalGeneration

from family_models._glm import Glm


class Glm46V(Glm):
    model_type = "glm46v"

    def build(self, attention: str, **text: Any) -> Any:
        return self.made(Glm46VForConditionalGeneration, Glm46VConfig, **text)


FAMILY = Glm46V()
