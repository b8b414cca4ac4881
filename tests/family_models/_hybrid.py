"""Language models most of whose layers carry a state along the sequence."""

from typing import Any, ClassVar

from family_models._base import widen
from family_models._qwen import QwenFrames


class Qwen35(QwenFrames):
    """Qwen3.5, with and without experts."""

    hybrid = True
    lookup = "transformers refuses candidates for models that carry a state"
    kinds = ("linear_attention", "linear_attention", "full_attention") * 2
    mrope: ClassVar[list[int]] = [2, 1, 1]
    rope: ClassVar[dict[str, Any]] = {"partial_rotary_factor": 0.5}

    def made(self, kind: Any, config: Any, **text: Any) -> Any:
        """Return a model of layers 2 and 5 that attend, and others with two heads of state."""
        vision = self.vision(
            hidden_size=32, out_hidden_size=64, intermediate_size=48, num_position_embeddings=16
        )
        carried = {
            # Of small states a norm makes noise.
            "head_dim": 16, "rms_norm_eps": 1e-2, "layer_types": list(self.kinds),
            "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8,
            "linear_value_head_dim": 8, "linear_conv_kernel_dim": 4,
        }  # fmt: skip
        model = kind(config(vision_config=vision, **self.settings(**carried | text)))
        widen(model, "model.visual.merger")
        return model
