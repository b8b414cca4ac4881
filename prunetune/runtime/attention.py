"""Attention of a vision tower's patches without an eager encoder: softmax, head mean, chunks."""

import torch
from torch import Tensor


@torch.no_grad()
def attention_row(query: Tensor, key: Tensor, *, cls: bool, group: int = 1) -> Tensor:
    """Return one attention value a visual token, head mean, softmax over the view's own patches.

    With a CLS token: its row, CLS column dropped, not renormalised (FasterVLM). Without: the mean
    attention received over queries and heads. A token merged of several patches gets their sum.

    Args:
        query: ``[views, heads, patches, head_dim]`` float32, scaled; the first is enough with CLS.
        key: ``[views, heads, patches, head_dim]`` float32.
        cls: Whether patch 0 is a CLS token.
        group: Neighbouring patches that make one visual token.

    Returns:
        ``[views, tokens]`` float32.
    """
    if cls:
        row = _weights(query[:, :, :1], key).mean(1)[:, 0, 1:]
    else:
        views = zip(torch.split(query, 1), torch.split(key, 1), strict=True)
        row = torch.cat([_mean_map(q, k).mean(1) for q, k in views])
    return row.reshape(len(row), -1, group).sum(2)


@torch.no_grad()
def attention_map(query: Tensor, key: Tensor, *, cls: bool, group: int = 1) -> Tensor:
    """Return the head-mean attention of every visual token to every token of its view.

    A token merged of several patches attends as their mean and receives their sum, so that rows
    still sum to 1.

    Args:
        query: As in ``attention_row``, all of them.
        key: As there.
        cls: As there; a CLS token's row and column are dropped, the rest is not renormalised.
        group: As there.

    Returns:
        ``[views, tokens, tokens]`` float32, query by key.
    """
    views = zip(torch.split(query, 1), torch.split(key, 1), strict=True)
    maps = torch.cat([_mean_map(q, k) for q, k in views])
    maps = maps[:, 1:, 1:] if cls else maps
    tokens = maps.shape[1] // group
    return maps.reshape(-1, tokens, group, tokens, group).sum(4).mean(2)


def _weights(query: Tensor, key: Tensor) -> Tensor:
    return (query @ key.transpose(2, 3)).softmax(-1)


def _mean_map(query: Tensor, key: Tensor) -> Tensor:
    """Return ``[1, patches, patches]`` attention of one view, head mean; chunked over queries."""
    # 64 MiB of float32 weights at most per chunk.
    chunk = max(1, (1 << 24) // (key.shape[1] * key.shape[2]))
    parts = [_weights(block, key).mean(1) for block in torch.split(query, chunk, dim=2)]
    return torch.cat(parts, dim=1)
