"""LLaVA-OneVision: a SigLIP tower, images shrunk to a limit, videos of halved frames."""

from typing import Any

from torch import Tensor
from transformers import (
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    Qwen2Config,
    SiglipVisionConfig,
)

from family_models._base import IMAGE, VIDEO, Piece, TinyFamily, text_settings, widen
from family_models._videos import tiled_image, video
from family_models.llava_next import PINPOINTS
from family_models.llava_next_video import collate_both

SIDE, PATCH = 20, 4
LIMIT = "anyres_max_2"


class LlavaOnevision(TinyFamily):
    model_type = "llava_onevision"
    rows = (
        (3, (20, 32), 4, (2, SIDE, SIDE), 2),
        (1, (20, 60), (30, 34), 3),
        ((2, SIDE, SIDE), 2, (2, SIDE, SIDE), 2, (33, 12), 1),
    )
    image = (20, 60)
    other = (33, 12)
    videos = ((3, SIDE, SIDE),)
    visual_inputs = ("pixel_values", "image_sizes", "pixel_values_videos", "batch_num_images")

    def build(self, attention: str, **text: Any) -> Any:
        vision = SiglipVisionConfig(
            hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
            image_size=SIDE, patch_size=PATCH, vision_use_head=False,
        )  # fmt: skip
        config = LlavaOnevisionConfig(
            vision_config=vision, text_config=Qwen2Config(**text_settings(**text)),
            image_token_index=IMAGE, video_token_index=VIDEO, vision_aspect_ratio=LIMIT,
            image_grid_pinpoints=[[y * SIDE // 16, x * SIDE // 16] for y, x in PINPOINTS],
        )  # fmt: skip
        model = LlavaOnevisionForConditionalGeneration(config)
        widen(model, "model.multi_modal_projector")
        widen(model, "model.vision_tower")
        return model

    def piece(self, model: Any, item: tuple[int, ...], seed: int) -> Piece:
        if len(item) == 3:
            return video(item[0], SIDE, item[0] * 9 + 1, seed)
        return tiled_image(model, item, seed, vision_aspect_ratio=LIMIT)

    def collate(self, pieces: list[Piece]) -> dict[str, Tensor]:
        return collate_both(pieces)


FAMILY = LlavaOnevision()
