"""Each selector against its formula, written a second time in `selector_naive`."""

from dataclasses import replace

import pytest
import selector_naive as naive
import torch
from pydantic import ValidationError
from selector_naive import image

from prunetune.selectors import SELECTORS, SelectContext, Selector, base_covering, cover, dpp
from prunetune.selectors.base_similarity import cosines, cross_cosines, minmax
from prunetune.selectors.quota import Quota
from prunetune.tokens import grid_geometry, top_indices

torch.set_num_threads(1)
CASES = [
    ("top", {}),
    ("cover", {}),
    ("cover", {"spatial": 0.0, "tau": 0.1, "centred": True}),
    ("cover", {"beta": 0.7, "delta": 0.9}),
    ("cover", {"kernel": "softmax", "tau": 0.2, "text": 2.0, "text_tau": 0.05}),
    ("cover", {"kernel": "cosine", "power": 2.0, "centred": True, "beta": 0.3}),
    ("dpp", {}),
    ("dpp", {"theta": 0.9}),
    ("dpp", {"relevance": "linear", "centred": False}),
    ("maxmin", {}),
    ("maxmin", {"alpha": 0.4}),
    ("maxmin", {"first": "isolated", "centred": False}),
    ("mmr", {}),
    ("mmr", {"relevance": 0.125, "centred": False}),
]


def is_greedy(name: str, settings: dict, seed: int, count: int = 14) -> None:
    """Nobody else would have gained more, at any step, as far as rounding can tell."""
    ctx, selector = image(seed=seed), SELECTORS.get(name)(**settings)
    gain, kept = getattr(naive, name)(ctx, selector), []
    for j in selector.order(ctx, count).tolist():
        assert j not in kept
        gains = [gain(kept, i) if i not in kept else float("-inf") for i in range(len(ctx))]
        assert gains[j] >= max(gains) - 2e-5 * max(1.0, abs(max(gains)))
        kept.append(j)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(("name", "settings"), CASES)
def test_is_greedy_on_its_formula(name, settings, seed):
    is_greedy(name, settings, seed)


BUGS = {
    "the square of the distance forgotten": (
        ("cover", {}),
        (torch.Tensor, "square_", lambda t: t.sqrt_() if t.min() > 0 else t.abs_()),
    ),
    "coverage of the last one only": (
        ("cover", {}),
        (torch, "maximum", lambda a, b, out=None: b if out is None else out.copy_(b)),
    ),
    "scores not scaled": (("mmr", {}), ("prunetune.selectors.mmr", "minmax", lambda q: q)),
    "mean not taken off": (
        ("maxmin", {}),
        ("prunetune.selectors.base", "cosines", lambda x, m, out: cosines(x, None, out)),
    ),
    "kept ones not projected out": (
        ("dpp", {}),
        (torch.Tensor, "rsqrt", lambda t: t * 0.0),
    ),
    "weight not squared": (("dpp", {"theta": 0.9}), (torch.Tensor, "exp", lambda t: 1 + 0 * t)),
    "question ignored": (
        ("cover", {"text": 5.0, "text_tau": 0.02}),
        ("prunetune.selectors.cover", "cross_cosines", lambda z, x: 0 * cross_cosines(z, x)),
    ),
}


@pytest.mark.parametrize("bug", list(BUGS))
def test_a_planted_bug_turns_it_red(monkeypatch, bug):
    case, (owner, attribute, change) = BUGS[bug]
    target = (f"{owner}.{attribute}",) if isinstance(owner, str) else (owner, attribute)
    monkeypatch.setattr(*target, change)
    with pytest.raises(AssertionError):
        all(is_greedy(*case, seed) is None for seed in range(3))


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("step", [1, 4, 8])
def test_distinct_drops_the_nearest_of_every_second(step, seed):
    ctx, selector = image(seed=seed), SELECTORS.get("distinct")(step=step)
    for count in (41, 20, 3, 1):
        assert selector.order(ctx, count).tolist() == naive.distinct(ctx, selector, count)


