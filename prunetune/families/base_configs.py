"""What a transformers config says of towers and text models, read in one place."""

from collections.abc import Mapping
from typing import Any

import torch

# What the processors of these towers use; a model does not carry its processor's statistics.
CLIP_PIXELS = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
IMAGENET_PIXELS = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
SIGLIP_PIXELS = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def field_of(config: Any, name: str) -> Any:
    """Return a config's field; where layers have unequal ones, what stands for the others.

    Args:
        config: Of a model or a part of one.
        name: Of the field.

    Returns:
        None where it has none.
    """
    try:
        return getattr(config, name, None)
    except RuntimeError:
        # Gemma 4, whose full layers have wider heads: transformers refuses to name one width.
        return config.to_dict().get(name)


def layer_window(text_config: Any, kind: str) -> int | None:
    """Return how many tokens a decoder layer of a kind reaches: a sliding window's, a chunk's.

    Args:
        text_config: Of the text model.
        kind: Of the layer, see ``Family.layer_kind``; empty: all layers are of one kind.

    Returns:
        None where it reaches all.
    """
    if "chunked" in kind:
        size = getattr(text_config, "attention_chunk_size", None)
    elif kind and "sliding" not in kind:
        size = None
    else:
        size = getattr(text_config, "sliding_window", None)
        if getattr(text_config, "use_sliding_window", True) is False:
            size = None
    return int(size) if size else None


def window_shape(text_config: Any, kind: str) -> str:
    """Return how decoder layers of a kind are cut: ``sliding``, ``chunked`` or not at all (empty).

    Args:
        text_config: Of the text model.
        kind: As in ``layer_window``.
    """
    if layer_window(text_config, kind) is None:
        return ""
    return "chunked" if "chunked" in kind else "sliding"


def text_window(text_config: Any) -> int | None:
    """Return the least window (or chunk) that some decoder layer attends within, or None."""
    kinds = getattr(text_config, "layer_types", None) or ("",)
    sizes = [layer_window(text_config, str(kind)) for kind in set(kinds)]
    return min((size for size in sizes if size is not None), default=None)


def inner_width(text_config: Any) -> int:
    """Return the inner width of a decoder's MLP; of experts, of those that a token passes.

    Of a model with plain and with expert layers, the mean.
    """
    plain = getattr(text_config, "intermediate_size", None)
    chosen = getattr(text_config, "num_experts_per_tok", None)
    expert = getattr(text_config, "moe_intermediate_size", None)
    if chosen and (mixed := getattr(text_config, "moe_layers", None)) is not None:
        # Llama 4: one of the experts' width beside them, and another width without them.
        share = len(mixed) / int(text_config.num_hidden_layers)
        dense = int(getattr(text_config, "intermediate_size_mlp", None) or plain or 0)
        return int(share * (chosen + 1) * int(plain or 0) + (1 - share) * dense)
    if not chosen or not expert:
        return int(plain or 0)
    shared = getattr(text_config, "shared_expert_intermediate_size", None)
    if shared is None:
        shared = expert * (getattr(text_config, "n_shared_experts", None) or 0)
    depth = int(text_config.num_hidden_layers)
    plain_layers = len(getattr(text_config, "mlp_only_layers", None) or ())
    plain_layers += int(getattr(text_config, "first_k_dense_replace", None) or 0)
    experts = chosen * expert + shared
    return int((experts * (depth - plain_layers) + int(plain or 0) * plain_layers) / depth)


def multimodal_rotary(text_config: Any) -> bool:
    """Tell whether positions are triples of time, row and column (M-RoPE)."""
    for name in ("rope_parameters", "rope_scaling"):
        rotary = getattr(text_config, name, None)
        if isinstance(rotary, Mapping) and "mrope_section" in rotary:
            return True
    return False


def grid_side(config: Any) -> tuple[int, int]:
    """Return (rows, columns) of the patch grid of one view of a fixed-size tower."""
    vision = config.vision_config
    size, patch = vision.image_size, vision.patch_size
    height, width = (size, size) if isinstance(size, int) else (size[0], size[1])
    ph, pw = (patch, patch) if isinstance(patch, int) else (patch[0], patch[1])
    return height // ph, width // pw


def as_sizes(image_sizes: Any) -> list[tuple[int, int]]:
    """Return image sizes as a list of (height, width) in pixels."""
    rows = image_sizes.tolist() if isinstance(image_sizes, torch.Tensor) else image_sizes
    return [(int(height), int(width)) for height, width in rows]
