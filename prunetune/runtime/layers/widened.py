"""A bias of keys for attention that takes no mask: heads that are a little wider.

``q . k * s + b`` is ``q' . k' * s`` with ``q' = [q, c, c, 0 ..]`` and ``k' = [k, hi, lo, 0 ..]``
where ``(hi + lo) * c * s = b``: exact, and the kernel stays what it is. The cache keeps the model's
own keys; they are widened when they are attended to.
"""

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from prunetune.errors import UnsupportedModelError
from prunetune.families.base_configs import field_of
from prunetune.models.devices import brought
from prunetune.release import KEY_BIAS, attention_named, register_attention, unsupported

WIDENED = ("flash_attention_2", "flash_attention_3")
"""Attention implementations that take no additive mask, and any width of heads up to a limit."""

WIDEST = 256
"""Numbers of a head that they take at most."""

STEP = 8
"""Their heads are multiples of this."""

NAME = "prunetune_widened"
_OWN = "_prunetune_own"


@dataclass
class KeyBias:
    """What attention is told beside its mask.

    Attributes:
        rows: ``[B, keys]`` float32, what is added to the logits of each key.
        read: Whether an attention has used it.
    """

    rows: Tensor
    read: bool = False


def check_heads(config: Any) -> None:
    """Raise unless the heads of a text model can be widened.

    Raises:
        UnsupportedModelError: They would be too wide, or their logits are soft-capped.
    """
    name = getattr(config, "_attn_implementation", None)
    width = field_of(config, "head_dim")
    width = width or config.hidden_size // config.num_attention_heads
    reason = ""
    if _wider(width) > WIDEST:
        reason = f"heads of {width} numbers would be wider than its {WIDEST}"
    elif getattr(config, "attn_logit_softcapping", None):
        reason = "the model's logits are soft-capped, and a bias would be capped with them"
    if reason:
        raise UnsupportedModelError(
            f"attention {name!r} takes a bias of keys, which the config's mass needs, by wider "
            f"heads, and here it cannot: {reason}; load the model with attn_implementation sdpa "
            "or eager, or use a config without mass"
        )


def widened(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return heads whose scaled products are those of ``query`` and ``key`` plus ``bias``.

    Args:
        query: ``[B, heads, m, d]``.
        key: ``[B, key heads, keys, d]``.
        value: ``[B, key heads, keys, e]``, e at most d.
        bias: ``[B, keys]`` float32.
        scale: The model's own, which stays that of the wider heads.

    Returns:
        The three with the next multiple of 8 that holds d + 2; the value's new columns are zeros,
        so the first e columns of what comes out are the answer.
    """
    d = query.shape[-1]
    width = _wider(d)
    # A power of two is exact in every number format.
    c = 2.0 ** round(-math.log2(scale))
    rows = brought(bias, key.device).float() / (c * scale)
    # Eight bits first, whatever the format: attention may compute in a narrower one than it gets.
    high = rows.to(torch.bfloat16).float()
    parts = torch.stack([high, rows - high], -1).to(key.dtype)[:, None]
    parts = parts.expand(-1, key.shape[1], -1, -1)
    wide = torch.nn.functional.pad
    query = wide(wide(query, (0, 2), value=c), (0, width - d - 2))
    key = wide(torch.cat([key, parts], -1), (0, width - d - 2))
    return query, key, wide(value, (0, width - value.shape[-1]))


def widen(layers: Sequence[nn.Module]) -> Callable[[], None]:
    """Make the attention of decoder layers take a ``KeyBias``; return what undoes it.

    Raises:
        UnsupportedModelError: They do not hand on to their attention what they are told.
    """
    register_attention(NAME, attend)
    changed: list[tuple[Any, Any]] = []

    def undo() -> None:
        for attention, own in changed:
            attention.config = own
        changed.clear()

    for layer in layers:
        attention: Any = getattr(layer, "self_attn", None)
        own = getattr(attention, "config", None)
        if own is None:
            undo()
            raise unsupported("a decoder layer has no self_attn with a config")
        # Attention looks up its function by the name in its config: its own, not the model's.
        config = copy.copy(own)
        config.__dict__["_attn_implementation_internal"] = NAME
        config.__dict__[_OWN] = own
        changed.append((attention, own))
        attention.config = config
    return undo


class _Itself:
    """An attention module as it was before ``widen``, for the function that it names."""

    def __init__(self, module: Any) -> None:
        self._module = module
        self.config = module.config.__dict__[_OWN]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


def attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Any,
    scaling: float | None = None,
    **options: Any,
) -> tuple[Tensor, Any]:
    """Attend as the model does, with what ``KeyBias`` adds; an attention function of transformers.

    Returns:
        ``[B, m, heads, e]``, and what the model's own function gives beside it.
    """
    told: KeyBias | None = options.pop(KEY_BIAS, None)
    itself = _Itself(module)
    own = attention_named(itself.config._attn_implementation)
    if told is None:
        out: tuple[Tensor, Any] = own(itself, query, key, value, mask, scaling=scaling, **options)
        return out
    told.read = True
    # As wide heads are scaled by their own width otherwise.
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    wide = widened(query, key, value, told.rows, scale)
    states, beside = own(itself, *wide, mask, scaling=scale, **options)
    return states[..., : value.shape[-1]], beside


def check_read(biases: Sequence[KeyBias | None]) -> None:
    """Raise if a bias that layers were told did not arrive at their attention.

    Raises:
        UnsupportedModelError: It was lost on the way.
    """
    if any(bias is not None and not bias.read for bias in biases):
        raise unsupported("a decoder layer does not hand on to its attention what it is told")


def _wider(width: int) -> int:
    return -(-(width + 2) // STEP) * STEP