def test_top_is_today_s_choice():
    ctx = image(24, 24)
    scores = (ctx.scores * 3).round()
    scores[5] = torch.nan
    ctx = replace(ctx, scores=scores)
    for count in (0, 1, 100, 576):
        assert torch.equal(SELECTORS.get("top")().keep(ctx, count), top_indices(scores, count))


def test_spread_is_every_mth():
    spread = SELECTORS.get("spread")()
    assert spread.order(image(1, 7), 3).tolist() == [0, 2, 4]
    assert spread.order(image(1, 7), 5).tolist() == [0, 1, 2, 3, 4]


# -- coverage, lazily -----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["states", "grid", "twins", "sparse"])
def test_lazy_and_dense_agree_to_the_bit(kind):
    """On a grid alone, and among twins, most gains are tied with others."""
    ctx = image(20, 24, seed=3)
    if kind == "twins":
        ctx = replace(ctx, features=ctx.features[torch.arange(480) % 30])
    rows = cover.Cover(spatial=0.0 if kind == "twins" else 2.0)._kernel(ctx)
    if kind == "grid":
        rows = cover.Cover(spatial=40.0)._kernel(replace(ctx, features=torch.ones(480, 3)))
    if kind == "sparse":
        rows = torch.where(rows > 0.8, rows, 0.0)
    factor = torch.ones(480)
    dense = base_covering.densely(rows, factor, 480)
    assert torch.equal(base_covering.lazily(rows, factor, 480), dense)
    assert torch.equal(base_covering.most_covering(rows, factor, 99), dense[:99])


def test_lazy_looks_at_few_candidates(monkeypatch):
    looked, gains = [], base_covering._gains
    monkeypatch.setattr(
        base_covering, "_gains", lambda rows, *rest: looked.append(len(rows)) or gains(rows, *rest)
    )
    cover.Cover().order(image(30, 40), 120)
    assert sum(looked) < 0.1 * 120 * 1200


# -- what is shared -------------------------------------------------------------------------------


def test_cosines_of_known_vectors():
    rows = torch.tensor([[3.0, 4.0], [6.0, 8.0], [-4.0, 3.0], [0.0, 0.0], [1e30, 0.0]])
    expected = [[1, 1, 0, 0, 0.6], [1, 1, 0, 0, 0.6], [0, 0, 1, 0, -0.8], [0] * 5]
    found = cosines(rows[:4] * 1e30)
    torch.testing.assert_close(found, torch.tensor(expected)[:, :4].float())
    torch.testing.assert_close(cosines(rows[:3] * 1e-30), found[:3, :3])
    assert found[0, 1] == 1.0
    torch.testing.assert_close(cross_cosines(rows[:1], rows[:4]), found[:1])


def test_equal_rows_are_zero_once_the_mean_is_off():
    rows = torch.full((50, 300), 0.1) * torch.rand(300, generator=torch.Generator().manual_seed(0))
    assert not cosines(rows, rows.mean(0)).any()
    assert bool((cosines(rows) == 1.0).all())


def test_minmax_of_equal_scores_is_nothing():
    assert minmax(torch.full((3,), 7.0)).tolist() == [0.0, 0.0, 0.0]
    assert minmax(torch.tensor([1.0, 3.0, 2.0])).tolist() == [0.0, 1.0, 0.5]


def test_dpp_fills_by_score_where_the_rank_ends():
    """Two directions only; the rest is as the scores have it."""
    features = torch.tensor([[1.0, 0], [1, 0], [0, 1], [0, 1], [1, 0], [0, 1]])
    scores = torch.tensor([0.1, 0.9, 0.2, 0.3, 0.5, 0.0])
    ctx = SelectContext(features, scores, grid_geometry(1, 6))
    assert dpp.Dpp(centred=False).order(ctx, 6).tolist() == [1, 3, 4, 2, 0, 5]


# -- quota ----------------------------------------------------------------------------------------

HALF = [{"share": 0.5}, {"share": 0.5}]


def quota(*parts: dict) -> Quota:
    return Quota.model_validate({"name": "quota", "parts": list(parts)})


