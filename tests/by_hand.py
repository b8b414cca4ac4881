"""VFlowOpt written a second time, one token after the other, from the paper alone."""

import math
from typing import Any

import numpy as np
from torch import Tensor


def importance(
    attention: Tensor, entropy: Tensor, threshold: float, alpha: float, unit: str = "uniform"
) -> np.ndarray:
    """One crop: ``attention[i, j]`` is what patch i pays to patch j; ``entropy`` in bits."""
    a, n = attention.double().numpy(), len(attention)
    received = [math.fsum(a[:, j]) / n for j in range(n)]
    one = 1 / n if unit == "uniform" else math.fsum(received) / n
    queries = [j for j in range(n) if received[j] > threshold * one] or list(range(n))
    weights = [math.exp(h) for h in entropy.double().tolist()]
    return np.array(
        [
            math.fsum(a[k, j] for k in queries) / len(queries)
            + alpha * weights[j] / math.fsum(weights)
            for j in range(n)
        ]
    )


def entropy(picture: np.ndarray, patch: int) -> list[float]:
    """Entropy in bits of the grey values of each patch of an 8-bit ``[height, width]`` picture."""
    out = []
    for top in range(0, picture.shape[0], patch):
        for left in range(0, picture.shape[1], patch):
            values = picture[top : top + patch, left : left + patch].flatten().tolist()
            shares = [values.count(v) / len(values) for v in set(values)]
            out.append(-math.fsum(p * math.log2(p) for p in shares))
    return out


def places(geometry: Any) -> list[tuple[int, int, int]]:
    """Return (grid, row, column) of each patch: raster in the thumbnail, stitched in the tiles.

    As the release counts: walk along the sequence, where a newline ends each row of the mosaic.
    """
    out, row, col = [], 0, 0
    for tile, newline, r, c in zip(
        geometry.tile.tolist(),
        geometry.separator.tolist(),
        geometry.row.tolist(),
        geometry.col.tolist(),
    ):
        if tile == 0 and not newline:
            out.append((0, r, c))
        elif newline and tile:
            row, col = row + 1, 0
        elif tile:
            out.append((1, row, col))
            col += 1
    return out


def recycle(
    scores: list[float], count: int, where: list[tuple[int, int, int]], size: float
) -> tuple[list[int], dict[int, list[int]]]:
    """Return the kept tokens, and for each head of a cell the tokens it is the mean of.

    Removes one token after the other, least important first, until ``count`` are left.
    """
    worst_first = sorted(range(len(scores)), key=lambda i: (scores[i], -i))
    # As the package does: the size is a float32.
    side = float(np.float32(size))
    cell = [(grid, row // side, col // side) for grid, row, col in where]
    for m in range(len(scores) + 1):
        removed, groups = worst_first[:m], {}
        for i in removed:
            groups.setdefault(cell[i], []).append(i)
        heads = {members[-1]: members for members in groups.values()}
        if len(scores) - m + len(heads) == count:
            return sorted([*worst_first[m:], *heads]), heads
    highest = sorted(heads, key=lambda i: (-scores[i], i))[:count]
    return sorted(highest), {i: heads[i] for i in highest}


def blended(states: Tensor, heads: dict[int, list[int]], mass: list[float]) -> Tensor:
    """Return the states with every head replaced by the weighted mean of its cell's tokens."""
    out = states.clone()
    for head, members in heads.items():
        total = math.fsum(mass[i] for i in members)
        mean = sum(states[i].double() * (mass[i] / total) for i in members)
        out[head] = mean.to(states.dtype)
    return out
