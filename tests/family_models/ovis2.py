"""Ovis 2: a thumbnail, then tiles, a tag between each two; 2 x 2 patches a token."""

from typing import Any

from transformers import Ovis2Config, Ovis2ForConditionalGeneration
from transformers.models.ovis2.image_processing_pil_ovis2 import Ovis2ImageProcessorPil

from family_models._base import IMAGE, Piece, TinyFamily, text_settings, widen
from family_models._towers import picture

SIDE = 24
TOKENS = (SIDE // 8) ** 2
START, GRID, COL, ROW, END = 101, 102, 103, 104, 105
PROCESSOR = Ovis2ImageProcessorPil(
    size={"height": SIDE, "width": SIDE}, crop_to_patches=True, max_patches=6
)


class Ovis2(TinyFamily):
    model_type = "ovis2"
    rows = ((3, (30, 60), 4), (1, (20, 22), (80, 26), 3), ((24, 24), 5, (50, 52), 2))
    image = (30, 60)
    other = (24, 24)
    visual_inputs = ("pixel_values",)
    views_apart = True
    chunks = "in parts transformers loses what its tags are made of"

    def build(self, attention: str, **text: Any) -> Any:
        vision = {
            "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3,
            "num_attention_heads": 4, "image_size": SIDE, "patch_size": 4, "hidden_stride": 2,
            "vocab_size": 40, "initializer_range": 0.2,
        }  # fmt: skip
        config = Ovis2Config(
            text_config={"model_type": "qwen2", **text_settings(**text)}, vision_config=vision,
            image_token_id=IMAGE, visual_indicator_token_ids=[START, GRID, COL, ROW, END],
            hidden_size=64, vocab_size=text_settings(**text)["vocab_size"],
            tie_word_embeddings=False,
        )  # fmt: skip
        model = Ovis2ForConditionalGeneration(config)
        widen(model, "model.visual_embeddings_table", 1.0)
        widen(model, "model.vision_tower")
        return model

    def piece(self, model: Any, item: tuple[int, ...], seed: int) -> Piece:
        done = PROCESSOR(picture(item, seed), return_tensors="pt")
        pixels, (rows, cols) = done["pixel_values"], done["grids"][0].tolist()
        view = [IMAGE] * TOKENS
        ids = [START, *view, GRID]
        for row in range(rows if rows * cols > 1 else 0):
            for col in range(cols):
                ids += [*view, *[COL] * (col < cols - 1)]
            ids += [ROW] * (row < rows - 1)
        return Piece([*ids, END], TOKENS * len(pixels), {"pixel_values": pixels})


FAMILY = Ovis2()
