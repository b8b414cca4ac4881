"""vLLM's vision towers as the families of transformers' models read them."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.qwen2_vl.modeling_qwen2_vl import apply_rotary_pos_emb_vision

from prunetune.errors import UnsupportedModelError
from prunetune.families import Family
from prunetune.families.base import TappedAttention

__all__ = ["apply_rotary_pos_emb_vision", "attention_module", "tapped"]


class Fused:
    """An attention whose query, key and value are one projection (CLIP, SigLIP).

    Under tensor parallelism they are those of this rank's heads.

    Args:
        module: vLLM's.
    """

    def __init__(self, module: Any) -> None:
        self.head_dim, self.scale = int(module.head_dim), float(module.scale)
        self._project = module.qkv_proj
        self._width = int(module.num_heads_per_partition) * self.head_dim

    def q_proj(self, states: Tensor) -> Tensor:
        """Return queries, ``[..., heads * head_dim]``."""
        return self._part(states, 0)

    def k_proj(self, states: Tensor) -> Tensor:
        """Return keys, likewise."""
        return self._part(states, 1)

    def _part(self, states: Tensor, number: int) -> Tensor:
        fused: Tensor = self._project(states)[0]
        return fused[..., number * self._width : (number + 1) * self._width]


class Rotated:
    """An attention of a Qwen-VL tower, as its family reads those of transformers.

    The family looks for ``apply_rotary_pos_emb_vision`` in this file.

    Args:
        module: vLLM's.
    """

    def __init__(self, module: Any) -> None:
        self.num_heads = int(module.num_attention_heads_per_partition)
        self.scaling = int(module.hidden_size_per_attention_head) ** -0.5
        self._module = module

    def qkv(self, states: Tensor) -> Tensor:
        """Return queries, keys and values, ``[patches, 3 * heads * head_dim]``."""
        fused: Tensor = self._module.qkv(states[:, None])[0]
        if hasattr(self._module, "split_qkv"):
            # Qwen2-VL's lie in another order on several ranks.
            fused = torch.cat([part.flatten(2) for part in self._module.split_qkv(fused)], 2)
        return fused[:, 0]


def attention_module(model: nn.Module, family: Family) -> nn.Module:
    """Return vLLM's attention module of the layer whose output are the features.

    It has the name that it has in transformers, but for prefixes.

    Args:
        model: vLLM's.
        family: View of transformers' model of the same config.

    Raises:
        UnsupportedModelError: It is not there.
    """
    wanted = family.vision_attention_module()
    name = next((n for n, m in family.model.named_modules() if m is wanted), "")
    name = name.removeprefix("model.")
    short = name.replace("vision_tower.vision_model.", "vision_tower.")
    long = short.replace("vision_tower.", "vision_tower.vision_model.")
    for candidate in (name, short, long, f"model.{name}"):
        try:
            found = model.get_submodule(candidate) if name else None
        except AttributeError:
            continue
        if found is not None and any(hasattr(found, n) for n in ("qkv_proj", "qkv", "q_proj")):
            return found
    raise UnsupportedModelError(
        f"the attention of {type(model).__name__}'s vision tower cannot be read in vLLM; use a "
        "config without the scorers cls_attention and context_entropy"
    )


def tapped(module: Any, states: Tensor, arguments: Mapping[str, Any]) -> TappedAttention:
    """Return what a family is to read of an attention module's call.

    Args:
        module: vLLM's.
        states: What it was given.
        arguments: Its other arguments by name.
    """
    if hasattr(module, "qkv_proj"):
        return TappedAttention(Fused(module), states, {})
    if hasattr(module, "qkv"):
        halves = (arguments["rotary_pos_emb_cos"], arguments["rotary_pos_emb_sin"])
        # Both halves of a head turn by the same angles; transformers writes them twice.
        angles = tuple(torch.cat([half, half], -1) for half in halves)
        return TappedAttention(Rotated(module), states[:, 0], {"position_embeddings": angles})
    return TappedAttention(module, states, {})
