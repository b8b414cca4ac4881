"""Identity of a model: of its architecture, which fine-tunes share, and of its weights."""

import hashlib
import json
from collections.abc import Iterator
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
    from prunetune.families.base_configs import field_of

    text = config.get_text_config()
    vision = getattr(config, "vision_config", None)
    parts = {
        "model": {field: field_of(config, field) for field in _TOP},
        "text": {field: field_of(text, field) for field in _TEXT},
        "vision": {field: field_of(vision, field) for field in _VISION},
    }
    content = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(content.encode()).hexdigest()


def weights_digest(model: Any) -> str:
    """Return a sha256 over dtype, shape and up to 256 strided elements of every parameter.

    The device does not count. Weights that accelerate keeps elsewhere until they are used do.

    Args:
        model: A torch module.
    """
    total = hashlib.sha256()
    for name, parameter in model.state_dict().items():
        total.update(f"{name}{parameter.dtype}{tuple(parameter.shape)}".encode())
        value = _offloaded(model, name) if parameter.is_meta else parameter
        for plain in () if value is None else _plain(value.detach()):
            flat = plain.flatten()
            some = flat[:: max(1, len(flat) // 256)].float().cpu().contiguous()
            total.update(some.numpy().tobytes())
    return total.hexdigest()


def _plain(value: Any) -> Iterator[Any]:
    """Yield what a tensor is made of: itself, or the packed parts of torchao's quantised ones."""
    if not hasattr(value, "__tensor_flatten__"):
        yield value
        return
    for name in value.__tensor_flatten__()[0]:
        yield from _plain(getattr(value, name))


def _offloaded(model: Any, name: str) -> Any:
    """Return a parameter from where accelerate's hooks take it; None where they do not tell."""
    module, _, own = name.rpartition(".")
    hook = getattr(model.get_submodule(module), "_hf_hook", None)
    stored = getattr(hook, "weights_map", None)
    return None if stored is None else stored[own]
