"""Mistral 3: pictures of any size, whose rows stand apart in the prompt."""

from typing import Any

import torch
import transformers
from packaging.version import Version
from torch import Tensor
from transformers import (
    Mistral3Config,
    Mistral3ForConditionalGeneration,
    MistralConfig,
    PixtralVisionConfig,
)

from family_models._base import IMAGE, Piece, TinyFamily, text_settings, widen

PATCH, MERGE, BREAK, END = 4, 2, 101, 102
UNIT = PATCH * MERGE


class Mistral3(TinyFamily):
    """Sizes are in pixels; a visual token is ``UNIT`` x ``UNIT`` of them."""

    model_type = "mistral3"
    rows = (
        (3, (24, 32), 4), (1, (32, 24), 2, (16, 40), (24, 24), 3), ((16, 24), 5, (24, 32), 6),
    )  # fmt: skip
    image = (24, 32)
    other = (40, 24)
    flash = Version(transformers.__version__) >= Version("5.20") or (
        "transformers before 5.20 mixes the images of a batch in Pixtral's tower"
    )

    def build(self, attention: str, **text: Any) -> Any:
        vision = PixtralVisionConfig(
            hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
            image_size=64, patch_size=PATCH, initializer_range=0.2,
        )  # fmt: skip
        config = Mistral3Config(
            vision_config=vision, image_token_index=IMAGE, spatial_merge_size=MERGE,
            text_config=MistralConfig(**text_settings(**{"sliding_window": None, **text})),
        )  # fmt: skip
        model = Mistral3ForConditionalGeneration(config)
        widen(model, "model.multi_modal_projector")
        return model

    def piece(self, model: Any, item: tuple[int, ...], seed: int) -> Piece:
        random = torch.Generator().manual_seed(seed)
        pixels = torch.randn(1, 3, *item, generator=random)
        rows, cols = item[0] // UNIT, item[1] // UNIT
        ids = ([IMAGE] * cols + [BREAK]) * rows
        inputs = {"pixel_values": pixels, "image_sizes": torch.tensor([item])}
        return Piece([*ids[:-1], END], rows * cols, inputs)

    def collate(self, pieces: list[Piece]) -> dict[str, Tensor]:
        """Pad pictures to the largest of the batch, as the processor does."""
        if not pieces:
            return {}
        views = [piece.inputs["pixel_values"] for piece in pieces]
        return {
            "pixel_values": padded(views),
            "image_sizes": torch.cat([piece.inputs["image_sizes"] for piece in pieces]),
        }

    def join(self, name: str, one: Tensor, two: Tensor) -> Tensor:
        return padded([one, two]) if name == "pixel_values" else torch.cat([one, two])


def padded(views: list[Tensor]) -> Tensor:
    """Return pictures as one batch, zeros at the right and below."""
    height, width = (max(view.shape[k] for view in views) for k in (2, 3))
    return torch.cat([
        torch.nn.functional.pad(v, (0, width - v.shape[3], 0, height - v.shape[2])) for v in views
    ])  # fmt: skip


FAMILY = Mistral3()
