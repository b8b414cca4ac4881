"""TopV against a dense float64 reference, its traps, and its memory."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from contexts import context, mapped, rank_correlation, tiled
from hypothesis import given, settings
from hypothesis import strategies as st

from prunetune.scorers import SCORERS, ScoreContext
from prunetune.scorers import topv as module
from prunetune.tokens import grid_geometry, top_indices

torch.set_num_threads(1)
TopV = SCORERS.get("topv")
SOLVERS = ["semi_relaxed", "end_on_v", "literal"]


def kernel(scorer, s, t, row, col, rows, cols):
    """Return K as printed in the paper, with unit-length states; float64, ``[n, n]``."""
    feature = torch.cdist(s / s.norm(dim=1, keepdim=True), t / t.norm(dim=1, keepdim=True)) ** 2
    square = (row[:, None] - row[None]) ** 2 + (col[:, None] - col[None]) ** 2
    spatial = 1 - torch.exp(-square / (2 * scorer.sigma**2))
    central = torch.hypot(row - (rows - 1) / 2, col - (cols - 1) / 2)[:, None]
    cost = scorer.feature * feature + scorer.spatial * spatial + scorer.central * central
    return torch.exp(-cost / scorer.epsilon)


def row_sums(scorer, k, p, q):
    if scorer.solver == "semi_relaxed":
        return (k / k.sum(0) * q).sum(1)
    u, v = torch.ones_like(p), torch.ones_like(q)
    for _ in range(scorer.iterations):
        if scorer.solver == "end_on_v":
            u = p / (k @ v)
            v = q / (k.T @ u)
        else:
            v = q / (k.T @ torch.exp(u / scorer.epsilon))
            u = p / (k @ torch.exp(v / scorer.epsilon))
    return u * (k @ v)


def reference(scorer: object, ctx: ScoreContext) -> torch.Tensor:
    out, place = torch.empty(len(ctx), dtype=torch.float64), ctx.geometry
    for tile in place.tile.unique():
        own = (place.tile == tile).nonzero().flatten()
        s, t = ctx.source_states[own].double(), ctx.target_states[own].double()
        rows, cols = int(place.tile_rows[own[0]]), int(place.tile_cols[own[0]])
        k = kernel(scorer, s, t, place.row[own].double(), place.col[own].double(), rows, cols)
        p, q = s.norm(dim=1), t.norm(dim=1)
        mass = row_sums(scorer, k, p / p.sum(), q / q.sum())
        out[own] = mass / mass.sum() * len(own)
    return out


def assert_agrees(scorer, ctx, tolerance=2e-3):
    expected, got = reference(scorer, ctx), scorer.score(ctx).double()
    torch.testing.assert_close(got.log(), expected.log(), rtol=0, atol=tolerance)


def uneven(seed=0):
    """An image of which every tile has lost another number of tokens."""
    ctx = context(tiled(3, 6, 5), seed=seed)
    alive = torch.randperm(90, generator=torch.Generator().manual_seed(seed))[:61].sort().values
    return mapped(ctx, lambda t: t[alive])


SETTINGS = [
    {},
    {"feature": -0.7, "spatial": 0.4, "central": -0.15},
    {"feature": 0.0, "central": 0.1},
    {"spatial": 0.0, "epsilon": 0.5},
    {"sigma": 2.0, "epsilon": 0.4},
]


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("fields", SETTINGS, ids=str)
@pytest.mark.parametrize("make", [context, uneven, lambda: context(grid_geometry(7, 9))])
def test_agrees_with_the_dense_reference(solver, fields, make):
    if solver == "literal":
        fields = fields | {"epsilon": 1.0}
    assert_agrees(TopV(solver=solver, **fields), make())


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("make", [context, uneven])
def test_chunks_change_nothing(solver, make, monkeypatch):
    scorer = TopV(solver=solver, epsilon=0.5)
    whole = scorer.score(make())
    monkeypatch.setattr(module, "_LIMIT", 16 * 7)
    assert len(module._slices(torch.empty(1, 24), 24)) > 4
    torch.testing.assert_close(scorer.score(make()), whole, rtol=1e-4, atol=1e-6)
    assert_agrees(scorer, make())


@pytest.mark.parametrize("changed", [{"feature": 0.9}, {"spatial": 0.8}, {"central": 0.03}])
def test_the_comparison_with_the_reference_can_fail(changed):
    ctx, scorer = context(), TopV()
    with pytest.raises(AssertionError):
        torch.testing.assert_close(
            TopV(**changed).score(ctx).double().log(),
            reference(scorer, ctx).log(),
            rtol=0,
            atol=2e-3,
        )


def textbook(scorer, ctx, rounds=3):
    """Sinkhorn ended on the row scaling: the trap."""
    s, t = ctx.source_states.double(), ctx.target_states.double()
    place = ctx.geometry
    k = kernel(scorer, s, t, place.row.double(), place.col.double(), 8, 8)
    p, q = s.norm(dim=1), t.norm(dim=1)
    p, q = p / p.sum(), q / q.sum()
    v = torch.ones_like(q)
    for _ in range(rounds):
        u = p / (k @ v)
        v, last = q / (k.T @ u), v
    return u * (k @ last)


def test_the_textbook_solver_would_ignore_the_cost():
    ctx = context(grid_geometry(8, 8))
    norm = ctx.source_states.norm(dim=1)
    for central in (0.0, 0.1):
        trapped = textbook(TopV(central=central), ctx)
        assert rank_correlation(trapped, norm) > 0.9999
        torch.testing.assert_close(trapped, (norm / norm.sum()).double(), rtol=1e-5, atol=0)


@pytest.mark.parametrize("solver", SOLVERS)
def test_importance_is_not_the_norm(solver):
    ctx = context(grid_geometry(8, 8))
    score = TopV(solver=solver).score(ctx)
    assert abs(rank_correlation(score, ctx.source_states.norm(dim=1))) < 0.95


def test_central_weight_changes_the_ranking():
    ctx = context(grid_geometry(8, 8))
    off, on = (TopV(central=weight).score(ctx) for weight in (0.0, 0.1))
    assert rank_correlation(off, on) < 0.9
    place = ctx.geometry
    distance = torch.hypot(place.row - 3.5, place.col - 3.5)
    kept = [distance[top_indices(score, 16)].mean() for score in (off, on)]
    assert kept[1] < kept[0] - 0.5


def test_published_settings_are_allowed():
    assert TopV(feature=1, spatial=1, central=0.1, sigma=10, epsilon=0.1).central == 0.1
    assert TopV() == TopV(feature=1, spatial=1, central=0.01, sigma=10, epsilon=0.1)


@settings(deadline=None, max_examples=40)
@given(
    solver=st.sampled_from(SOLVERS),
    cost=st.tuples(*[st.floats(-10, 10)] * 3),
    epsilon=st.sampled_from([0.001, 0.02, 0.1, 1.0, 100.0]),
    scale=st.sampled_from([0.0, 1e-6, 1.0, 3e4]),
)
def test_finite_at_every_allowed_setting(solver, cost, epsilon, scale):
    ctx = uneven()
    ctx = replace(ctx, source_states=ctx.source_states * scale)
    f, s, c = cost
    scorer = TopV(solver=solver, feature=f, spatial=s, central=c, epsilon=epsilon)
    assert torch.isfinite(scorer.importance(ctx)).all()


def test_every_tile_has_mean_1():
    ctx = uneven()
    score = TopV().score(ctx)
    for tile in range(3):
        assert float(score[ctx.geometry.tile == tile].mean()) == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_and_gradients_change_nothing(dtype):
    ctx, scorer = context(), TopV()
    needy = replace(ctx, source_states=ctx.source_states.requires_grad_())
    with torch.autocast("cpu", dtype=dtype):
        assert torch.bmm(torch.ones(1, 2, 2), torch.ones(1, 2, 2)).dtype == dtype
        score = scorer.score(needy)
    assert not score.requires_grad
    assert torch.equal(score, scorer.score(context()))


MEASURE = """
import sys, torch
from prunetune.scorers import ScoreContext, topv
from prunetune.tokens import grid_geometry
torch.set_num_threads(1)
def memory(field):
    return next(int(l.split()[1]) for l in open("/proc/self/status") if l.startswith(field)) // 1024
def growth(rows, cols, width, limit):
    topv._LIMIT = limit
    n = rows * cols
    states = [torch.ones(n, width, dtype=torch.bfloat16) for _ in "st"]
    place = grid_geometry(rows, cols)
    ctx = ScoreContext(place, 1, source_states=states[0], target_states=states[1])
    open("/proc/self/clear_refs", "w").write("5")
    before = memory("VmRSS")
    topv.TopV().score(ctx)
    return memory("VmHWM") - before
growth(4, 4, 8, topv._LIMIT)
limit = topv._LIMIT
print(growth(64, 128, 16, limit), growth(8, 16, 1 << 18, limit), growth(64, 128, 16, 1 << 40))
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux")
def test_scratch_memory_is_bounded():
    """8,192 tokens; 128 very wide ones; and 8,192 unchunked, to show that the measure can fail."""
    done = subprocess.run(
        [sys.executable, "-c", MEASURE], capture_output=True, text=True, check=True, timeout=120
    )
    many, wide, dense = map(int, done.stdout.split())
    assert many < 256
    assert wide < 256
    assert dense > 256
