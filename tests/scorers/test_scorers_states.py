"""Scorers of states, keys and the question, against numbers worked out by hand."""

from dataclasses import replace

import pytest
import torch
from contexts import rank_correlation

from prunetune.scorers import ScoreContext, Scorer
from prunetune.scorers.feature_distance import FeatureDistance
from prunetune.scorers.key_norm import KeyNorm
from prunetune.scorers.text_relevance import TextRelevance
from prunetune.scorers.token_variation import TokenVariation
from prunetune.tokens import grid_geometry

torch.set_num_threads(1)
EVERY = [FeatureDistance, KeyNorm, TextRelevance, TokenVariation]
INPUTS = ("states", "source_states", "text", "keys")


def context(n: int = 72, dtype: torch.dtype = torch.float32, seed: int = 0) -> ScoreContext:
    dice = torch.Generator().manual_seed(seed)
    return ScoreContext(
        geometry=grid_geometry(1, n),
        layer=1,
        states=torch.randn(n, 16, generator=dice).to(dtype),
        source_states=torch.randn(n, 16, generator=dice).to(dtype),
        text=torch.randn(5, 16, generator=dice).to(dtype),
        keys=torch.randn(n, 2, 8, generator=dice).to(dtype),
    )


def small(**inputs: list) -> ScoreContext:
    n = len(next(iter(inputs.values())))
    return ScoreContext(
        grid_geometry(1, n), 1, **{name: torch.tensor(rows) for name, rows in inputs.items()}
    )


def test_distance_from_the_mean():
    ctx = small(states=[[0.0, 0.0], [6.0, 0.0], [0.0, 8.0], [2.0, 0.0]])
    assert FeatureDistance().score(ctx).tolist() == pytest.approx([8**0.5, 20**0.5, 40**0.5, 2.0])


def test_what_a_layer_changed():
    ctx = small(states=[[1.0, 1.0], [5.0, 5.0]], source_states=[[1.0, 1.0], [2.0, 1.0]])
    assert TokenVariation().score(ctx).tolist() == [0.0, 5.0]
    assert TokenVariation().importance(ctx).tolist() == pytest.approx([-1.0, 1.0])


def test_short_keys_first():
    ctx = small(keys=[[[3.0, 4.0], [0.0, 1.0]], [[0.0, 0.0], [0.0, 2.0]]])
    assert KeyNorm().score(ctx).tolist() == [-3.0, -1.0]


def test_likeness_to_the_mean_of_the_question():
    ctx = small(states=[[2.0, 0.0], [0.0, -3.0], [1.0, 1.0], [0.0, 0.0]])
    ctx = replace(ctx, text=torch.tensor([[4.0, 0.0], [-4.0, 6.0]]))
    assert TextRelevance().score(ctx).tolist() == pytest.approx([0.0, -1.0, 0.5**0.5, 0.0])


def test_an_empty_question_says_nothing():
    ctx = replace(context(), text=torch.zeros(0, 16))
    assert not TextRelevance().importance(ctx).any()
    assert TextRelevance().importance(context()).any()


def follows_the_tokens(scorer: Scorer) -> None:
    ctx, order = context(), torch.randperm(72, generator=torch.Generator().manual_seed(5))
    given = {f: getattr(ctx, f)[order] for f in INPUTS if f != "text"}
    shuffled = scorer.importance(replace(ctx, **given))
    torch.testing.assert_close(shuffled, scorer.importance(ctx)[order], rtol=1e-4, atol=1e-4)


def ignores_the_process(scorer: Scorer) -> None:
    ctx, expected = context(), scorer.importance(context())
    with torch.device("meta"), torch.autocast("cpu", torch.bfloat16):
        got = scorer.importance(ctx)
    assert got.device.type == "cpu"
    assert torch.equal(got, expected)
    assert all(torch.equal(getattr(ctx, f), getattr(context(), f)) for f in INPUTS)


class First(Scorer):
    name: str = "first"

    def score(self, ctx: ScoreContext) -> torch.Tensor:
        return torch.arange(float(len(ctx)))


@pytest.mark.parametrize("kind", EVERY)
@pytest.mark.parametrize("check", [follows_the_tokens, ignores_the_process])
def test_contract(kind, check):
    check(kind())


@pytest.mark.parametrize("check", [follows_the_tokens, ignores_the_process])
def test_the_contract_can_be_broken(check):
    with pytest.raises((AssertionError, RuntimeError, NotImplementedError)):
        check(First())


@pytest.mark.parametrize("kind", EVERY)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_ranks_alike(kind, dtype):
    out = kind().importance(context(dtype=dtype))
    assert out.dtype == torch.float32
    assert rank_correlation(out, kind().importance(context())) > 0.99


@pytest.mark.parametrize("kind", EVERY)
def test_many_rows_are_no_other_than_few(kind):
    """Two blocks of rows and a part of one."""
    ctx, scores = context(2500), kind().score(context(2500))
    assert scores.shape == (2500,)
    if kind is not FeatureDistance:
        tail = {f: getattr(ctx, f)[-3:] for f in INPUTS if f != "text"}
        short = replace(ctx, geometry=grid_geometry(1, 3), **tail)
        torch.testing.assert_close(kind().score(short), scores[-3:])


@pytest.mark.parametrize("kind", EVERY)
def test_says_what_it_needs(kind):
    assert kind().usable_at(1)
    assert kind().usable_at(0) is (kind in (FeatureDistance, TextRelevance))
    assert kind.summary
    with pytest.raises(ValueError, match=r"ScoreContext\.\w+: received None"):
        kind().score(ScoreContext(grid_geometry(2, 2), layer=1))
