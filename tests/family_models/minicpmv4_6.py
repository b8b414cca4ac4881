"""MiniCPM-V 4.6: packed pictures of any size, merged within the tower; Qwen3.5's decoder."""

import inspect
from typing import Any

import torch
from torch import Tensor
from transformers import MiniCPMV4_6Config, MiniCPMV4_6ForConditionalGeneration
from transformers.models.minicpmv4_6.modeling_minicpmv4_6 import (
    MiniCPMV4_6ViTWindowAttentionMerger,
)

from family_models._base import IMAGE, VIDEO, Piece, TinyFamily, text_settings, widen

PATCH, MERGE = 4, 4
UNIT = PATCH * MERGE
# Older releases (5.17) take all pictures of a call to have the size of the first.
ALIKE = "seq_per_img" in inspect.getsource(MiniCPMV4_6ViTWindowAttentionMerger)


class MiniCPMV46(TinyFamily):
    """Sizes are in pixels; a visual token is ``UNIT`` x ``UNIT`` of them."""

    model_type = "minicpmv4_6"
    hybrid = True
    kinds = ("linear_attention", "linear_attention", "full_attention") * 2
    packed = False
    keeps_logits = False
    lookup = "transformers refuses candidates for models that carry a state"
    chunks = not ALIKE or "in parts this release drops the pictures"
    cached_beams = not ALIKE or "in this release beams differ with and without a cache"
    rows = (
        (3, (48, 64), 4), (1, (64, 48), 2, (32, 80), (48, 48), 3), ((32, 48), 5, (48, 64), 6),
    )  # fmt: skip
    image = (48, 64)
    other = image if ALIKE else (80, 48)
    visual_inputs = ("pixel_values", "target_sizes")

    def build(self, attention: str, **text: Any) -> Any:
        rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1],
                "partial_rotary_factor": 0.5}  # fmt: skip
        decoder = {
            "model_type": "qwen3_5_text", "head_dim": 16, "rms_norm_eps": 1e-2,
            "layer_types": list(self.kinds), "linear_num_key_heads": 2, "rope_parameters": rope,
            "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
            "linear_conv_kernel_dim": 4,
        }  # fmt: skip
        vision = {
            "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3,
            "num_attention_heads": 4, "image_size": 32, "patch_size": PATCH,
        }  # fmt: skip
        config = MiniCPMV4_6Config(
            text_config=text_settings(**decoder | text), vision_config=vision, insert_layer_id=0,
            image_token_id=IMAGE, video_token_id=VIDEO,
        )  # fmt: skip
        model = MiniCPMV4_6ForConditionalGeneration(config)
        widen(model, "model.vision_tower")
        widen(model, "model.merger", 0.1)
        return model

    def piece(self, model: Any, item: tuple[int, ...], seed: int) -> Piece:
        height, width = self.image if ALIKE else item
        rows, cols = height // PATCH, width // PATCH
        random = torch.Generator().manual_seed(seed)
        pixels = torch.randn(1, 3, PATCH, rows * cols * PATCH, generator=random)
        count = rows * cols // MERGE**2
        inputs = {"pixel_values": pixels, "target_sizes": torch.tensor([[rows, cols]])}
        return Piece([101, *[IMAGE] * count, 102], count, inputs)

    def collate(self, pieces: list[Piece]) -> dict[str, Tensor]:
        """Patches of all pictures are one sequence."""
        if not pieces:
            return {}
        return {
            "pixel_values": torch.cat([p.inputs["pixel_values"] for p in pieces], 3),
            "target_sizes": torch.cat([p.inputs["target_sizes"] for p in pieces]),
        }

    def join(self, name: str, one: Tensor, two: Tensor) -> Tensor:
        return torch.cat([one, two], 3 if name == "pixel_values" else 0)

    def positions(self, model: Any, numbered: Tensor) -> None:
        """The model's own."""


FAMILY = MiniCPMV46()
