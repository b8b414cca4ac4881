"""Gemma 4: pooled grids of any size; small ones with shared keys and an input for each layer."""

from typing import Any

import torch
from torch import Tensor
from transformers import (
    Gemma4Config,
    Gemma4ForConditionalGeneration,
    Gemma4TextConfig,
    Gemma4VisionConfig,
)

from family_models._base import IMAGE, VIDEO, Piece, TinyFamily, text_settings, widen
from family_models._towers import image_blocks

PATCH, MERGE, MOST, WINDOW = 4, 2, 64, 200
KINDS = ["sliding_attention", "full_attention", "sliding_attention", "sliding_attention"]
KINDS += ["full_attention"] * 2


class Gemma4(TinyFamily):
    """Sizes are in pixels; every layer owns its keys, and is given an input of its own."""

    model_type = "gemma4"
    rows = (
        (3, (24, 32), 4), (1, (32, 24), 2, (16, 40), (24, 24), 3), ((16, 24), 5, (24, 32), 6),
    )  # fmt: skip
    image = (24, 32)
    other = (40, 24)
    visual_inputs = ("pixel_values", "image_position_ids")
    flash = "transformers offers no FlashAttention for it"

    def settings(self) -> dict[str, Any]:
        """Return what tells this decoder from others."""
        return {
            "head_dim": 16, "global_head_dim": 24, "sliding_window": WINDOW, "layer_types": KINDS,
            "hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 120,
            "final_logit_softcapping": 5.0,
        }  # fmt: skip

    def build(self, attention: str, **text: Any) -> Any:
        config = Gemma4Config(
            text_config=Gemma4TextConfig(
                **text_settings(**{"rms_norm_eps": 1e-1} | self.settings() | text)
            ),
            vision_config=Gemma4VisionConfig(
                hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
                num_key_value_heads=4, head_dim=8, patch_size=PATCH, pooling_kernel_size=MERGE,
                position_embedding_size=64, initializer_range=0.2,
            ),
            image_token_id=IMAGE, video_token_id=VIDEO, boi_token_id=101, eoi_token_id=102,
            audio_token_id=103,
        )  # fmt: skip
        model = Gemma4ForConditionalGeneration(config)
        widen(model, "model.embed_vision", 0.1)
        for layer in model.model.language_model.layers:
            # Logits are products of normed heads, unscaled: as they are, rounding would decide.
            torch.nn.init.constant_(layer.self_attn.q_norm.weight, 0.3)
        torch.nn.init.normal_(model.model.vision_tower.patch_embedder.position_embedding_table)
        return model

    def piece(self, model: Any, item: tuple[int, ...], seed: int) -> Piece:
        random = torch.Generator().manual_seed(seed)
        rows, cols = item[0] // PATCH, item[1] // PATCH
        patches = torch.rand(rows * cols, 3 * PATCH**2, generator=random)
        y, x = torch.meshgrid(torch.arange(rows), torch.arange(cols), indexing="ij")
        places = torch.stack([x, y], -1).flatten(0, 1)
        more, count = MOST - len(patches), len(patches) // MERGE**2
        pad = torch.nn.functional.pad
        inputs = {
            "pixel_values": pad(patches, (0, 0, 0, more))[None],
            "image_position_ids": pad(places, (0, 0, 0, more), value=-1)[None],
        }
        return Piece([101, *[IMAGE] * count, 102], count, inputs)

    def per_token(self, model: Any, ids: Tensor) -> dict[str, Tensor]:
        return {"mm_token_type_ids": (ids == IMAGE).long()}

    def second_norm(self, layer: Any) -> Any:
        return layer.pre_feedforward_layernorm

    def allowed(
        self,
        model: Any,
        ids: Tensor | None,
        keys: Tensor,
        prompt: int,
        near: Tensor | None = None,
        layer: int = 0,
    ) -> Tensor:
        """Pictures of large ones attend both ways in sliding layers, within the window."""
        causal = super().allowed(model, ids, keys, prompt, near, layer)
        text = model.config.text_config
        if text.use_bidirectional_attention != "vision" or "full" in text.layer_types[layer]:
            return causal
        assert ids is not None
        both = image_blocks(ids) & keys[:, None]
        return causal | (both if near is None else both & near)


class Small(Gemma4):
    """The last layer reuses the keys of the one before."""

    def settings(self) -> dict[str, Any]:
        return super().settings() | {"num_kv_shared_layers": 1, "use_double_wide_mlp": True}


class Smaller(Small):
    """Layers 4 and 5 reuse the keys of 2 and 3."""

    def settings(self) -> dict[str, Any]:
        kinds = ["sliding_attention", "full_attention"] * 3
        return super().settings() | {"num_kv_shared_layers": 2, "layer_types": kinds}


class Large(Gemma4):
    """No shared keys and no inputs of layers; experts, and pictures that attend both ways."""

    def settings(self) -> dict[str, Any]:
        return {
            "head_dim": 16, "global_head_dim": 24, "sliding_window": WINDOW, "layer_types": KINDS,
            "hidden_size_per_layer_input": 0, "attention_k_eq_v": True,
            "num_global_key_value_heads": 1, "use_bidirectional_attention": "vision",
            "enable_moe_block": True, "num_experts": 4, "top_k_experts": 2,
            "moe_intermediate_size": 32,
        }  # fmt: skip


def small(attention: str = "sdpa", **text: Any) -> Any:
    """Return a model that is built like the small checkpoints."""
    return SMALL.model(attention, **text)


def smaller() -> Any:
    """Return one of which layers of both kinds reuse keys."""
    return _SMALLER.model("sdpa")


def large(attention: str = "sdpa", **text: Any) -> Any:
    """Return a model that is built like the large checkpoints."""
    return _LARGE.model(attention, **text)


FAMILY, SMALL, _SMALLER, _LARGE = Gemma4(), Small(), Smaller(), Large()
