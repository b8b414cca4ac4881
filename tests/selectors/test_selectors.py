"""Contract of every selector in the table: sets of the right size, in an order of their own."""

from dataclasses import fields, is_dataclass, replace
from typing import ClassVar, Literal

import pytest
import torch
from contexts import tiled
from hypothesis import given, settings
from hypothesis import strategies as st
from selector_naive import image

from prunetune.registry import Tunable
from prunetune.selectors import SELECTORS, Selector
from prunetune.tokens import grid_geometry

torch.set_num_threads(1)
EVERY = list(SELECTORS)
NESTED = [name for name in EVERY if SELECTORS.get(name).nested]
PAIRWISE = [name for name in EVERY if SELECTORS.get(name).pairwise]
# By place in the sequence, whatever is there.
SEQUENTIAL = {"spread", "quota"}


def ranges(kind) -> dict[str, Tunable]:
    return {
        field: mark
        for field, info in kind.model_fields.items()
        for mark in info.metadata
        if isinstance(mark, Tunable)
    }


def tensors(value) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    if is_dataclass(value):
        value = {f.name: getattr(value, f.name) for f in fields(value)}
    return [t for v in value.values() for t in tensors(v)] if isinstance(value, dict) else []


def is_a_choice(order: torch.Tensor, n: int, count: int) -> None:
    assert order.dtype == torch.int64
    assert order.shape == (count,)
    assert len(set(order.tolist())) == count
    assert all(0 <= i < n for i in order.tolist())


def every_count(selector: Selector) -> None:
    ctx = image()
    for count in (0, 1, 2, 20, 41, 42):
        is_a_choice(selector.order(ctx, count), 42, count)


def ascending(selector: Selector) -> None:
    ctx = image()
    kept = selector.keep(ctx, 17)
    assert torch.equal(kept, selector.order(ctx, 17).sort().values)


def nested(selector: Selector) -> None:
    ctx = image(place=tiled(3, 4, 5))
    for scope in ("image", "view"):
        scoped = selector.model_copy(update={"scope": scope})
        whole = scoped.order(ctx, 60)
        for count in (1, 7, 23, 59):
            assert torch.equal(scoped.order(ctx, count), whole[:count]) or not selector.nested


def leaves_the_context_alone(selector: Selector) -> None:
    ctx = image()
    selector.order(ctx, 20)
    assert all(map(torch.equal, tensors(ctx), tensors(image())))


def repeats(selector: Selector) -> None:
    first = selector.order(image(), 20)
    torch.rand(7)  # Whoever draws from the global generator is now elsewhere in its stream.
    assert torch.equal(first, selector.order(image(), 20))


def ignores_the_process(selector: Selector) -> None:
    ctx, expected = image(), selector.order(image(), 20)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"), torch.autocast("cpu", torch.bfloat16):
            got = selector.order(ctx, 20)
    finally:
        torch.set_default_dtype(before)
    assert got.device.type == "cpu"
    assert torch.equal(got, expected)


def follows_the_patches(selector: Selector) -> None:
    ctx, other = image(), torch.randperm(42, generator=torch.Generator().manual_seed(5))
    if selector.name not in SEQUENTIAL:
        assert torch.equal(other[selector.order(ctx.select(other), 20)], selector.order(ctx, 20))


def takes_twins_in_order(selector: Selector) -> None:
    ctx = image(place=grid_geometry(1, 1).select(torch.zeros(30, dtype=torch.int64)))
    ctx = replace(ctx, features=ctx.features[:1].expand(30, -1), scores=torch.zeros(30))
    if selector.nested:
        assert selector.order(ctx, 13).tolist() == list(range(13))


CONTRACT = [
    every_count,
    ascending,
    nested,
    leaves_the_context_alone,
    repeats,
    ignores_the_process,
    follows_the_patches,
    takes_twins_in_order,
]


class Broken(Selector):
    summary: ClassVar[str] = "wrong in one way"
    name: Literal["broken"] = "broken"
    how: str

    def order(self, ctx, count):
        return self.choose(ctx, count) if count else torch.empty(0, dtype=torch.int64)

    def keep(self, ctx, count):
        return self.order(ctx, count)

    def choose(self, ctx, count):
        falling = torch.argsort(ctx.scores, descending=True, stable=True)
        if self.how == "every_count":
            return falling[: count + 1] % (len(ctx) - 1)
        if self.how == "nested":
            return falling[:count].roll(1)
        if self.how == "leaves_the_context_alone":
            ctx.features.mul_(2.0)
        if self.how == "repeats":
            return torch.randperm(len(ctx))[:count]
        if self.how == "ignores_the_process":
            return falling[torch.arange(count)]
        if self.how == "follows_the_patches":
            return torch.arange(count, device=ctx.device)
        if self.how == "takes_twins_in_order":
            return torch.argsort(ctx.scores.flip(0), descending=True, stable=True)[:count] * -1 + 29
        return falling[:count]


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("check", CONTRACT, ids=lambda check: check.__name__)
def test_contract(name, check):
    check(SELECTORS.get(name)())


