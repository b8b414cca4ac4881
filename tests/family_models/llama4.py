"""Llama 4: tiles between separators, then a global view; chunked and whole layers, experts."""

import inspect
from typing import Any

import pytest
import torch
import transformers
from packaging.version import Version
from transformers import (
    Llama4Config,
    Llama4ForConditionalGeneration,
    Llama4TextConfig,
    Llama4VisionConfig,
)
from transformers.masking_utils import create_chunked_causal_mask
from transformers.modeling_outputs import MoeCausalLMOutputWithPast

from family_models._base import IMAGE, Piece, TinyFamily, text_settings, widen

SIDE = 16
TOKENS = (SIDE // 8) ** 2
START, END, GLOBAL, ACROSS, DOWN = 101, 102, 103, 104, 105


CHUNKS = inspect.signature(create_chunked_causal_mask).parameters
OLD = Version(transformers.__version__) < Version("5.19")
FORWARD = inspect.getsource(inspect.unwrap(Llama4ForConditionalGeneration.forward))
HEAD = inspect.signature(MoeCausalLMOutputWithPast).parameters
BROKEN = "outputs.image_outputs" in FORWARD and "image_outputs" not in HEAD


class Llama4(TinyFamily):
    """Sizes are (rows, columns) of tiles; (1, 1) has a global view only."""

    model_type = "llama4"
    rows = ((3, (2, 2), 4), (1, (1, 1), (1, 2), 3), ((2, 1), 5, (1, 3), 2))
    image = (2, 2)
    other = (1, 1)
    visual_inputs = ("pixel_values",)
    views_apart = True
    beam = True if OLD else "transformers from 5.19 on repeats features of another name only"
    static = True if "block_sequence_ids" in CHUNKS else "transformers 5.17: chunks take no blocks"
    # Of 5.24, for one.
    marks = (
        pytest.mark.skipif(
            BROKEN, reason=f"transformers {transformers.__version__} cannot run Llama 4 at all"
        ),
    )
    flash = "its chunks take a mask, and transformers offers no FlashAttention"
    embeds = "it takes either embeddings or pixels"

    def build(self, attention: str, **text: Any) -> Any:
        settings = {
            "head_dim": 16, "intermediate_size_mlp": 80, "num_local_experts": 4,
            "num_experts_per_tok": 1, "interleave_moe_layer_step": 2, "no_rope_layer_interval": 3,
            "attention_chunk_size": 200, "floor_scale": 8192, "attn_scale": 0.5,
        }  # fmt: skip
        config = Llama4Config(
            text_config=Llama4TextConfig(**text_settings(**settings | text)),
            vision_config=Llama4VisionConfig(
                hidden_size=32, num_hidden_layers=3, num_attention_heads=4, image_size=SIDE,
                patch_size=4, intermediate_size=128, projector_input_dim=48, vision_output_dim=48,
                projector_output_dim=48, initializer_range=0.2,
            ),
            image_token_index=IMAGE, boi_token_index=START, eoi_token_index=END,
        )  # fmt: skip
        model = Llama4ForConditionalGeneration(config)
        widen(model, "multi_modal_projector")
        widen(model, "vision_model")
        return model

    def text_model(self, model: Any) -> Any:
        return model.language_model.model

    def piece(self, model: Any, item: tuple[int, ...], seed: int) -> Piece:
        random = torch.Generator().manual_seed(seed)
        rows, cols = item
        view, ids = [IMAGE] * TOKENS, [START]
        for _ in range(rows if rows * cols > 1 else 0):
            for col in range(cols):
                ids += [*view, ACROSS if col < cols - 1 else DOWN]
        views = rows * cols + 1 if rows * cols > 1 else 1
        pixels = torch.randn(views, 3, SIDE, SIDE, generator=random)
        return Piece([*ids, GLOBAL, *view, END], views * TOKENS, {"pixel_values": pixels})


FAMILY = Llama4()
