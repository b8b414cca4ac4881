"""Runs a stage's selector, and remembers in a search what need not be selected again."""

import hashlib

import torch
from torch import Tensor

from prunetune.selectors import SelectContext, Selector

ORDERS = 16
"""Selections that are remembered of one image, the latest ones."""

_KIND = "order:"


def selected(
    selector: Selector, ctx: SelectContext, count: int, memo: dict[str, Tensor] | None
) -> Tensor:
    """Return the keep index of one image's patches, ``[count]`` int64 ascending.

    Args:
        selector: Of the stage.
        ctx: The patches.
        count: At most ``len(ctx)``.
        memo: Of the image, where its patches, states and question are those of earlier calls; None:
            nothing is remembered.
    """
    if memo is None or not count:
        return selector.keep(ctx, count)
    key = _key(selector, ctx, count)
    order = memo.get(key)
    if order is None or len(order) < count:
        order = selector.order(ctx, count)
        _remember(memo, key, order)
    return order[:count].sort().values


def _key(selector: Selector, ctx: SelectContext, count: int) -> str:
    """Return what tells a selection from others of the same image.

    Orders of nested selectors are a beginning of each other: one serves every smaller count.
    """
    found = hashlib.blake2b(digest_size=16)
    if not selector.ignores_scores:
        used = [ctx.scores, *(ctx.importances[name] for name in sorted(ctx.importances))]
        found.update(torch.cat(used).cpu().numpy().tobytes())
    size = "" if selector.nested else str(count)
    return f"{_KIND}{ctx.layer}:{size}:{found.hexdigest()}:{selector.model_dump_json()}"


def _remember(memo: dict[str, Tensor], key: str, order: Tensor) -> None:
    orders = [name for name in memo if name.startswith(_KIND)]
    if key not in memo and len(orders) >= ORDERS:
        # A search's scores are seldom the same again: the oldest are of least use.
        del memo[orders[0]]
    memo[key] = order
