"""Contract of every restorer in the table, and TopV's recovery."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from prunetune.restorers import RESTORERS, Restorer
from prunetune.tokens import grid_geometry, keep_count

torch.set_num_threads(1)
EVERY = list(RESTORERS)
Recovery = RESTORERS.get("uniform_recovery")
case = st.integers(1, 300).flatmap(
    lambda n: st.tuples(st.just(n), st.integers(1, n), st.integers(2, 12), st.integers(0, 2**31))
)


def scores_of(n: int, seed: int) -> torch.Tensor:
    return torch.rand(n, generator=torch.Generator().manual_seed(seed))


def is_a_keep_index(kept: torch.Tensor, n: int, count: int) -> None:
    assert kept.dtype == torch.int64
    assert len(kept) == count
    assert bool((kept[1:] > kept[:-1]).all())
    assert 0 <= int(kept.min()) <= int(kept.max()) < n


@pytest.mark.parametrize("name", EVERY)
@settings(deadline=None, max_examples=100)
@given(case=case)
def test_keeps_exactly_the_count(name, case):
    n, count, _, seed = case
    scores = scores_of(n, seed)
    before = scores.clone()
    restorer = RESTORERS.get(name)()
    kept = restorer.keep(scores, count, grid_geometry(1, n))
    is_a_keep_index(kept, n, count)
    assert torch.equal(scores, before)
    assert torch.equal(kept, restorer.keep(scores, count, grid_geometry(1, n)))


@pytest.mark.parametrize("wrong", [[0, 1], [2, 1, 0], [1, 1, 2], [0, 1, 9], [-1, 0, 1]], ids=str)
def test_the_keep_index_check_can_fail(wrong):
    is_a_keep_index(torch.tensor([0, 4, 8]), 9, 3)
    with pytest.raises(AssertionError):
        is_a_keep_index(torch.tensor(wrong), 9, 3)


@pytest.mark.parametrize("name", EVERY)
def test_describes_itself_and_round_trips(name):
    kind = RESTORERS.get(name)
    assert issubclass(kind, Restorer)
    assert kind().name == name
    assert kind.summary
    assert kind.model_validate_json(kind().model_dump_json()) == kind()


def by_hand(scores: list[float], top: int, every: int) -> list[int]:
    """Top ``top``, then every ``every``-th of the others in raster order, one by one."""
    ranked = sorted(range(len(scores)), key=lambda i: (-scores[i], i))
    chosen = set(ranked[:top])
    others = [i for i in range(len(scores)) if i not in chosen]
    return sorted(chosen | {i for at, i in enumerate(others) if at % every == 0})


@settings(deadline=None, max_examples=200)
@given(case=case)
def test_recovers_every_nth_dropped_token(case):
    n, count, every, seed = case
    if count < math.ceil(n / every):
        return
    scores = scores_of(n, seed)
    sizes = [top for top in range(n + 1) if top + math.ceil((n - top) / every) == count]
    kept = Recovery(every=every).keep(scores, count, grid_geometry(1, n)).tolist()
    assert kept == by_hand(scores.tolist(), max(sizes), every)


def test_recovery_is_not_plain_top_k():
    scores, place = scores_of(64, 0), grid_geometry(8, 8)
    recovered = Recovery(every=4).keep(scores, 32, place)
    assert not torch.equal(recovered, Restorer(name="none").keep(scores, 32, place))
    assert float(scores[recovered].min()) < float(scores.sort(descending=True).values[31])


@settings(deadline=None, max_examples=200)
@given(case=case)
def test_below_the_least_retention_the_recovered_are_thinned(case):
    n, count, every, seed = case
    if count >= math.ceil(n / every):
        return
    kept = Recovery(every=every).keep(scores_of(n, seed), count, grid_geometry(1, n))
    is_a_keep_index(kept, n, count)
    assert not (kept % every).any()


@pytest.mark.parametrize(("every", "drop", "final"), [(4, 0.5, 0.625), (3, 0.75, 0.5)])
def test_published_arithmetic(every, drop, final):
    """Dropping half of LLaVA's tokens with n = 4 leaves 62.5%; TopV's drop = (1-f)/(1-1/n)."""
    n = 576
    assert (1 - final) / (1 - 1 / every) == pytest.approx(drop)
    scores = scores_of(n, 1)
    kept = Recovery(every=every).keep(scores, keep_count(n, final, n), grid_geometry(24, 24))
    assert kept.tolist() == by_hand(scores.tolist(), int(n * (1 - drop)), every)


def test_least_retention():
    assert Recovery(every=4).least_retention() == 0.25
    assert Restorer(name="none").least_retention() == 0.0


@pytest.mark.parametrize("every", [1, 0, -3, 2.5])
def test_bad_distances_are_refused(every):
    with pytest.raises(ValidationError, match="every"):
        Recovery(every=every)
