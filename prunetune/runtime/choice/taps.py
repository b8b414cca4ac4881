"""What scorers need of the language model: states of one layer and one attention row of it."""

import inspect
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from prunetune.errors import UnsupportedModelError
from prunetune.models.devices import brought, execution_device
from prunetune.numerics import exactly, fitting
from prunetune.runtime.layers.cache import physical_length


@dataclass
class LayerTap:
    """What is remembered of decoder layer ``k - 1`` for a stage at layer ``k``.

    Attributes:
        source: ``[B, S, d]`` residual stream entering the layer.
        target: ``[B, S, d]`` output of its second norm; None until the layer has run.
        row: ``[B, S]`` float32 attention from the last text token; None when no scorer asks.
    """

    source: Tensor
    target: Tensor | None = None
    row: Tensor | None = None

    def to(self, device: Any) -> "LayerTap":
        """Return the tap on a device."""
        return LayerTap(*brought((self.source, self.target, self.row), device))


def query_row(
    layer: Any,
    states: Tensor,
    rotary: tuple[Tensor, ...],
    seen: Tensor,
    at: Tensor,
    keys: Tensor | None,
    bias: Tensor | None = None,
) -> Tensor:
    """Return the attention row of one token of each sequence, wherever the layer's weights are.

    Args:
        layer: Decoder layer.
        states: ``[B, m, d]`` entering it.
        rotary: cos and sin, ``[B or 1, m, head_dim]``.
        seen: ``[B, P + m]`` bool, the keys that the token sees, cached ones first.
        at: ``[B]`` int64, where it stands in ``states``.
        keys: Cached keys, ``[B, heads, P, head_dim]``; None: there are none.
        bias: ``[B, P + m]`` float32, added to the logits of each key; None: nothing.

    Returns:
        ``[B, m]`` float32.
    """
    past = 0 if keys is None else keys.shape[2]
    cached = None if keys is None else (keys, seen[:, :past])
    given = (states, rotary, seen[:, past:], cached, at, bias)
    return last_query_row(layer, *brought(given, execution_device(layer.input_layernorm)))


def cached_keys(cache: Any, layer: int) -> Tensor | None:
    """Return the keys that a layer of a cache holds, ``[B, heads, P, head_dim]``; None: none.

    Those of a sliding window are the last ones.

    Raises:
        UnsupportedModelError: The cache does not give them all.
    """
    past = physical_length(cache, layer)
    if not past:
        return None
    entry = cache.layers[layer]
    if entry.keys.dim() < 4 or (
        entry.keys.shape[2] < past and not getattr(entry, "is_sliding", False)
    ):
        raise UnsupportedModelError(
            f"a {type(entry).__name__} cache gives not all of its keys, so that last_query cannot "
            "score an image of a later turn; use a DynamicCache or StaticCache, or a new cache"
        )
    # Of a sliding window it has the last ones, which is all that can be seen.
    keys: Tensor = entry.keys[:, :, :past]
    return keys


@exactly()
@torch.no_grad()
def key_states(layer: Any, states: Tensor) -> Tensor:
    """Return the keys of tokens at one decoder layer, before they are rotated.

    Computed, not read from the cache: a run has the same ones with and without it.

    Args:
        layer: Decoder layer; see ``row_readable``.
        states: ``[n, d]`` residual stream entering it.

    Returns:
        ``[n, heads, head_dim]``, on the device of ``states``.
    """
    attention = layer.self_attn
    given = brought(states, execution_device(layer.input_layernorm))
    normed = fitting(layer.input_layernorm(given[None]), attention.k_proj)
    key = attention.k_proj(normed).view(1, len(states), -1, int(attention.head_dim))
    if hasattr(attention, "k_norm"):
        key = attention.k_norm(key)
    keys: Tensor = brought(key[0], states.device)
    return keys


def row_readable(layers: Iterable[Any]) -> bool:
    """Tell whether ``last_query_row`` can read all these decoder layers.

    It asks them for a norm, projections of queries and of keys, and the rotation; those of Phi-3,
    for one, project queries, keys and values in one piece.
    """
    return all(_readable(layer) for layer in layers)


def _readable(layer: Any) -> bool:
    attention = getattr(layer, "self_attn", None)
    return (
        hasattr(layer, "input_layernorm")
        and all(hasattr(attention, n) for n in ("q_proj", "k_proj", "head_dim", "scaling"))
        and (hasattr(attention, "use_rope") or _rotation(attention) is not None)
    )


