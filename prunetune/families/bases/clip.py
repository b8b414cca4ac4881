"""Towers that are CLIP's, or built like it."""

from typing import Any

from torch import nn

from prunetune.families.base import Family


def clip_like_attention(
    family: Family, tower: str = "vision_tower", feature_layer: Any = None
) -> nn.Module | None:
    """Return the attention module that belongs to a CLIP-like tower's feature layer.

    ``hidden_states[-2]`` is the output of the last layer but one, so the attention of that same
    layer is meant (FasterVLM, official code; docs/methods.md).
    """
    module = getattr(family.base, tower, None)
    inner = getattr(module, "vision_model", module)
    layers = getattr(getattr(inner, "encoder", None), "layers", None)
    if layers is None:
        return None
    if feature_layer is None:
        feature_layer = family.config.vision_feature_layer
    if not isinstance(feature_layer, int):
        feature_layer = feature_layer[-1]
    index = feature_layer - 1 if feature_layer > 0 else len(layers) + feature_layer
    if not 0 <= index < len(layers):
        return None
    attention = layers[index].self_attn
    if not all(hasattr(attention, name) for name in ("q_proj", "k_proj", "head_dim")):
        return None
    readable: nn.Module = attention
    return readable


def clip_has_cls(family: Family) -> bool:
    """Tell whether a LLaVA-like model's tower puts a CLS token first."""
    vision = family.config.vision_config
    return str(getattr(vision, "model_type", "")) in {"clip_vision_model", "clip"}
