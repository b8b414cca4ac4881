"""What scorers and restorers are tested on: made-up images of several tiles."""

from dataclasses import fields, replace
from typing import Any

import torch

from prunetune.scorers import ScoreContext
from prunetune.tokens import ImageGeometry, grid_geometry


def tiled(tiles: int, rows: int, cols: int) -> ImageGeometry:
    view = grid_geometry(rows, cols)
    parts = {f.name: getattr(view, f.name).repeat(tiles) for f in fields(ImageGeometry)}
    parts["tile"] = torch.arange(tiles).repeat_interleave(rows * cols)
    return ImageGeometry(**parts)


def context(geometry: ImageGeometry | None = None, seed: int = 0, width: int = 16) -> ScoreContext:
    geometry = tiled(3, 6, 4) if geometry is None else geometry
    n, dice = len(geometry), torch.Generator().manual_seed(seed)
    views, patches = int(geometry.tile.max()) + 1, int(geometry.inside.max()) + 1
    return ScoreContext(
        geometry=geometry,
        layer=1,
        vision_attention=torch.rand(n, generator=dice) / n,
        source_states=torch.randn(n, width, generator=dice),
        target_states=torch.randn(n, width, generator=dice),
        last_query=torch.rand(n, generator=dice) / n,
        image_seed=1234567,
        vision_map=(2 * torch.randn(views, patches, patches, generator=dice)).softmax(-1),
        patch_entropy=torch.rand(views, patches, generator=dice) * 8,
        states=torch.randn(n, width, generator=dice),
        text=torch.randn(5, width, generator=dice),
        keys=torch.randn(n, 2, width // 2, generator=dice),
    )


NOT_PER_TOKEN = frozenset({"vision_map", "patch_entropy", "text"})


def mapped(ctx: ScoreContext, change: Any, view: Any = lambda tensor: tensor) -> ScoreContext:
    """Apply ``change`` to every tensor with one entry a token, ``view`` to the others."""
    tensors = {f.name: getattr(ctx, f.name) for f in fields(ctx)}
    new = {
        k: (view if k in NOT_PER_TOKEN else change)(v)
        for k, v in tensors.items()
        if isinstance(v, torch.Tensor)
    }
    place = {f.name: change(getattr(ctx.geometry, f.name)) for f in fields(ctx.geometry)}
    return replace(ctx, geometry=ImageGeometry(**place), **new)


def rank_correlation(a: torch.Tensor, b: torch.Tensor) -> float:
    ranks = torch.stack([a.argsort().argsort().double(), b.argsort().argsort().double()])
    return float(torch.corrcoef(ranks)[0, 1])
