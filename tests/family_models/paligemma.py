"""PaliGemma: the prompt is one block that attends both ways; positions start at 1."""

from typing import Any

import torch
from torch import Tensor
from transformers import (
    Gemma2Config,
    GemmaConfig,
    PaliGemmaConfig,
    PaliGemmaForConditionalGeneration,
)

from family_models._base import IMAGE, Batch, Piece, text_settings, widen
from family_models._towers import GemmaLike, plain_views, siglip_config

SIDE, END = 20, 101
SIZE = (SIDE, SIDE)


class PaliGemma(GemmaLike):
    """The last token of a prompt with images is the line break that its processor puts there."""

    model_type = "paligemma"
    lookup = "transformers takes candidates for a part of the prompt, which attends to them"
    later_images = False
    rows = ((SIZE, 4), (SIZE, SIZE, SIZE, 3), (SIZE, SIZE, 6))

    def text_config(self, **text: Any) -> Any:
        return GemmaConfig(**text_settings(**{"head_dim": 16} | text))

    def build(self, attention: str, **text: Any) -> Any:
        config = PaliGemmaConfig(
            text_config=self.text_config(**text),
            vision_config=siglip_config(SIDE, projection_dim=64),
            image_token_index=IMAGE, projection_dim=64, hidden_size=64,
        )  # fmt: skip
        model = PaliGemmaForConditionalGeneration(config)
        widen(model, "model.multi_modal_projector")
        return model

    def piece(self, model: Any, item: tuple[int, ...], seed: int) -> Piece:
        return plain_views(SIDE, (SIDE // 4) ** 2, [], [], seed)

    def assemble(self, model: Any, rows: list[list[Piece]]) -> Batch:
        if any(piece.count for row in rows for piece in row):
            rows = [row if row[-1].ids[-1:] == [END] else [*row, Piece([END])] for row in rows]
        return super().assemble(model, rows)

    def per_token(self, model: Any, ids: Tensor) -> dict[str, Tensor]:
        return {"token_type_ids": torch.zeros_like(ids)}

    def positions(self, model: Any, numbered: Tensor) -> Tensor | None:
        return numbered.cumsum(1).clamp_min(1)

    def allowed(
        self, model: Any, ids: Tensor | None, keys: Tensor, prompt: int, *window: Any
    ) -> Tensor:
        assert ids is not None
        ended = (ids == END).cumsum(1)
        # Up to the first end, itself included.
        block = (ended == 0) | ((ended == 1) & (ids == END))
        block &= ended.amax(1, keepdim=True) > 0
        both = block[:, None] & block[:, :, None] & keys[:, None]
        return super().allowed(model, ids, keys, prompt, *window) | both


class PaliGemma2(PaliGemma):
    """With Gemma 2: two kinds of layers, softcapped attention, a norm around every part."""

    def text_config(self, **text: Any) -> Any:
        settings = {
            "head_dim": 16, "query_pre_attn_scalar": 16, "attn_logit_softcapping": 0.5,
            "final_logit_softcapping": 3.0, "sliding_window": 120,
        }  # fmt: skip
        return Gemma2Config(**text_settings(**settings | text))


def second(**text: Any) -> Any:
    """Return a small PaliGemma 2; Gemma 2 has eager attention only."""
    return _SECOND.model("eager", **text)


FAMILY, _SECOND = PaliGemma(), PaliGemma2()
