"""Gemma 3: pooled grids between markers, images that attend both ways, two kinds of layers."""

from typing import Any

from torch import Tensor
from transformers import Gemma3Config, Gemma3ForConditionalGeneration, Gemma3TextConfig

from family_models._base import IMAGE, Piece, text_settings, widen
from family_models._towers import GemmaLike, image_blocks, plain_views, siglip_config

SIDE, TOKENS, WINDOW = 32, 16, 200
KINDS = ["sliding_attention", "sliding_attention", "full_attention"] * 2


class Gemma3(GemmaLike):
    model_type = "gemma3"
    rows = (
        (3, (32, 32), 4),
        (1, (32, 32), 2, (32, 32), (32, 32), 3),
        ((32, 32), 5, (32, 32), 6),
    )
    image = other = (32, 32)

    def build(self, attention: str, **text: Any) -> Any:
        settings = {
            "head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": WINDOW,
            "layer_types": KINDS, "initializer_range": 0.1,
        }  # fmt: skip
        config = Gemma3Config(
            text_config=Gemma3TextConfig(**text_settings(**settings | text)),
            vision_config=siglip_config(SIDE), mm_tokens_per_image=TOKENS,
            image_token_index=IMAGE, boi_token_index=101, eoi_token_index=102,
        )  # fmt: skip
        model = Gemma3ForConditionalGeneration(config)
        widen(model, "model.multi_modal_projector")
        return model

    def piece(self, model: Any, item: tuple[int, ...], seed: int) -> Piece:
        return plain_views(SIDE, TOKENS, [101], [102], seed)

    def per_token(self, model: Any, ids: Tensor) -> dict[str, Tensor]:
        return {"token_type_ids": (ids == IMAGE).long()}

    def allowed(
        self, model: Any, ids: Tensor | None, keys: Tensor, prompt: int, *window: Any
    ) -> Tensor:
        assert ids is not None
        return super().allowed(model, ids, keys, prompt, *window) | (
            image_blocks(ids) & keys[:, None]
        )


FAMILY = Gemma3()