def test_visionzip_by_hand():
    ctx = image(1, 16)
    order = quota(
        {"share": 0.75, "scorers": [{"name": "two", "weight": -1.0}]},
        {"share": 0.25, "selector": {"name": "spread"}},
    ).order(ctx, 8)
    lowest = sorted(range(16), key=lambda i: float(ctx.importances["two"][i]))[:6]
    rest = [i for i in range(16) if i not in lowest]
    assert order.tolist() == [*lowest, rest[0], rest[5]]


@pytest.mark.parametrize(
    ("shares", "count", "expected"),
    [
        ((54 / 64, 10 / 64), 64, [54, 10]),
        ((0.5, 0.5), 63, [31, 32]),
        ((0.1,) * 10, 100, [10] * 10),
        ((0.333, 0.333, 0.333), 10, [3, 3, 4]),
        ((0.9, 0.1), 1, [0, 1]),
    ],
)
def test_shares_add_up_to_the_count(shares, count, expected):
    many = quota(*[{"share": s} for s in shares[:8]]) if len(shares) <= 8 else None
    if many is None:
        with pytest.raises(ValidationError, match="at most 8"):
            quota(*[{"share": s} for s in shares])
        return
    assert many.counts(count) == expected
    assert sum(len(many.order(image(10, 10), count)[:n]) for n in [count]) == count


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ([{"share": 0.5}, {"share": 0.4}], r"0.5 \+ 0.4 = 0.9, allowed shares that add to 1"),
        ([{"share": 1.0, "selector": {"name": "coverr"}}], "unknown selector 'coverr'.*'cover'"),
        ([{"share": 1.0, "selector": {"name": "quota"}}], "any other selector"),
        ([{"share": 1.0, "selector": {}}], "needs a 'name'"),
        ([{"share": 1.0, "selector": {"name": "cover", "tau": 0.0}}], "tau"),
        ([{"share": 1.0, "selector": {"name": "cover", "tau": "0.4"}}], "tau"),
        ([{"share": 1.0, "scorers": [{"name": "one", "sigma": 2.0}]}], "sigma"),
        ([{"share": 0.0}, {"share": 1.0}], "share"),
        ([], "parts"),
    ],
)
def test_bad_parts_are_refused(parts, message):
    with pytest.raises(ValidationError, match=message):
        quota(*parts)


def test_a_scorer_that_the_stage_lacks_is_named():
    made = quota({"share": 1.0, "scorers": [{"name": "three"}]})
    assert made.uses_scorers == {"three"}
    with pytest.raises(ValueError, match="'three'; the stage has: one, two"):
        made.order(image(), 3)


def test_a_quota_needs_what_its_parts_need():
    made = quota({"share": 1.0, "selector": {"name": "cover", "text": 0.3}})
    assert made.needs == {"question"}
    assert made.prompt_dependent
    assert not quota(*HALF).prompt_dependent
    plain = quota(*HALF, {"share": 0.001, "selector": {"name": "dpp"}})
    assert plain.centring
    assert not quota(*HALF).centring


def test_parts_are_centred_by_the_image_s_mean():
    ctx, part = image(seed=4), {"share": 0.5, "selector": {"name": "maxmin"}}
    kept = quota({"share": 0.5}, part).order(ctx, 20)
    left = torch.tensor([i for i in range(42) if i not in kept[:10].tolist()])
    mean = ctx.features.mean(0)
    expected = SELECTORS.get("maxmin")().order(replace(ctx.select(left), mean=mean), 10)
    assert torch.equal(kept[10:], left[expected])
    assert not torch.equal(expected, SELECTORS.get("maxmin")().order(ctx.select(left), 10))


def test_round_trips():
    made = quota({"share": 1.0, "scorers": [{"name": "one"}], "selector": {"name": "dpp"}})
    assert Quota.model_validate_json(made.model_dump_json()) == made
    assert isinstance(made.parts[0].selector, Selector)
    hash(made)


def test_cosines_are_symmetric_to_the_bit():
    """Of more rows than one block of the product has."""
    rows = image(30, 40).features
    found = cosines(rows, rows.mean(0))
    assert torch.equal(found, found.t())
    expected = torch.nn.functional.normalize(rows.double() - rows.double().mean(0))
    torch.testing.assert_close(found.double(), expected @ expected.t(), atol=2e-6, rtol=0.0)
