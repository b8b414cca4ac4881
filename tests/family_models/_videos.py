"""What families with videos share: frames of the tower's size, and inputs of both kinds."""

from typing import Any

import torch

from family_models._base import VIDEO, Piece


def video(frames: int, side: int, count: int, seed: int) -> Piece:
    """Return a video of square frames that takes ``count`` tokens."""
    random = torch.Generator().manual_seed(seed)
    pixels = torch.randn(1, frames, 3, side, side, generator=random)
    return Piece([VIDEO] * count, count, {"pixel_values_videos": pixels})


def tiled_image(model: Any, size: tuple[int, int], seed: int, **packing: Any) -> Piece:
    """Return an any-resolution image, as many tokens as the model's own packing makes of it."""
    from transformers.models.llava_next.modeling_llava_next import image_size_to_num_patches

    from family_models._base import IMAGE

    config = model.config
    side = config.vision_config.image_size
    patches = (side // config.vision_config.patch_size) ** 2
    tiles = image_size_to_num_patches(size, config.image_grid_pinpoints, side)
    packed, _ = model.model.pack_image_features(
        [torch.zeros(tiles, patches, 1)], [size], image_newline=torch.zeros(1), **packing
    )
    count, random = len(packed[0]), torch.Generator().manual_seed(seed)
    pixels = torch.randn(1, tiles, 3, side, side, generator=random)
    inputs = {"pixel_values": pixels, "image_sizes": torch.tensor([size])}
    return Piece([IMAGE] * count, count, inputs)
