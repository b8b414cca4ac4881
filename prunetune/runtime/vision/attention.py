"""Attention of a vision tower's patches without an eager encoder: softmax, head mean, chunks."""

from collections.abc import Iterator

import torch
from torch import Tensor

from prunetune.numerics import exactly

LIMIT = 1 << 24
"""Elements of the weights that exist at once: 64 MiB of float32."""


@exactly()
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
        return row.reshape(len(row), -1, group).sum(2)
    rows = []
    for q, k in zip(query, key, strict=True):
        received = torch.stack([block.sum(0) for block in _blocks(q, k, group)]).sum(0)
        rows.append(received / len(received))
    return torch.stack(rows)


@exactly()
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
    views = zip(query[:, :, int(cls) :], key, strict=True)
    return torch.stack([torch.cat(list(_blocks(q, k, group, int(cls)))) for q, k in views])


def _weights(query: Tensor, key: Tensor) -> Tensor:
    return (query @ key.transpose(-1, -2)).softmax(-1)


def _blocks(query: Tensor, key: Tensor, group: int, skip: int = 0) -> Iterator[Tensor]:
    """Yield what some tokens of one view, and then the next, attend to: ``[some, tokens]``.

    Args:
        query: ``[heads, patches, head_dim]``.
        key: ``[heads, skip + patches, head_dim]``.
        group: Patches of a token.
        skip: Keys that are no patches; they count in the softmax.
    """
    step = max(1, LIMIT // (key.shape[0] * key.shape[1] * group)) * group
    for part in torch.split(query, step, dim=1):
        block = _weights(part, key).mean(0)[:, skip:]
        yield block.reshape(len(block) // group, group, -1, group).sum(3).mean(1)
