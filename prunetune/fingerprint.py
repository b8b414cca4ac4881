"""Identity of an architecture: the same for a model and its fine-tunes."""

import hashlib
import json
from typing import Any

_TOP = (
    "model_type",
    "image_token_id",
    "vision_feature_layer",
    "vision_feature_select_strategy",
    "image_grid_pinpoints",
    "projector_hidden_act",
    "multimodal_projector_bias",
)
_TEXT = (
    "model_type",
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "hidden_act",
    "rms_norm_eps",
    "rope_parameters",
    "sliding_window",
    "layer_types",
    "attention_bias",
    "mlp_bias",
)
_VISION = (
    "model_type",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_channels",
    "patch_size",
    "image_size",
    "hidden_act",
    "layer_norm_eps",
)


def fingerprint(config: Any) -> str:
    """Return the sha256 of the config fields that define the architecture.

    A fine-tune that changes weights alone keeps it; dtype, names, paths and the version of
    transformers do not count.
    """
    text = config.get_text_config()
    vision = getattr(config, "vision_config", None)
    parts = {
        "model": {field: getattr(config, field, None) for field in _TOP},
        "text": {field: getattr(text, field, None) for field in _TEXT},
        "vision": {field: getattr(vision, field, None) for field in _VISION},
    }
    content = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(content.encode()).hexdigest()
