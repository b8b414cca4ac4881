"""Molmo 2: a thumbnail and overlapping crops, pooled 2 x 2 after stitching."""

from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForImageTextToText

from family_models._base import IMAGE, Piece, TinyFamily, needs, text_settings, widen

PATCH, PATCHES, WINDOW = 4, 7, 3
COL, LOW, START, END = 101, 102, 103, 104
MARKERS = (IMAGE, COL, LOW, START, END)


class Molmo2(TinyFamily):
    """Sizes are in tiles: a crop has 7 x 7 patches, the next one stands 3 of them on."""

    model_type = "molmo2"
    marks = (needs("5.24", "it has no such class"),)
    rows = ((3, (2, 3), 4), (1, (1, 2), (3, 1), 3), ((1, 1), 5, (2, 1), 2))
    image = (2, 3)
    other = (1, 1)
    visual_inputs = ("pixel_values", "image_token_pooling", "image_grids", "image_num_crops")
    refused_scorers = frozenset({"context_entropy"})
    later_images = False

    def build(self, attention: str, **text: Any) -> Any:
        rope = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0,
                "original_max_position_embeddings": 512}  # fmt: skip
        decoder = {
            "head_dim": 16, "additional_vocab_size": 8, "rope_parameters": rope,
            "rope_scaling_layers": [0, 2, 3],
        }  # fmt: skip
        tower = {
            "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4,
            "num_key_value_heads": 4, "head_dim": 8, "initializer_range": 0.2,
        }  # fmt: skip
        side = PATCH * PATCHES
        config = AutoConfig.for_model(
            "molmo2", text_config=text_settings(**decoder | text),
            vision_config=tower | {
                "num_hidden_layers": 3, "image_size": [side, side], "patch_size": PATCH,
                "num_position_embeddings": PATCHES**2,
            },
            adapter_config=tower | {"vision_feature_layer": [2, 0], "text_hidden_size": 64},
            image_patch_id=IMAGE, image_start_token_id=START, image_end_token_id=END,
            low_res_image_start_token_id=LOW,
        )  # fmt: skip
        model = AutoModelForImageTextToText.from_config(config)
        widen(model, "model.multi_modal_projector", 0.12)
        torch.nn.init.normal_(model.model.vision_tower.positional_embedding, std=0.5)
        return model

    def piece(self, model: Any, item: tuple[int, ...], seed: int) -> Piece:
        random = torch.Generator().manual_seed(seed)
        down, across = item
        pixels = torch.randn(1 + down * across, PATCHES**2, 3 * PATCH**2, generator=random)
        low, high = pooled(thumbnail()), pooled(stitched(down, across))
        height, width = (n * WINDOW + PATCHES - WINDOW for n in item)
        grid = tuple(-(-n // 2) for n in (PATCHES, PATCHES, height, width))
        ids = [LOW, *([IMAGE] * grid[1] + [COL]) * grid[0], END]
        ids += [START, *([IMAGE] * grid[3] + [COL]) * grid[2], END]
        inputs = {
            "pixel_values": pixels, "image_token_pooling": torch.cat([low, high]),
            "image_grids": torch.tensor([grid]), "image_num_crops": torch.tensor([len(pixels)]),
        }  # fmt: skip
        return Piece(ids, len(low) + len(high), inputs)

    def collate(self, pieces: list[Piece]) -> dict[str, Tensor]:
        """Patches are counted through all pictures of a batch."""
        made, before = super().collate(pieces), 0
        for piece in pieces:
            own = piece.inputs["image_token_pooling"]
            at = sum(len(p.inputs["image_token_pooling"]) for p in pieces[: pieces.index(piece)])
            made["image_token_pooling"][at : at + len(own)] = torch.where(
                own < 0, own, own + before
            )
            before += PATCHES**2 * len(piece.inputs["pixel_values"])
        return made

    def per_token(self, model: Any, ids: Tensor) -> dict[str, Tensor]:
        return {"mm_token_type_ids": torch.isin(ids, torch.tensor(MARKERS)).long()}

    def allowed(
        self, model: Any, ids: Tensor | None, keys: Tensor, prompt: int, *window: Any
    ) -> Tensor:
        assert ids is not None
        image = torch.isin(ids, torch.tensor(MARKERS))
        image[:, prompt:] = False
        both = image[:, None] & image[:, :, None]
        return super().allowed(model, ids, keys, prompt, *window) | (both & keys[:, None])


def thumbnail() -> Tensor:
    """Return the patch numbers of the first view."""
    return torch.arange(PATCHES**2).view(PATCHES, PATCHES)


def stitched(down: int, across: int) -> Tensor:
    """Return the patch numbers of the crops' canvas: of two that overlap each has its half."""
    margin = (PATCHES - WINDOW) // 2
    number = torch.arange(down * across * PATCHES**2).view(down, across, PATCHES, PATCHES)
    rows = []
    for row in range(down):
        top, bottom = margin * (row > 0), PATCHES - margin * (row < down - 1)
        cols = []
        for col in range(across):
            left, right = margin * (col > 0), PATCHES - margin * (col < across - 1)
            cols.append(number[row, col, top:bottom, left:right])
        rows.append(torch.cat(cols, 1))
    return torch.cat(rows) + PATCHES**2


def pooled(grid: Tensor) -> Tensor:
    """Return 2 x 2 blocks of patch numbers as the processor makes them, ``[tokens, 4]``."""
    from transformers.models.molmo2.image_processing_molmo2 import arange_for_pooling

    blocks: Tensor = arange_for_pooling(grid, 2, 2)[0]
    return blocks


FAMILY = Molmo2()
