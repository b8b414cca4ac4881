"""What GLM's vision models share."""

from typing import Any, ClassVar

import torch

from family_models._base import widen
from family_models._qwen import CELL, END, START, QwenVL


class Glm(QwenVL):
    rows = (
        (3, (24, 32), 4), (1, (32, 24), 2, (16, 40), (24, 24), 3), ((16, 24), 5, (24, 32), 6),
    )  # fmt: skip
    videos = ()
    beams = "under beams transformers mixes up the images of GLM's prompts that have several"
    mrope: ClassVar[list[int]] = [2, 3, 3]

    def made(self, kind: Any, config: Any, **text: Any) -> Any:
        """Return a model whose tower interpolates its 4 x 4 places."""
        vision = self.vision(
            hidden_size=32, out_hidden_size=64, intermediate_size=48, image_size=2 * CELL
        )
        settings = self.settings(**text)
        ends = {"image_start_token_id": START, "image_end_token_id": END}
        for name in ("vision_start_token_id", "vision_end_token_id"):
            settings.pop(name)
        places = {"video_start_token_id": 104, "video_end_token_id": 105}
        config = config(vision_config={"model_type": "glm4v_vision", **vision}, **places, **ends,
                        **settings)  # fmt: skip
        model = kind(config)
        for layer in model.model.language_model.layers:
            # Else states grow by a norm of their own in every layer, and rounding with them.
            torch.nn.init.constant_(layer.post_self_attn_layernorm.weight, 0.5)
            torch.nn.init.constant_(layer.post_mlp_layernorm.weight, 0.5)
        widen(model, "model.visual.merger")
        return model
