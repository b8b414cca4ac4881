"""SmolVLM: as Idefics 3."""

from typing import Any

from transformers import SmolVLMConfig, SmolVLMForConditionalGeneration
from transformers.models.smolvlm.configuration_smolvlm import SmolVLMVisionConfig
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

from family_models._base import IMAGE, llama_config
from family_models.idefics3 import SIZES, Idefics3


class SmolVLM(Idefics3):
    model_type = "smolvlm"
    processor = SmolVLMImageProcessorPil(**SIZES)

    def config(self, vision: dict[str, Any], **text: Any) -> Any:
        return SmolVLMConfig(
            vision_config=SmolVLMVisionConfig(**vision), text_config=llama_config(**text),
            scale_factor=2, image_token_id=IMAGE, tie_word_embeddings=False,
        )  # fmt: skip

    def create(self, config: Any) -> Any:
        return SmolVLMForConditionalGeneration(config)


FAMILY = SmolVLM()
