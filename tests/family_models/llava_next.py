"""LLaVA-NeXT: a thumbnail and any-resolution tiles, with newlines."""

from typing import Any

import torch
from torch import Tensor
from transformers import LlavaNextConfig, LlavaNextForConditionalGeneration

from family_models._base import IMAGE, Piece, TinyFamily, clip_config, llama_config, widen

SIDE = 16
PINPOINTS = [[16, 32], [32, 16], [32, 32], [16, 48]]


class LlavaNext(TinyFamily):
    model_type = "llava_next"
    rows = ((3, (20, 32), 4), (1, (20, 60), (30, 34), 3), ((33, 12), 5, (32, 20), 2))
    image = (20, 60)
    other = (33, 12)

    def build(self, attention: str, **text: Any) -> Any:
        config = LlavaNextConfig(
            vision_config=clip_config(SIDE), text_config=llama_config(**text),
            image_token_id=IMAGE, image_grid_pinpoints=PINPOINTS,
        )  # fmt: skip
        model = LlavaNextForConditionalGeneration(config)
        widen(model, "model.multi_modal_projector")
        return model

    def piece(self, model: Any, item: tuple[int, ...], seed: int) -> Piece:
        from transformers.models.llava_next import modeling_llava_next as code

        random = torch.Generator().manual_seed(seed)
        tiles = code.image_size_to_num_patches(item, PINPOINTS, SIDE)
        packed, _ = model.model.pack_image_features(
            [torch.zeros(tiles, (SIDE // 4) ** 2, 1)], [item], "default", torch.zeros(1)
        )
        count = len(packed[0])
        pixels = torch.randn(1, tiles, 3, SIDE, SIDE, generator=random)
        inputs = {"pixel_values": pixels, "image_sizes": torch.tensor([item])}
        return Piece([IMAGE] * count, count, inputs)

    def collate(self, pieces: list[Piece]) -> dict[str, Tensor]:
        return collate_tiles(pieces)


def collate_tiles(pieces: list[Piece]) -> dict[str, Tensor]:
    """Join images of unequal numbers of tiles, padded as the processor pads them."""
    if not pieces:
        return {}
    pixels = [piece.inputs["pixel_values"] for piece in pieces]
    most = max(p.shape[1] for p in pixels)
    padded = [torch.nn.functional.pad(p, (0,) * 7 + (most - p.shape[1],)) for p in pixels]
    sizes = torch.cat([piece.inputs["image_sizes"] for piece in pieces])
    return {"pixel_values": torch.cat(padded), "image_sizes": sizes}


FAMILY = LlavaNext()
