"""Small towers and pictures that several families share."""

from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import SiglipVisionConfig

from family_models._base import IMAGE, Piece, TinyFamily


def siglip_config(side: int, **changes: Any) -> SiglipVisionConfig:
    """Return a small SigLIP tower of three layers for views of ``side`` x ``side`` pixels."""
    settings = {
        "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3,
        "num_attention_heads": 4, "image_size": side, "patch_size": 4, "vision_use_head": False,
    }  # fmt: skip
    return SiglipVisionConfig(**settings | changes)


def picture(size: tuple[int, ...], seed: int) -> Image.Image:
    """Return a picture of that height and width: coarse noise, so that resizing leaves some."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((size[1], size[0]), Image.Resampling.BILINEAR)


def plain_views(side: int, count: int, before: list[int], after: list[int], seed: int) -> Piece:
    """Return an image of one view, between markers."""
    random = torch.Generator().manual_seed(seed)
    pixels = torch.randn(1, 3, side, side, generator=random)
    return Piece([*before, *[IMAGE] * count, *after], count, {"pixel_values": pixels})


def image_blocks(ids: Tensor) -> Tensor:
    """Return which two tokens are of one run of image tokens, ``[B, S, S]`` bool."""
    image = ids == IMAGE
    run = (image & ~torch.nn.functional.pad(image, (1, 0))[:, :-1]).cumsum(1)
    return (run[:, None] == run[:, :, None]) & image[:, None] & image[:, :, None]


class GemmaLike(TinyFamily):
    """What Gemma's decoders have in common."""

    def second_norm(self, layer: Any) -> Any:
        return getattr(layer, "pre_feedforward_layernorm", None) or layer.post_attention_layernorm
