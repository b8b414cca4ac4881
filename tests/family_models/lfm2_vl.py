"""LFM2-VL: padded patches of pictures of any size; convolutions carry a state."""

from typing import Any

import torch
from transformers import Lfm2VlConfig, Lfm2VlForConditionalGeneration

from family_models._base import IMAGE, Piece, TinyFamily, text_settings, widen

PATCH, MERGE, MOST = 4, 2, 64
UNIT = PATCH * MERGE


class Lfm2Vl(TinyFamily):
    """Sizes are in pixels; a visual token is ``UNIT`` x ``UNIT`` of them."""

    model_type = "lfm2_vl"
    hybrid = True
    kinds = ("conv", "conv", "full_attention") * 2
    lookup = "a state cannot be cropped, and none is recorded"
    rows = (
        (3, (24, 32), 4), (1, (32, 24), 2, (16, 40), (24, 24), 3), ((16, 24), 5, (24, 32), 6),
    )  # fmt: skip
    image = (24, 32)
    other = (40, 24)
    visual_inputs = ("pixel_values", "spatial_shapes", "pixel_attention_mask")

    def build(self, attention: str, **text: Any) -> Any:
        decoder = {
            "model_type": "lfm2", "layer_types": list(self.kinds), "conv_L_cache": 3,
            "block_auto_adjust_ff_dim": False, "norm_eps": 1e-2,
        }  # fmt: skip
        vision = {
            "model_type": "siglip2_vision_model", "hidden_size": 32, "intermediate_size": 48,
            "num_hidden_layers": 3, "num_attention_heads": 4, "num_patches": 16,
            "patch_size": PATCH, "vision_use_head": False,
        }  # fmt: skip
        config = Lfm2VlConfig(
            text_config=text_settings(**decoder | text), vision_config=vision,
            image_token_id=IMAGE, downsample_factor=MERGE, projector_hidden_size=48,
        )  # fmt: skip
        model = Lfm2VlForConditionalGeneration(config)
        widen(model, "model.multi_modal_projector")
        widen(model, "model.vision_tower")
        return model

    def piece(self, model: Any, item: tuple[int, ...], seed: int) -> Piece:
        random = torch.Generator().manual_seed(seed)
        rows, cols = item[0] // PATCH, item[1] // PATCH
        patches = torch.randn(rows * cols, 3 * PATCH**2, generator=random)
        count = len(patches) // MERGE**2
        mask = torch.zeros(1, MOST, dtype=torch.int32)
        mask[:, : len(patches)] = 1
        inputs = {
            "pixel_values": torch.nn.functional.pad(patches, (0, 0, 0, MOST - len(patches)))[None],
            "spatial_shapes": torch.tensor([[rows, cols]]), "pixel_attention_mask": mask,
        }  # fmt: skip
        return Piece([101, *[IMAGE] * count, 102], count, inputs)


FAMILY: TinyFamily = Lfm2Vl()
