"""LLaVA 1.5: one square view an image."""

from typing import Any

import torch
from transformers import LlavaConfig, LlavaForConditionalGeneration

from family_models._base import IMAGE, Piece, TinyFamily, clip_config, llama_config, widen

SIDE = 20


class Llava(TinyFamily):
    model_type = "llava"
    rows = ((3, (20, 20), 4), (1, (20, 20), 2, (20, 20), (20, 20), 3), ((20, 20), 5, (20, 20), 6))

    def build(self, attention: str, **text: Any) -> Any:
        config = LlavaConfig(
            vision_config=clip_config(SIDE), text_config=llama_config(**text), image_token_id=IMAGE
        )
        model = LlavaForConditionalGeneration(config)
        widen(model, "model.multi_modal_projector")
        return model

    def piece(self, model: Any, item: tuple[int, ...], seed: int) -> Piece:
        random, count = torch.Generator().manual_seed(seed), (SIDE // 4) ** 2
        pixels = torch.randn(1, 3, SIDE, SIDE, generator=random)
        return Piece([IMAGE] * count, count, {"pixel_values": pixels})


FAMILY = Llava()
