"""PaddleOCR-VL: packed pictures of any size, rotary triples."""

from typing import Any

import torch
from transformers import PaddleOCRVLConfig, PaddleOCRVLForConditionalGeneration

from family_models._base import Piece, widen
from family_models._qwen import CELL, END, IMAGE, MERGE, PATCH, START, QwenVL


class PaddleOCRVL(QwenVL):
    """As Qwen-VL's, but for the order of patches; ``CELL`` x ``CELL`` pixels are a token."""

    model_type = "paddleocr_vl"
    rows = (
        (3, (24, 32), 4), (1, (32, 24), 2, (16, 40), (24, 24), 3), ((16, 24), 5, (24, 32), 6),
    )  # fmt: skip
    videos = ()

    def build(self, attention: str, **text: Any) -> Any:
        vision = {
            "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3,
            "num_attention_heads": 4, "image_size": 4 * PATCH, "patch_size": PATCH,
            "spatial_merge_size": MERGE,
        }  # fmt: skip
        settings = self.settings(**{"head_dim": 16, **text})
        config = PaddleOCRVLConfig(vision_config=vision, tie_word_embeddings=False, **settings)
        model = PaddleOCRVLForConditionalGeneration(config)
        widen(model, "model.visual")
        widen(model, "model.projector")
        return model

    def piece(self, model: Any, item: tuple[int, ...], seed: int) -> Piece:
        random = torch.Generator().manual_seed(seed)
        rows, cols = item[0] // PATCH, item[1] // PATCH
        patches = torch.randn(rows * cols, 3, PATCH, PATCH, generator=random)
        count = item[0] * item[1] // CELL**2
        inputs = {"pixel_values": patches, "image_grid_thw": torch.tensor([[1, rows, cols]])}
        return Piece([START, *[IMAGE] * count, END], count, inputs)


FAMILY = PaddleOCRVL()
