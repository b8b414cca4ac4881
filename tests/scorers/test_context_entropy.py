"""VFlowOpt's importance: against a second implementation, and where the release goes wrong."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import by_hand
import numpy as np
import pytest
import torch
from contexts import context, mapped, rank_correlation, tiled
from hypothesis import given, settings
from hypothesis import strategies as st

from prunetune.families.base_configs import CLIP_PIXELS, SIGLIP_PIXELS
from prunetune.runtime.vision.tower import patch_entropy
from prunetune.scorers import SCORERS

torch.set_num_threads(1)
ContextEntropy = SCORERS.get("context_entropy")


def expected(ctx, threshold, alpha, unit="uniform"):
    views = [
        by_hand.importance(a, h, threshold, alpha, unit)
        for a, h in zip(ctx.vision_map, ctx.patch_entropy, strict=True)
    ]
    place = ctx.geometry
    return torch.tensor(np.stack(views))[place.tile, place.row * place.tile_cols + place.col]


@settings(max_examples=60)
@given(
    seed=st.integers(0, 2**31),
    tiles=st.integers(1, 3),
    threshold=st.sampled_from([0.0, 0.5, 1.0, 1.3, 2.0, 30.0]),
    alpha=st.floats(-1.0, 1.0),
)
def test_equals_the_paper_written_token_by_token(seed, tiles, threshold, alpha):
    ctx = context(tiled(tiles, 3, 5), seed=seed)
    score = ContextEntropy(threshold=threshold, alpha=alpha).score(ctx)
    torch.testing.assert_close(
        score.double(), expected(ctx, threshold, alpha), rtol=1e-5, atol=1e-7
    )


@pytest.mark.parametrize("change", ["threshold", "alpha", "transposed"])
def test_the_comparison_can_fail(change):
    ctx = context()
    settings = {"threshold": 1.0, "alpha": 0.5} | ({change: 1.3} if change != "transposed" else {})
    if change == "transposed":
        ctx = replace(ctx, vision_map=ctx.vision_map.mT)
    score = ContextEntropy(**settings).score(ctx).double()
    assert not torch.allclose(score, expected(context(), 1.0, 0.5), rtol=1e-3)


def without_cls(seed=0, share=0.3):
    """Maps that a CLS token, dropped, takes a part of: about ``share``, another in each view."""
    ctx = context(seed=seed)
    dice = torch.Generator().manual_seed(seed)
    left = 1 - 2 * share * torch.rand(len(ctx.vision_map), 1, 1, generator=dice)
    return replace(ctx, vision_map=ctx.vision_map * left)


@settings(max_examples=40)
@given(seed=st.integers(0, 2**31), threshold=st.sampled_from([0.5, 1.0, 1.3, 2.0]))
def test_the_unit_of_the_threshold_is_what_a_patch_receives_on_average(seed, threshold):
    """As in the release; a CLS token that is dropped keeps its share of the attention."""
    ctx = without_cls(seed)
    for unit in ("mean", "uniform"):
        score = ContextEntropy(threshold=threshold, unit=unit).score(ctx)
        torch.testing.assert_close(
            score.double(), expected(ctx, threshold, 0.0, unit), rtol=1e-5, atol=1e-7
        )


def test_the_units_differ_where_a_cls_token_is_dropped_and_only_there():
    for ctx, same in ((without_cls(), False), (context(), True)):
        scores = [ContextEntropy(threshold=1.3, unit=u).score(ctx) for u in ("mean", "uniform")]
        assert torch.allclose(*scores, rtol=1e-5) is same


def test_what_version_1_means_is_written_as_ever():
    """Its bytes hold no newer field, and it stays of version 1; a search writes the newer ones."""
    plain = ContextEntropy(threshold=2.0)
    assert plain.since == 1
    assert set(json.loads(plain.model_dump_json())) == {
        "name", "weight", "per_crop", "threshold", "alpha",
    }  # fmt: skip
    for field, value in ContextEntropy.searched.items():
        newer = ContextEntropy(**{field: value})
        assert newer.since == 2
        assert json.loads(newer.model_dump_json())[field] == value
        assert ContextEntropy.model_validate_json(newer.model_dump_json()) == newer


def test_without_a_patch_above_the_threshold_all_patches_are_queries():
    """The release divides by the size of the empty set, and the crop sorts as NaN."""
    ctx = context()
    received = ctx.vision_map.mean(1)
    peaks = received.amax(1) * received.shape[1]
    threshold = float(peaks.sort().values[:2].mean())
    score = ContextEntropy(threshold=threshold).score(ctx)
    assert torch.isfinite(score).all()
    alone = ctx.geometry.tile == peaks.argmin()
    flat = received[ctx.geometry.tile, ctx.geometry.inside]
    torch.testing.assert_close(score[alone], flat[alone])
    assert not torch.allclose(score[~alone], flat[~alone])


def test_both_terms_sum_to_one_over_a_crop():
    """With a sum over K, as the paper prints it, no alpha in [-1, 1] would count."""
    for alpha in (0.0, 0.5, -0.5):
        score = ContextEntropy(threshold=1.0, alpha=alpha).score(context())
        assert score.view(3, -1).sum(1).tolist() == pytest.approx([1 + alpha] * 3, rel=1e-5)


def test_alpha_moves_the_ranking_towards_the_entropy():
    ctx = context()
    entropy = ctx.patch_entropy.flatten()
    ranks = [
        rank_correlation(ContextEntropy(alpha=a).score(ctx), entropy) for a in (-1.0, 0.0, 1.0)
    ]
    assert ranks[0] < -0.3
    assert -0.3 < ranks[1] < 0.3
    assert ranks[2] > 0.3


def test_a_token_keeps_its_score_whatever_else_is_alive():
    """One static map: a later stage ranks the survivors by the same numbers."""
    ctx, alive = context(), torch.tensor([1, 5, 6, 23, 24, 50, 70])
    scorer = ContextEntropy(threshold=1.2, alpha=0.3)
    assert torch.equal(scorer.score(mapped(ctx, lambda t: t[alive])), scorer.score(ctx)[alive])


def test_under_autocast_it_stays_in_full_precision():
    ctx, scorer = context(), ContextEntropy(alpha=0.3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(scorer.score(ctx), scorer.score(context()))
        inside = scorer.score(ctx)
    assert torch.equal(inside, scorer.score(ctx))


@pytest.mark.parametrize(("mean", "std"), [CLIP_PIXELS, SIGLIP_PIXELS], ids=["clip", "siglip"])
def test_entropy_is_that_of_the_picture_before_normalising(mean, std):
    dice = np.random.default_rng(0)
    picture = dice.integers(0, 256, (8, 12)) // dice.choice([1, 16, 64], (8, 12))
    grey = torch.tensor(picture, dtype=torch.float32).div(255).expand(1, 3, 8, 12)
    statistics = [torch.tensor(s).view(1, 3, 1, 1) for s in (mean, std)]
    pixels = (grey - statistics[0]) / statistics[1]
    measured = patch_entropy(pixels, 2, 3, mean, std)
    assert measured[0].tolist() == pytest.approx(by_hand.entropy(picture, 4), abs=1e-5)


def test_normalised_pixels_would_wrap_around():
    """What the release does: normalised values times 255, cast to 8 bits; two tones become one."""
    mean, std = SIGLIP_PIXELS
    picture = np.array([[0, 128] * 4] * 8)
    pixels = (torch.tensor(picture).div(255) - mean[0]) / std[0]
    measured = patch_entropy(pixels.expand(1, 3, 8, 8), 1, 1, mean, std)
    assert measured.item() == pytest.approx(1.0)
    wrapped = (pixels * 255).round().to(torch.int64).numpy() % 256
    assert by_hand.entropy(wrapped, 8) == [0.0]


def test_entropy_of_a_flat_patch_and_of_one_with_all_values():
    flat = torch.zeros(1, 3, 32, 16)
    flat[:, :, :16] = torch.arange(256).view(16, 16) / 255
    assert patch_entropy(flat, 2, 1, (0.0,) * 3, (1.0,) * 3)[0].tolist() == pytest.approx([8, 0])


MEASURE = """
import torch
from prunetune.scorers import SCORERS, ScoreContext
from prunetune.tokens import grid_geometry
torch.set_num_threads(1)
def memory(field):
    return next(int(l.split()[1]) for l in open("/proc/self/status") if l.startswith(field)) // 1024
def growth(rows, cols, copied):
    n = rows * cols
    ctx = ScoreContext(
        grid_geometry(rows, cols), 0,
        vision_map=torch.full((1, n, n), 1 / n), patch_entropy=torch.ones(1, n),
    )
    open("/proc/self/clear_refs", "w").write("5")
    before = memory("VmRSS")
    SCORERS.get("context_entropy")(alpha=0.5).score(ctx)
    waste = ctx.vision_map * 2 if copied else None
    return memory("VmHWM") - before
growth(4, 4, False)
print(growth(64, 128, False), growth(64, 128, True))
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux")
def test_scratch_memory_is_bounded():
    """8,192 patches in one view, whose map is 256 MiB; one copy of it shows the measure works."""
    done = subprocess.run(
        [sys.executable, "-c", MEASURE], capture_output=True, text=True, check=True, timeout=120
    )
    lean, copied = map(int, done.stdout.split())
    assert lean < 64
    assert copied > 200
