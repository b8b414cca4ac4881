"""InternVL: tiles and a thumbnail side by side, 2 x 2 patches a token."""

from typing import Any

import torch
from transformers import (
    InternVLConfig,
    InternVLForConditionalGeneration,
    InternVLVisionConfig,
    Qwen2Config,
)
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil

from family_models._base import IMAGE, Piece, TinyFamily, text_settings, widen
from family_models._towers import picture

SIDE = 24
TOKENS = (SIDE // 8) ** 2
PROCESSOR = GotOcr2ImageProcessorPil(
    size={"height": SIDE, "width": SIDE}, crop_to_patches=True, max_patches=6
)


class InternVL(TinyFamily):
    model_type = "internvl"
    rows = ((3, (30, 60), 4), (1, (20, 22), (80, 26), 3), ((24, 24), 5, (50, 52), 2))
    image = (30, 60)
    other = (24, 24)
    views_apart = True

    def build(self, attention: str, **text: Any) -> Any:
        vision = InternVLVisionConfig(
            hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
            image_size=[SIDE, SIDE], patch_size=[4, 4], use_qk_norm=True, norm_type="rms_norm",
            layer_scale_init_value=1.0, initializer_range=0.2,
        )  # fmt: skip
        config = InternVLConfig(
            vision_config=vision, text_config=Qwen2Config(**text_settings(**text)),
            image_token_id=IMAGE,
        )  # fmt: skip
        model = InternVLForConditionalGeneration(config)
        widen(model, "model.multi_modal_projector")
        embeddings = model.model.vision_tower.embeddings
        for part in (embeddings.cls_token, embeddings.position_embeddings):
            torch.nn.init.normal_(part, std=0.5)
        for layer in model.model.vision_tower.encoder.layer:
            # Of equal weights a norm would not be missed.
            torch.nn.init.uniform_(layer.attention.q_norm.weight, 0.5, 3.0)
            torch.nn.init.uniform_(layer.attention.k_norm.weight, 0.5, 3.0)
        return model

    def piece(self, model: Any, item: tuple[int, ...], seed: int) -> Piece:
        done = PROCESSOR(picture(item, seed), return_tensors="pt")
        pixels = done["pixel_values"]
        count = TOKENS * len(pixels)
        return Piece([101, *[IMAGE] * count, 102], count, {"pixel_values": pixels})


FAMILY = InternVL()
