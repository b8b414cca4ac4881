"""Contract of every scorer in the table, and what the small ones promise."""

from dataclasses import fields, replace
from typing import Literal

import pytest
import torch
from contexts import context, mapped, rank_correlation, tiled
from pydantic import ValidationError

from prunetune.scorers import SCORERS, ScoreContext, Scorer, Tunable
from prunetune.scorers.base import LAYER_NEEDS
from prunetune.tokens import grid_geometry, top_indices

torch.set_num_threads(1)
EVERY = list(SCORERS)


def repeats(scorer: Scorer) -> None:
    first = scorer.importance(context())
    torch.rand(7)  # Whoever draws from the global generator is now elsewhere in its stream.
    assert torch.equal(first, scorer.importance(context()))


def leaves_the_context_alone(scorer: Scorer) -> None:
    ctx = context()
    scorer.importance(ctx)
    before, after = [], []
    mapped(context(), *[lambda t: before.append(t.clone()) or t] * 2)
    mapped(ctx, *[lambda t: after.append(t) or t] * 2)
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def is_finite_and_one_per_token(scorer: Scorer) -> None:
    for geometry in (tiled(1, 1, 1), tiled(1, 5, 3), tiled(2, 4, 4), tiled(3, 6, 4)):
        for out in (scorer.score(context(geometry)), scorer.importance(context(geometry))):
            assert out.shape == (len(geometry),)
            assert out.dtype == torch.float32
            assert torch.isfinite(out).all()


def follows_the_tokens(scorer: Scorer) -> None:
    ctx, order = context(), torch.randperm(72, generator=torch.Generator().manual_seed(5))
    shuffled = scorer.importance(mapped(ctx, lambda t: t[order]))
    torch.testing.assert_close(shuffled, scorer.importance(ctx)[order], rtol=1e-4, atol=1e-4)


class Broken(Scorer):
    name: Literal["broken"] = "broken"
    how: str

    def score(self, ctx: ScoreContext) -> torch.Tensor:
        out = ctx.given("vision_attention")
        if self.how == "repeats":
            return torch.rand(len(ctx))
        if self.how == "leaves_the_context_alone":
            return out.add_(1.0)
        if self.how == "is_finite_and_one_per_token":
            return out / 0.0
        return torch.arange(float(len(ctx)))


CONTRACT = [repeats, leaves_the_context_alone, is_finite_and_one_per_token, follows_the_tokens]


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("check", CONTRACT, ids=lambda check: check.__name__)
def test_contract(name, check):
    check(SCORERS.get(name)())


@pytest.mark.parametrize("check", CONTRACT, ids=lambda check: check.__name__)
def test_every_contract_check_can_fail(check):
    with pytest.raises(AssertionError):
        check(Broken(how=check.__name__))


@pytest.mark.parametrize("name", EVERY)
def test_standardised_over_the_image(name):
    out = SCORERS.get(name)().importance(context())
    assert abs(float(out.mean())) < 1e-5
    assert abs(float(out.pow(2).mean()) - 1.0) < 1e-4


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_inputs_rank_alike(name, dtype):
    ctx, scorer = context(), SCORERS.get(name)()
    tensors = {f.name: getattr(ctx, f.name) for f in fields(ctx)}
    half = {k: v.to(dtype) for k, v in tensors.items() if torch.is_tensor(v)}
    assert half.keys() >= {"source_states", "vision_attention", "vision_map", "patch_entropy"}
    out = scorer.importance(replace(ctx, **half))
    assert out.dtype == torch.float32
    assert rank_correlation(out, scorer.importance(ctx)) > 0.99
    assert rank_correlation(out, out.roll(1)) < 0.99


@pytest.mark.parametrize("name", EVERY)
def test_one_token_is_not_an_error(name):
    assert SCORERS.get(name)().importance(context(tiled(1, 1, 1))).tolist() == [0.0]


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("cls_attention", {}),
        ("last_query", {}),
        ("topv", {"spatial": 0.0, "central": 0.0}),
        ("context_entropy", {"alpha": 0.5}),
    ],
)
@pytest.mark.parametrize("value", [0.0, 1e-6, 0.3])
def test_equal_tokens_are_equally_important(name, settings, value):
    ctx, scorer = context(), SCORERS.get(name)(**settings)
    tensors = {f.name: getattr(ctx, f.name) for f in fields(ctx)}
    floats = {k: torch.full_like(v, value) for k, v in tensors.items() if torch.is_tensor(v)}
    assert not scorer.importance(replace(ctx, **floats)).any()
    assert scorer.importance(ctx).any()


@pytest.mark.parametrize(("noise", "ranked"), [(1e-6, False), (1e-3, True)])
def test_rounding_noise_is_not_a_ranking(noise, ranked):
    """Scores around 1 have logarithms around 0, where any relative tolerance is too small."""
    attention = 1.0 + noise * torch.rand(72, generator=torch.Generator().manual_seed(0))
    ctx = replace(context(), vision_attention=attention)
    assert bool(SCORERS.get("cls_attention")().importance(ctx).any()) is ranked


@pytest.mark.parametrize("name", sorted(set(EVERY) - {"tile_prior"}))
@pytest.mark.parametrize("count", [3, 18, 33])
def test_per_crop_keeps_the_same_share_of_every_crop(name, count):
    ctx = context()
    loud = 1.0 + 50.0 * (ctx.geometry.tile == 1)
    views = 1.0 + 50.0 * (torch.arange(3) == 1)[:, None, None]
    ctx = replace(
        ctx,
        vision_attention=ctx.vision_attention * loud,
        vision_map=ctx.vision_map * views,
    )
    kept = top_indices(SCORERS.get(name)(per_crop=True).importance(ctx), count)
    assert torch.bincount(ctx.geometry.tile[kept], minlength=3).tolist() == [count // 3] * 3


def test_without_per_crop_a_loud_crop_takes_more():
    ctx = context()
    loud = 1.0 + 50.0 * (ctx.geometry.tile == 1)
    ctx = replace(ctx, vision_attention=ctx.vision_attention * loud)
    kept = top_indices(SCORERS.get("cls_attention")().importance(ctx), 18)
    assert int((ctx.geometry.tile[kept] == 1).sum()) > 12


@pytest.mark.parametrize("name", EVERY)
def test_usable_at_layer_0_unless_it_needs_a_decoder_layer(name):
    kind = SCORERS.get(name)
    assert kind().usable_at(0) is not bool(kind.needs & LAYER_NEEDS)
    assert kind().usable_at(1)


@pytest.mark.parametrize("name", EVERY)
def test_describes_itself_and_round_trips(name):
    kind = SCORERS.get(name)
    assert kind().name == name
    assert kind.summary
    assert kind.model_validate_json(kind(weight=-0.25).model_dump_json()) == kind(weight=-0.25)
    with pytest.raises(ValidationError):
        kind(weight=1.5)


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("unit", [0.0, 0.5, 1.0])
def test_every_tunable_value_is_allowed(name, unit):
    kind = SCORERS.get(name)
    ranges = {
        field: mark
        for field, info in kind.model_fields.items()
        for mark in info.metadata
        if isinstance(mark, Tunable)
    }
    kind(**{field: mark.decode(unit) for field, mark in ranges.items()})
    assert all(mark.shown for mark in ranges.values())


@pytest.mark.parametrize(
    "name", [name for name in EVERY if SCORERS.get(name).needs - {"image_seed"}]
)
def test_a_missing_input_is_named(name):
    with pytest.raises(ValueError, match=r"ScoreContext\.\w+: received None"):
        SCORERS.get(name)().score(ScoreContext(grid_geometry(2, 2), layer=1))
