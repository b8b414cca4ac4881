"""The selectors' formulas a second time, in float64, one candidate after the other, and made-up
images to try them on."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from prunetune.selectors import SelectContext
from prunetune.tokens import ImageGeometry, grid_geometry

Gain = Callable[[list[int], int], float]


def image(
    rows: int = 6,
    cols: int = 7,
    width: int = 48,
    seed: int = 0,
    place: ImageGeometry | None = None,
    dtype: torch.dtype = torch.float32,
) -> SelectContext:
    """Clusters of states around a mean that all share, and scores without ties."""
    dice = torch.Generator().manual_seed(seed)
    place = grid_geometry(rows, cols) if place is None else place
    n = len(place)
    centres = torch.randn(9, width, generator=dice)
    states = centres[torch.randint(9, (n,), generator=dice)]
    states = states + 0.6 * torch.randn(n, width, generator=dice)
    return SelectContext(
        features=(states + 2.0 * torch.randn(width, generator=dice)).to(dtype),
        scores=torch.randn(n, generator=dice),
        geometry=place,
        text=torch.randn(5, width, generator=dice).to(dtype),
        importances={name: torch.randn(n, generator=dice) for name in ("one", "two")},
    )


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b) / math.sqrt(float(a @ a) * float(b @ b))


def similar(ctx: SelectContext, centred: bool) -> np.ndarray:
    x = ctx.features.double().numpy()
    x = x - x.mean(0) if centred else x
    return np.array([[cosine(a, b) for b in x] for a in x])


def scaled(ctx: SelectContext) -> list[float]:
    q = ctx.scores.tolist()
    return [(v - min(q)) / (max(q) - min(q)) for v in q]


def cover(ctx: SelectContext, s: Any) -> Gain:
    c, n = similar(ctx, s.centred), len(ctx)
    q = ctx.scores.tolist()
    y, x = ctx.geometry.y.tolist(), ctx.geometry.x.tolist()
    rows = []
    for i in range(n):
        if s.kernel == "cosine":
            row = [max(c[i, j], 0.0) ** s.power for j in range(n)]
        else:
            away = [(y[i] - y[j]) ** 2 + (x[i] - x[j]) ** 2 for j in range(n)]
            row = [math.exp(-((1 - c[i, j]) + s.spatial * away[j]) / s.tau) for j in range(n)]
        if s.kernel == "softmax":
            row = [v / math.fsum(row) for v in row]
        demand = math.exp(s.delta * q[i]) / math.fsum(math.exp(s.delta * v) for v in q)
        rows.append((demand, row))
    if s.text:
        states = ctx.features.double().numpy()
        for z in ctx.text.double().numpy():
            row = [math.exp(cosine(z, v) / s.text_tau) for v in states]
            rows.append((s.text / len(ctx.text), [v / math.fsum(row) for v in row]))

    def gain(kept: list[int], j: int) -> float:
        so_far = [max((row[k] for k in kept), default=0.0) for _, row in rows]
        more = [w * max(row[j] - b, 0.0) for (w, row), b in zip(rows, so_far, strict=True)]
        return math.exp(s.beta * (q[j] - max(q))) * math.fsum(more)

    return gain


def dpp(ctx: SelectContext, s: Any) -> Gain:
    c, share = similar(ctx, s.centred), scaled(ctx)
    if s.relevance == "exp":
        r = [math.exp(s.theta / (2 * (1 - s.theta)) * v) for v in share]
    else:
        r = [v + 1e-6 / (max(ctx.scores.tolist()) - min(ctx.scores.tolist())) for v in share]
    kernel = np.diag(r) @ c @ np.diag(r)

    def volume(kept: list[int]) -> float:
        return float(np.linalg.slogdet(kernel[np.ix_(kept, kept)])[1]) if kept else 0.0

    return lambda kept, j: volume([*kept, j]) - volume(kept)


def maxmin(ctx: SelectContext, s: Any) -> Gain:
    c, q = similar(ctx, s.centred), ctx.scores.tolist()

    def gain(kept: list[int], j: int) -> float:
        if kept:
            return min(1 - c[j, k] for k in kept) + s.alpha * q[j]
        if s.first == "isolated":
            return min(1 - c[j, k] for k in range(len(q)) if k != j)
        return q[j]

    return gain


def mmr(ctx: SelectContext, s: Any) -> Gain:
    c, share = similar(ctx, s.centred), scaled(ctx)

    def gain(kept: list[int], j: int) -> float:
        if not kept:
            return share[j]
        return s.relevance * share[j] - (1 - s.relevance) * max(c[j, k] for k in kept)

    return gain


def top(ctx: SelectContext, s: Any) -> Gain:
    return lambda kept, j: float(ctx.scores[j])


def distinct(ctx: SelectContext, s: Any, count: int) -> list[int]:
    """The row of patches that is left, in order."""
    c = similar(ctx, s.centred)
    row = sorted(range(len(ctx)), key=lambda i: -float(ctx.scores[i]))
    while len(row) > count:
        even, odd = row[0::2], row[1::2]
        even = sorted(even, key=lambda i: -max(c[i, j] for j in odd))
        row = even[min(s.step, len(row) - count, len(odd)) :] + odd
    return row