def _rotation(attention: Any) -> Any:
    return getattr(sys.modules[type(attention).__module__], "apply_rotary_pos_emb", None)


def _turned(attention: Any, states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Return queries or keys as they are rotated.

    Args:
        attention: Of a decoder layer.
        states: ``[B, heads, n, head_dim]``.
        cos: ``[B, n, head_dim]``; half as wide where pairs of neighbours are turned.
        sin: Likewise.
    """
    rotate = _rotation(attention)
    if rotate is not None and "k" in inspect.signature(rotate).parameters:
        both: tuple[Tensor, Tensor] = rotate(states, states, cos, sin)
        return both[1]
    if rotate is not None:
        one: Tensor = rotate(states, cos, sin, unsqueeze_dim=1)
        return one
    # Llama 4, some of whose layers turn nothing.
    if not attention.use_rope:
        return states
    even, odd = states[..., ::2].float(), states[..., 1::2].float()
    cos, sin = cos[:, None].float(), sin[:, None].float()
    turned = torch.stack([even * cos - odd * sin, even * sin + odd * cos], -1).flatten(-2)
    turned = turned.to(states.dtype)
    normed: Tensor = attention.qk_norm(turned) if hasattr(attention, "qk_norm") else turned
    return normed


@exactly()
def last_query_row(
    layer: Any,
    states: Tensor,
    position_embeddings: tuple[Tensor, ...],
    valid: Tensor,
    past: tuple[Tensor, Tensor | None] | None = None,
    at: Tensor | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    """Return the attention row of each sequence's last token at one decoder layer, head mean.

    FastV's score (arXiv 2403.06764) from one query row: no attention maps, any kernel.

    Args:
        layer: Decoder layer; see ``row_readable``.
        states: ``[B, S, d]`` residual stream entering it.
        position_embeddings: cos and sin, ``[B or 1, S, head_dim]``; see ``Told``.
        valid: ``[B, S]`` bool, False at padding.
        past: Cached keys ``[B, heads, P, head_dim]`` and which of them are real (``[B, P]``).
        at: ``[B]`` int64, the querying token of each sequence; None: the last real one. Tokens
            behind it are not attended to.
        bias: ``[B, P + S]`` float32, added to the logits of each key; None: nothing.

    Returns:
        ``[B, S]`` float32; 0 at padding; with ``past`` the rows do not sum to 1.
    """
    attention = layer.self_attn
    batch, length, _ = states.shape
    head_dim = int(attention.head_dim)
    last = length - 1 - valid.flip(1).int().argmax(1) if at is None else at
    valid = valid & (torch.arange(length, device=states.device) <= last[:, None])
    rows = torch.arange(batch, device=states.device)
    normed = fitting(layer.input_layernorm(states), attention.q_proj)
    query = attention.q_proj(normed[rows, last]).view(batch, 1, -1, head_dim)
    key = attention.k_proj(normed).view(batch, length, -1, head_dim)
    if hasattr(attention, "q_norm"):
        query, key = attention.q_norm(query), attention.k_norm(key)
    cos, sin = (part.expand(batch, -1, -1).to(key.dtype) for part in position_embeddings)
    key = _turned(attention, key.transpose(1, 2), cos, sin)
    at_last = cos[rows, last][:, None], sin[rows, last][:, None]
    query = _turned(attention, query.transpose(1, 2), *at_last)
    keep = valid
    if past is not None:
        key = torch.cat([past[0].to(key), key], dim=2)
        before = past[1]
        if before is None:
            before = torch.ones(batch, past[0].shape[2], dtype=torch.bool, device=valid.device)
        keep = torch.cat([before, valid], dim=1)
    groups = query.shape[1] // key.shape[1]
    query = query.float().view(batch, key.shape[1], groups, head_dim) * float(attention.scaling)
    logits = query @ key.float().transpose(2, 3)
    softcap = getattr(attention, "attn_logit_softcapping", None)
    if softcap is not None:
        logits = softcap * (logits / softcap).tanh()
    if bias is not None:
        logits = logits + bias[:, None, None]
    logits = logits.masked_fill(~keep[:, None, None], -torch.inf)
    row: Tensor = logits.softmax(-1).mean((1, 2))[:, -length:]
    return row
