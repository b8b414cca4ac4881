"""LLaVA-NeXT-Video: LLaVA-NeXT's images, and videos of pooled frames."""

from typing import Any

import torch
from torch import Tensor
from transformers import LlavaNextVideoConfig, LlavaNextVideoForConditionalGeneration

from family_models._base import IMAGE, VIDEO, Piece, TinyFamily, clip_config, llama_config, widen
from family_models._videos import tiled_image, video
from family_models.llava_next import PINPOINTS, collate_tiles

SIDE = 16


class LlavaNextVideo(TinyFamily):
    model_type = "llava_next_video"
    rows = (
        (3, (20, 32), 4, (2, SIDE, SIDE), 2),
        (1, (20, 60), (30, 34), 3),
        ((2, SIDE, SIDE), 2, (2, SIDE, SIDE), 2, (33, 12), 1),
    )
    image = (20, 60)
    other = (33, 12)
    videos = ((3, SIDE, SIDE),)
    visual_inputs = ("pixel_values", "image_sizes", "pixel_values_videos")

    def build(self, attention: str, **text: Any) -> Any:
        config = LlavaNextVideoConfig(
            vision_config=clip_config(SIDE), text_config=llama_config(**text),
            image_token_index=IMAGE, video_token_index=VIDEO, image_grid_pinpoints=PINPOINTS,
        )  # fmt: skip
        model = LlavaNextVideoForConditionalGeneration(config)
        widen(model, "model.multi_modal_projector")
        return model

    def piece(self, model: Any, item: tuple[int, ...], seed: int) -> Piece:
        if len(item) == 3:
            return video(item[0], SIDE, item[0] * (SIDE // 8) ** 2, seed)
        return tiled_image(model, item, seed, vision_feature_select_strategy="default")

    def collate(self, pieces: list[Piece]) -> dict[str, Tensor]:
        return collate_both(pieces)


def collate_both(pieces: list[Piece]) -> dict[str, Tensor]:
    """Join any-resolution images and videos, each kind by itself."""
    videos = [p.inputs["pixel_values_videos"] for p in pieces if "pixel_values_videos" in p.inputs]
    joined = collate_tiles([p for p in pieces if "pixel_values" in p.inputs])
    return joined | ({"pixel_values_videos": torch.cat(videos)} if videos else {})


FAMILY = LlavaNextVideo()
