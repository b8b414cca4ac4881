"""What the scorers that need no states promise: coverage, random and the tile prior."""

from dataclasses import replace

import pytest
import torch
from contexts import context, tiled
from pydantic import ValidationError

from prunetune.scorers import SCORERS, ScoreContext
from prunetune.tokens import frames_geometry, grid_geometry, top_indices

torch.set_num_threads(1)


def unevenness(scores: torch.Tensor, rows: int, cols: int) -> float:
    """Worst excess of kept tokens in any quadrant or half, over all counts."""
    place, worst = grid_geometry(rows, cols), 0.0
    low, left = place.row >= rows // 2, place.col < cols // 2
    regions = [low, ~low, left, ~left, low & left, low & ~left, ~low & left, ~low & ~left]
    for count in range(1, rows * cols):
        kept = top_indices(scores, count)
        for region in regions:
            share = float(region.float().mean()) * count
            worst = max(worst, abs(float(region[kept].sum()) - share))
    return worst


@pytest.mark.parametrize(
    ("rows", "cols", "bound"),
    [(8, 8, 1.5), (16, 16, 1.5), (24, 24, 2.5), (6, 10, 3.5), (27, 27, 6.5), (5, 31, 6.5)],
)
def test_coverage_spreads_any_count_over_the_picture(rows, cols, bound):
    scores = SCORERS.get("coverage")().score(context(grid_geometry(rows, cols)))
    assert unevenness(scores, rows, cols) <= bound


def test_evenness_can_fail():
    raster = -torch.arange(64.0)
    noise = torch.rand(24 * 24, generator=torch.Generator().manual_seed(0))
    assert unevenness(raster, 8, 8) > 10
    assert unevenness(noise, 24, 24) > 10


def test_coverage_alone_is_down_sampling():
    place = grid_geometry(8, 8)
    scores = SCORERS.get("coverage")().score(context(place))
    quarter = top_indices(scores, 16)
    assert len(set(place.row[quarter].tolist())) == len(set(place.col[quarter].tolist())) == 4
    assert set((place.row[quarter] % 2).tolist()) == set((place.col[quarter] % 2).tolist()) == {1}
    half = top_indices(scores, 32)
    assert set(((place.row + place.col)[half] % 2).tolist()) == {0}


def test_coverage_has_no_ties():
    scores = SCORERS.get("coverage")().score(context(tiled(5, 24, 24)))
    assert len(set(scores.tolist())) == 5 * 24 * 24


@pytest.mark.parametrize("tiles", [2, 3, 5])
def test_coverage_shares_the_count_among_tiles(tiles):
    ctx = context(tiled(tiles, 8, 8))
    scores = SCORERS.get("coverage")().score(ctx)
    for count in range(1, 64 * tiles):
        kept = ctx.geometry.tile[top_indices(scores, count)]
        counts = torch.bincount(kept, minlength=tiles)
        assert int(counts.max() - counts.min()) <= 1


@pytest.mark.parametrize("name", ["coverage", "random"])
def test_a_tokens_score_does_not_depend_on_who_is_alive(name):
    ctx, alive = context(), torch.arange(1, 72, 3)
    scorer = SCORERS.get(name)()
    later = replace(ctx, geometry=ctx.geometry.select(alive), layer=3)
    assert torch.equal(scorer.score(later), scorer.score(ctx)[alive])


def test_that_check_can_fail():
    ctx, alive = context(), torch.arange(1, 72, 3)
    topv = SCORERS.get("topv")()
    later = replace(
        ctx,
        geometry=ctx.geometry.select(alive),
        source_states=ctx.source_states[alive],
        target_states=ctx.target_states[alive],
    )
    assert not torch.equal(topv.score(later), topv.score(ctx)[alive])


def test_random_differs_by_image_by_seed_and_by_place():
    ctx, kind = context(tiled(5, 24, 24)), SCORERS.get("random")
    base = kind().score(ctx)
    assert not torch.equal(base, kind(seed=1).score(ctx))
    assert not torch.equal(base, kind().score(replace(ctx, image_seed=-1)))
    assert not torch.equal(base, kind().score(replace(ctx, image_seed=2**70)))
    assert len(set(base.tolist())) > 0.99 * len(ctx)


@pytest.mark.parametrize("seed", range(4))
def test_random_is_uniform_and_unrelated_to_place(seed):
    ctx = context(tiled(5, 24, 24))
    noise = SCORERS.get("random")(seed=seed).score(ctx)
    assert 0.0 <= float(noise.min()) <= float(noise.max()) < 1.0
    histogram = torch.histc(noise, bins=16, min=0.0, max=1.0)
    expected = len(ctx) / 16
    assert float(((histogram - expected) ** 2 / expected).sum()) < 37.7  # chi2, 15 d.o.f., p 0.001
    for axis in (ctx.geometry.row, ctx.geometry.col, ctx.geometry.tile):
        assert abs(float(torch.corrcoef(torch.stack([noise, axis.float()]))[0, 1])) < 0.08


def test_tile_prior_sets_the_thumbnail_apart():
    ctx = context()
    out = SCORERS.get("tile_prior")().importance(ctx)
    assert bool((out[ctx.geometry.tile == 0] > 0).all())
    assert bool((out[ctx.geometry.tile > 0] < 0).all())


def test_tile_prior_says_nothing_on_videos():
    """Every frame is a whole picture: the first is not their thumbnail."""
    scores = SCORERS.get("tile_prior")().score(context(frames_geometry(3, 2, 2)))
    assert len(scores.unique()) == 1


def test_tile_prior_says_nothing_on_one_view():
    one = ScoreContext(grid_geometry(4, 4), layer=0)
    assert not SCORERS.get("tile_prior")().importance(one).any()
    with pytest.raises(ValidationError, match="per_crop"):
        SCORERS.get("tile_prior")(per_crop=True)
