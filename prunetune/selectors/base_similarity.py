"""What selectors share: cosines in fp32, scaled scores, and the loop of farthest-first choices."""

from collections.abc import Iterator

import torch
from torch import Tensor

# Elements of a converted block of states: 16 MiB of float32, two of which live at once.
_BLOCK = 1 << 22
# Rows of a block of the product; halves the work, and is still wide enough for the processor.
_SIDE = 512
# Cosines nearer to 1 than rounding can tell are 1, so that twins are ties.
_TWIN = 1e-6
# Largest share of the largest entry that taking off the mean can leave of equal states.
_NOISE = 1e-6


def finite_rows(features: Tensor) -> Tensor:
    """Return which rows of ``features`` (``[n, d]``) are finite, ``[n]`` bool."""
    least, most = torch.aminmax(features, dim=1)
    return torch.isfinite(least) & torch.isfinite(most)


def mean_row(features: Tensor) -> Tensor:
    """Return the mean of the rows of ``features`` (``[n, d]``), ``[d]`` float32."""
    return torch.cat([block.mean(0) for _, block in _blocks(features)])


def cosines(features: Tensor, mean: Tensor | None = None, out: Tensor | None = None) -> Tensor:
    """Return the cosine of every two rows, ``[n, n]`` float32; a row of zeros has cosine 0.

    Args:
        features: ``[n, d]`` of any floating dtype, finite.
        mean: ``[d]`` float32, taken off first (equal rows are then rows of zeros).
        out: ``[n, n]`` float32 to write to, for callers that need more columns beside.
    """
    n, d = features.shape
    peak = _peak(features)
    if out is None:
        out = torch.empty(n, n, dtype=torch.float32, device=features.device)
    gram = out.zero_()
    for columns, block in _blocks(features):
        if mean is not None:
            block = block.sub_(mean[columns])
        block.div_(peak)
        for at in _sides(n):
            gram[at, at.start :].addmm_(block[at], block[at.start :].t())
    norm = gram.diagonal().clamp_min(0.0).sqrt()
    least = _NOISE * d**0.5 if mean is not None else 1e-18
    inverse = torch.where(norm > least, 1.0 / norm, 0.0)
    gram.mul_(inverse[:, None]).mul_(inverse).clamp_(-1.0, 1.0)
    gram.masked_fill_(gram > 1.0 - _TWIN, 1.0)
    for at in _sides(n):
        corner = gram[at, at]
        corner.copy_(corner.triu() + corner.triu(1).t())
        gram[at.stop :, at] = gram[at, at.stop :].t()
    gram.diagonal().copy_((inverse > 0).float())
    return gram


def cross_cosines(rows: Tensor, features: Tensor) -> Tensor:
    """Return the cosines of ``rows`` (``[t, d]``) with ``features`` (``[n, d]``), ``[t, n]``."""
    own, other = _peak(rows), _peak(features)
    product = torch.zeros(len(rows), len(features), dtype=torch.float32, device=features.device)
    squares = torch.zeros(len(features), dtype=torch.float32, device=features.device)
    for columns, block in _blocks(features):
        block.div_(other)
        product.addmm_(rows[:, columns].float() / own, block.t())
        squares.add_(block.square_().sum(1))
    length = torch.linalg.vector_norm(rows.float() / own, dim=1)
    product.div_(length.clamp_min(1e-18)[:, None]).div_(squares.sqrt().clamp_min(1e-18))
    return product


def minmax(scores: Tensor) -> Tensor:
    """Return ``scores`` (``[n]`` float32, finite) moved into [0, 1]; zeros if they are equal."""
    least, most = scores.min(), scores.max()
    return (scores - least) / torch.where(most > least, most - least, 1.0)


def falling(scores: Tensor) -> Tensor:
    """Return the positions of ``scores`` (``[n]``) by falling score, ``[n]`` int64; NaN last."""
    clean = torch.where(torch.isnan(scores), torch.full_like(scores, -torch.inf), scores)
    return torch.argsort(clean, descending=True, stable=True)


def farthest_first(similarity: Tensor, bonus: Tensor, first: Tensor, count: int) -> Tensor:
    """Take ``first``, then again and again the highest ``bonus`` minus nearest similarity.

    Args:
        similarity: ``[n, n]`` float32; its row j is what j's choice costs the others.
        bonus: ``[n]`` float32, finite.
        first: 0-d int64.
        count: In 1 .. ``n``.

    Returns:
        ``[count]`` int64, in the order in which they are taken.
    """
    order = torch.empty(count, dtype=torch.int64, device=bonus.device)
    bonus = bonus.clone()
    nearest = torch.full_like(bonus, -torch.inf)
    j = first.view(1)
    for step in range(count):
        if step:
            j = (bonus - nearest).argmax().view(1)
        order[step : step + 1] = j
        nearest = torch.maximum(nearest, similarity.index_select(0, j)[0])
        bonus.index_fill_(0, j, -torch.inf)
    return order


def _sides(n: int) -> list[slice]:
    """Split ``n`` rows: what is left of the diagonal is a copy of what is right of it."""
    return [slice(start, start + _SIDE) for start in range(0, n, _SIDE)]


def _peak(features: Tensor) -> Tensor:
    """Return the largest absolute entry, 0-d float32, 1 if all are 0: squares stay in range."""
    if not features.numel():
        return torch.ones((), dtype=torch.float32, device=features.device)
    least, most = torch.aminmax(features)
    peak = torch.maximum(-least, most).float()
    return torch.where(peak > 0, peak, 1.0)


def _blocks(features: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Yield columns and their float32 copy, a block at a time."""
    n, d = features.shape
    step = max(16, _BLOCK // max(1, n))
    for start in range(0, d, step):
        columns = slice(start, start + step)
        yield columns, features[:, columns].to(torch.float32, copy=True)