@pytest.mark.parametrize("check", CONTRACT, ids=lambda check: check.__name__)
def test_every_contract_check_can_fail(check):
    with pytest.raises((AssertionError, RuntimeError, NotImplementedError)):
        check(Broken(how=check.__name__))


# -- whatever the image ---------------------------------------------------------------------------

STATES = {
    "plain": lambda x: x,
    "equal": lambda x: x[:1].expand_as(x),
    "twins": lambda x: x[torch.arange(len(x)) // 2],
    "zeros": lambda x: x * (torch.arange(len(x)) % 3 == 0)[:, None],
    "nothing": lambda x: x * 0.0,
    "huge": lambda x: x * 1e30,
    "tiny": lambda x: x * 1e-30,
    "far mean": lambda x: x + 1e4,
}
SCORES = {
    "plain": lambda q: q,
    "equal": lambda q: q * 0.0 + 3.0,
    "steps": lambda q: q.round(),
    "huge": lambda q: q * 1e6,
}


@pytest.mark.parametrize("name", EVERY)
@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_any_image_gets_its_count(name, data):
    tiles, rows, cols = (data.draw(st.integers(1, high)) for high in (3, 4, 5))
    n = tiles * rows * cols
    ctx = image(place=tiled(tiles, rows, cols), width=data.draw(st.sampled_from([1, 3, 40])))
    states, scores = (
        data.draw(st.sampled_from(list(STATES))),
        data.draw(st.sampled_from(list(SCORES))),
    )
    dtype = data.draw(st.sampled_from([torch.float32, torch.bfloat16]))
    ctx = replace(
        ctx,
        features=STATES[states](ctx.features).to(dtype),
        scores=SCORES[scores](ctx.scores),
        text=ctx.text.to(dtype),
    )
    kind = SELECTORS.get(name)
    selector = kind(scope=data.draw(st.sampled_from(["image", "view"])))
    if name != "quota":
        unit = st.floats(0.0, 1.0)
        selector = selector.model_copy(
            update={f: t.decode(data.draw(unit)) for f, t in ranges(kind).items() if f != "scope"}
        )
    count = data.draw(st.integers(0, n))
    order = selector.order(ctx, count)
    is_a_choice(order, n, count)
    if kind.nested:
        assert torch.equal(selector.order(ctx, n)[:count], order)
    if selector.scope == "view":
        shares = torch.bincount(ctx.geometry.tile[order], minlength=tiles)
        assert int(shares.max() - shares.min()) <= 1


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_full(name, dtype):
    ctx, selector = image(dtype=dtype), SELECTORS.get(name)()
    full = replace(ctx, features=ctx.features.float())
    assert torch.equal(selector.order(ctx, 20), selector.order(full, 20))


@pytest.mark.parametrize("name", PAIRWISE)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_comes_last(name, value):
    ctx, selector = image(), SELECTORS.get(name)()
    bad = [3, 8, 20]
    ctx.features[3, 1] = ctx.features[8] = value
    ctx.scores[20] = value
    good = torch.tensor([i for i in range(42) if i not in bad])
    order = selector.order(ctx, 42)
    assert order[39:].tolist() == bad
    assert torch.equal(order[:39], good[selector.order(ctx.select(good), 39)])
    assert selector.order(replace(ctx, features=ctx.features * torch.nan), 4).tolist() == [
        0,
        1,
        2,
        3,
    ]


@pytest.mark.parametrize("part", PAIRWISE)
def test_a_quota_of_states_that_are_not_finite(part):
    ctx = image()
    ctx.features[[1, 5]] = torch.nan
    parts = [{"share": 0.5, "selector": {"name": part}}] * 2
    order = SELECTORS.get("quota")(parts=parts).order(ctx, 40)
    assert not {1, 5} & set(order.tolist())


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("count", [-1, 43])
def test_a_count_out_of_range_is_refused(name, count):
    with pytest.raises(ValueError, match=f"count: received {count}, allowed 0 to 42"):
        SELECTORS.get(name)().order(image(), count)


def test_a_missing_question_is_named():
    asks = SELECTORS.get("cover")(text=0.3)
    assert asks.needs == {"question"}
    assert asks.prompt_dependent
    with pytest.raises(ValueError, match=r"SelectContext\.text: received None, selector 'cover'"):
        asks.order(replace(image(), text=None), 3)
    plain = SELECTORS.get("cover")().order(image(), 9)
    assert torch.equal(asks.order(replace(image(), text=torch.zeros(0, 48)), 9), plain)
