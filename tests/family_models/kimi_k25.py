"""Kimi K2.5: packed pictures of any size, a decoder of experts and latent attention."""

from typing import Any

import torch
import transformers
from packaging.version import Version
from transformers import AutoConfig, AutoModelForImageTextToText

from family_models._base import IMAGE, VIDEO, Piece, TinyFamily, text_settings, widen

PATCH, MERGE = 4, 2
UNIT = PATCH * MERGE


class KimiK25(TinyFamily):
    """Sizes are in pixels; a visual token is ``UNIT`` x ``UNIT`` of them."""

    model_type = "kimi_k25"
    rows = (
        (3, (24, 32), 4), (1, (32, 24), 2, (16, 40), (24, 24), 3), ((16, 24), 5, (24, 32), 6),
    )  # fmt: skip
    image = (24, 32)
    other = (40, 24)
    visual_inputs = ("pixel_values", "image_grid_thw")
    cached_beams = Version(transformers.__version__) >= Version("5.19") or (
        "transformers before 5.19 repeats each patch under beams, not each picture"
    )
    refused_scorers = frozenset({"last_query", "key_norm"})

    def build(self, attention: str, **text: Any) -> Any:
        decoder = {
            "model_type": "deepseek_v3", "q_lora_rank": 24, "kv_lora_rank": 24,
            "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 16, "n_routed_experts": 4,
            "n_group": 1, "topk_group": 1, "num_experts_per_tok": 2, "moe_intermediate_size": 48,
            "first_k_dense_replace": 1, "num_key_value_heads": 4,
        }  # fmt: skip
        vision = {
            "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3,
            "num_attention_heads": 4, "patch_size": PATCH, "pos_emb_height": 8, "pos_emb_width": 8,
        }  # fmt: skip
        config = AutoConfig.for_model(
            "kimi_k25", text_config=text_settings(**decoder | text), vision_config=vision,
            image_token_id=IMAGE, video_token_id=VIDEO, projection_hidden_size=32,
            tie_word_embeddings=False,
        )  # fmt: skip
        model = AutoModelForImageTextToText.from_config(config)
        widen(model, "model.vision_tower")
        widen(model, "model.mm_projector")
        torch.nn.init.normal_(
            model.model.vision_tower.patch_embed.pos_emb.position_embeddings, std=0.5
        )
        return model

    def piece(self, model: Any, item: tuple[int, ...], seed: int) -> Piece:
        random = torch.Generator().manual_seed(seed)
        rows, cols = item[0] // PATCH, item[1] // PATCH
        patches = torch.randn(rows * cols, 3, PATCH, PATCH, generator=random)
        count = len(patches) // MERGE**2
        inputs = {"pixel_values": patches, "image_grid_thw": torch.tensor([[1, rows, cols]])}
        return Piece([101, *[IMAGE] * count, 102], count, inputs)


FAMILY = KimiK25()
