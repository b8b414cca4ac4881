"""What scorers need of the language model: states of one layer and one attention row of it."""

import sys
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from prunetune.errors import UnsupportedModelError
from prunetune.models.devices import brought, execution_device
from prunetune.runtime.cache import extend_prefix, physical_length
from prunetune.runtime.masks import cached_slots
from prunetune.runtime.segment import places

if TYPE_CHECKING:
    from prunetune.runtime.frame import Frame


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


def tap_layer(frame: "Frame", index: int, hidden: Tensor, kwargs: dict[str, Any]) -> LayerTap:
    """Return what a later stage's scorers need of decoder layer ``index`` before it runs.

    Args:
        frame: The forward.
        index: 0-based.
        hidden: ``[B, m, d]`` states entering the layer.
        kwargs: Its other arguments.
    """
    tap = LayerTap(source=hidden)
    if index in frame.plan.row_layers:
        at = None
        if frame.query is not None:
            place = places(frame.segment, brought(hidden, frame.home), frame.length)
            at = place.gather(1, frame.query[:, None])[:, 0]
        layer: Any = frame.plan.family.layers[index]
        given = (
            hidden,
            kwargs["position_embeddings"],
            frame.valid if frame.segment is None else frame.segment.valid,
            _cached_keys(frame, index, hidden.shape[0]),
            at,
        )
        tap.row = last_query_row(layer, *brought(given, execution_device(layer.input_layernorm)))
    return tap


def _cached_keys(frame: "Frame", index: int, batch: int) -> tuple[Tensor, Tensor | None] | None:
    """Return the keys that a layer has cached, and which of their slots are real (None: all)."""
    past = physical_length(frame.cache, index)
    if not past:
        return None
    entry = frame.cache.layers[index]
    if entry.keys.dim() < 4 or entry.keys.shape[2] < past:
        raise UnsupportedModelError(
            f"a {type(entry).__name__} cache gives not all of its keys, so that last_query cannot "
            "score an image of a later turn; use a DynamicCache or StaticCache, or a new cache"
        )
    keys = entry.keys[:, :, :past]
    segment = frame.segment
    if segment is None:
        return keys, cached_slots(frame.attention_mask, past, frame.length, batch)
    if segment.prefix is None:
        return keys, None
    return keys, extend_prefix(segment.prefix, past, segment.valid[:, :0])


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
        and hasattr(sys.modules[type(attention).__module__], "apply_rotary_pos_emb")
    )


@torch.no_grad()
def last_query_row(
    layer: Any,
    states: Tensor,
    position_embeddings: tuple[Tensor, Tensor],
    valid: Tensor,
    past: tuple[Tensor, Tensor | None] | None = None,
    at: Tensor | None = None,
) -> Tensor:
    """Return the attention row of each sequence's last token at one decoder layer, head mean.

    FastV's score (arXiv 2403.06764) from one query row: no attention maps, any kernel.

    Args:
        layer: Decoder layer; see ``row_readable``.
        states: ``[B, S, d]`` residual stream entering it.
        position_embeddings: cos and sin, ``[B or 1, S, head_dim]``.
        valid: ``[B, S]`` bool, False at padding.
        past: Cached keys ``[B, heads, P, head_dim]`` and which of them are real (``[B, P]``).
        at: ``[B]`` int64, the querying token of each sequence; None: the last real one. Tokens
            behind it are not attended to.

    Returns:
        ``[B, S]`` float32; 0 at padding; with ``past`` the rows do not sum to 1.
    """
    attention = layer.self_attn
    batch, length, _ = states.shape
    head_dim = int(attention.head_dim)
    last = length - 1 - valid.flip(1).int().argmax(1) if at is None else at
    valid = valid & (torch.arange(length, device=states.device) <= last[:, None])
    rows = torch.arange(batch, device=states.device)
    normed = layer.input_layernorm(states)
    query = attention.q_proj(normed[rows, last]).view(batch, 1, -1, head_dim)
    key = attention.k_proj(normed).view(batch, length, -1, head_dim)
    if hasattr(attention, "q_norm"):
        query, key = attention.q_norm(query), attention.k_norm(key)
    cos, sin = (part.expand(batch, -1, -1) for part in position_embeddings)
    rotate = sys.modules[type(attention).__module__].apply_rotary_pos_emb
    key = key.transpose(1, 2)
    _, key = rotate(key, key, cos, sin)
    query = query.transpose(1, 2)
    query, _ = rotate(query, query, cos[rows, last][:, None], sin[rows, last][:, None])
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
    logits = logits.masked_fill(~keep[:, None, None], -torch.inf)
    row: Tensor = logits.softmax(-1).mean((1, 2))[:, -length:]
    return row
