"""Video-LLaVA: two CLIP towers, square images, videos of square frames with their CLS tokens."""

from typing import Any

import torch
import transformers
from packaging.version import Version
from torch import Tensor
from transformers import VideoLlavaConfig, VideoLlavaForConditionalGeneration

from family_models._base import IMAGE, VIDEO, Piece, TinyFamily, clip_config, llama_config, widen
from family_models._videos import video

SIDE = 16
# The input was renamed.
PIXELS = (
    "pixel_values"
    if Version(transformers.__version__) >= Version("5.23")
    else "pixel_values_images"
)


class VideoLlava(TinyFamily):
    model_type = "video_llava"
    rows = (
        (3, (SIDE, SIDE), 4, (2, SIDE, SIDE), 2),
        (1, (SIDE, SIDE), 2, (SIDE, SIDE), (SIDE, SIDE), 3),
        ((2, SIDE, SIDE), 2, (SIDE, SIDE), 1),
    )
    image = (SIDE, SIDE)
    other = (SIDE, SIDE)
    videos = ((2, SIDE, SIDE),)
    visual_inputs = (PIXELS, "pixel_values_videos")

    def build(self, attention: str, **text: Any) -> Any:
        config = VideoLlavaConfig(
            vision_config=clip_config(SIDE), text_config=llama_config(**text),
            image_token_index=IMAGE, video_token_index=VIDEO,
        )  # fmt: skip
        model = VideoLlavaForConditionalGeneration(config)
        widen(model, "model.multi_modal_projector")
        return model

    def piece(self, model: Any, item: tuple[int, ...], seed: int) -> Piece:
        count = (SIDE // 4) ** 2
        if len(item) == 3:
            return video(item[0], SIDE, item[0] * (count + 1), seed)
        random = torch.Generator().manual_seed(seed)
        pixels = torch.randn(1, 3, SIDE, SIDE, generator=random)
        return Piece([IMAGE] * count, count, {PIXELS: pixels})

    def join(self, name: str, one: Tensor, two: Tensor) -> Tensor:
        return torch.cat([one, two])


FAMILY = VideoLlava()
