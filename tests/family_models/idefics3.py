"""Idefics 3: tiles between tags, then a global view; 2 x 2 patches a token."""

from typing import Any

import torch
from transformers import Idefics3Config, Idefics3ForConditionalGeneration
from transformers.models.idefics3.configuration_idefics3 import Idefics3VisionConfig
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil

from family_models._base import IMAGE, Batch, Piece, TinyFamily, llama_config, widen
from family_models._towers import picture

SIDE = 24
TOKENS = (SIDE // 8) ** 2
FAKE, NEWLINE, GLOBAL, TAG = 101, 102, 103, 104
SIZES = {
    "size": {"longest_edge": 3 * SIDE}, "max_image_size": {"longest_edge": SIDE},
    "return_row_col_info": True,
}  # fmt: skip


class Idefics3(TinyFamily):
    """A picture that has just a view's size is not split."""

    model_type = "idefics3"
    rows = ((3, (30, 60), 4), (1, (24, 24), (80, 26), 3), ((24, 24), 5, (50, 52), 2))
    image = (30, 60)
    other = (24, 24)
    visual_inputs = ("pixel_values", "pixel_attention_mask")
    processor = Idefics3ImageProcessorPil(**SIZES)

    def config(self, vision: dict[str, Any], **text: Any) -> Any:
        return Idefics3Config(
            vision_config=Idefics3VisionConfig(**vision), text_config=llama_config(**text),
            scale_factor=2, image_token_id=IMAGE, tie_word_embeddings=False,
        )  # fmt: skip

    def create(self, config: Any) -> Any:
        return Idefics3ForConditionalGeneration(config)

    def build(self, attention: str, **text: Any) -> Any:
        vision = {
            "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3,
            "num_attention_heads": 4, "image_size": SIDE, "patch_size": 4,
            "initializer_range": 0.2,
        }  # fmt: skip
        model = self.create(self.config(vision, **text))
        widen(model, "model.connector")
        return model

    def text_model(self, model: Any) -> Any:
        return model.model.text_model

    def piece(self, model: Any, item: tuple[int, ...], seed: int) -> Piece:
        done = self.processor(
            [[picture(item, seed)]], return_tensors="pt", do_image_splitting=item != (SIDE, SIDE)
        )
        pixels, view = done["pixel_values"][0], [IMAGE] * TOKENS
        ids = []
        for row in range(done["rows"][0][0]):
            for col in range(done["cols"][0][0]):
                ids += [FAKE, TAG + 3 * row + col, *view]
            ids.append(NEWLINE)
        ids += [*[NEWLINE] * bool(ids), FAKE, GLOBAL, *view, FAKE]
        return Piece(ids, TOKENS * len(pixels), {"pixel_values": pixels})

    def assemble(self, model: Any, rows: list[list[Piece]]) -> Batch:
        """A prompt's views are one row of ``pixel_values``, padded with zeros."""
        made = super().assemble(model, rows)
        if "pixel_values" in made.inputs:
            empty = torch.zeros(0, 3, SIDE, SIDE)
            views = [
                torch.cat([empty, *(p.inputs["pixel_values"] for p in row if p.count)])
                for row in rows
            ]
            most = max(map(len, views))
            pads = [torch.nn.functional.pad(v, (0,) * 7 + (most - len(v),)) for v in views]
            made.inputs["pixel_values"] = torch.stack(pads)
        return made


FAMILY = Idefics3()
