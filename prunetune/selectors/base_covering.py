"""Greedy facility location without looking at every candidate at every step."""

import torch
from torch import Tensor

# Candidates looked at together. Fewer are not faster: a call costs as much as their sums.
_TOGETHER = 16
# Where many have to be looked at: 4 MiB of float32 at 4,096 columns.
_MOST = 256
# Below this, all sums of a step cost less than finding out which are due: 1.1 to 2.4 times less
# for 64 to 336 rows of one thread, as much for 400.
_SMALL = 160_000


def most_covering(rows: Tensor, factor: Tensor, count: int) -> Tensor:
    """Take again and again the row that adds most to what the taken ones cover.

    Covered is the maximum over the taken rows, entry by entry, 0 at first. A row's gain is
    ``factor`` times the sum of what it has above that. Of many rows on the host gains are computed
    lazily (Minoux 1978): a gain never rises, nor does it as rounded here, so a stale one is a
    bound, and who leads with a fresh one leads. Elsewhere every step looks at all rows, without
    waiting for the device. Both give the same answer, as one row's sum does not depend on the
    others'.

    Args:
        rows: ``[n, m]`` float32, at least 0.
        factor: ``[n]`` float32, at least 0.
        count: In 1 .. ``n``.

    Returns:
        ``[count]`` int64, in the order in which they are taken; of equal gains the lower.
    """
    lazy = rows.is_cpu and rows.numel() > _SMALL
    return lazily(rows, factor, count) if lazy else densely(rows, factor, count)


def lazily(rows: Tensor, factor: Tensor, count: int) -> Tensor:
    """Take rows as ``most_covering`` does, looking at the leading candidates only."""
    covered = torch.zeros_like(rows[0])
    bound = rows.sum(1) * factor
    fresh = torch.ones(len(rows), dtype=torch.bool, device=rows.device)
    order: list[int] = []
    for left in range(len(rows), len(rows) - count, -1):
        together = _TOGETHER
        j = int(bound.argmax())
        while not fresh[j]:
            # Those taken are at minus infinity: with at most `left` none of them is among these.
            leading = bound.topk(min(together, left), sorted=False).indices
            # The lowest of many equal candidates may be outside.
            leading[-1] = j
            bound[leading] = _gains(rows[leading], covered, factor[leading])
            fresh[leading] = True
            together = min(2 * together, _MOST)
            j = int(bound.argmax())
        order.append(j)
        torch.maximum(covered, rows[j], out=covered)
        bound[j] = -torch.inf
        fresh.fill_(False)
    return torch.tensor(order, dtype=torch.int64, device=rows.device)


def densely(rows: Tensor, factor: Tensor, count: int) -> Tensor:
    """Take rows as ``most_covering`` does, looking at all of them at every step."""
    order = torch.empty(count, dtype=torch.int64, device=rows.device)
    covered = torch.zeros_like(rows[0])
    taken = torch.zeros_like(factor)
    above = torch.empty_like(rows)
    for step in range(count):
        torch.sub(rows, covered, out=above)
        j = (above.clamp_min_(0.0).sum(1) * factor + taken).argmax().view(1)
        order[step : step + 1] = j
        covered = torch.maximum(covered, rows.index_select(0, j)[0])
        taken.index_fill_(0, j, -torch.inf)
    return order


def _gains(rows: Tensor, covered: Tensor, factor: Tensor) -> Tensor:
    return (rows - covered).clamp_min_(0.0).sum(1) * factor
