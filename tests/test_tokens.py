"""Keep-index algebra, by properties."""

from dataclasses import fields, replace
from fractions import Fraction
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prunetune.tokens import (
    ImageGeometry,
    frames_geometry,
    grid_geometry,
    keep_count,
    left_pad,
    split_budget,
    spread_indices,
    top_indices,
    unit_rows,
    with_separators,
)

torch.set_num_threads(1)
quick = settings(deadline=None, max_examples=200)
floats = st.floats(width=32, allow_nan=True, allow_infinity=True)
coarse = st.integers(-2, 2).map(float)


@quick
@given(st.integers(1, 100_000), st.integers(1, 10_000), st.integers(1, 100_000))
def test_keep_count_rounds_half_up_and_never_exceeds_the_alive(total, ten_thousandths, alive):
    count = keep_count(total, ten_thousandths / 10_000, alive)
    assert 1 <= count <= alive
    exact = Fraction(ten_thousandths, 10_000) * total
    if 1 < count < alive:
        assert abs(count - exact) <= Fraction(1, 2) + Fraction(1, 10**6)


@pytest.mark.parametrize(
    ("total", "retention", "alive", "count"),
    [
        (10, 0.25, 10, 3),
        (10, 0.24, 10, 2),
        (6, 0.25, 6, 2),
        (576, 0.25, 576, 144),
        (10, 0.001, 10, 1),
        (10, 0.9, 4, 4),
        (2928, 1.0, 2928, 2928),
        (5, 1.0, 3, 3),
    ],
)
def test_keep_count_by_hand(total, retention, alive, count):
    assert keep_count(total, retention, alive) == count


@quick
@given(st.integers(1, 5000), st.lists(st.floats(0.001, 1.0), min_size=2, max_size=4))
def test_keep_counts_of_falling_retentions_never_rise(total, retentions):
    alive = total
    for retention in sorted(retentions, reverse=True):
        count = keep_count(total, retention, alive)
        assert count <= alive
        alive = count


def brute_top(scores: list[float], count: int) -> list[int]:
    def key(i: int) -> tuple[float, int]:
        return (float("inf") if scores[i] != scores[i] else -scores[i], i)

    return sorted(sorted(range(len(scores)), key=key)[:count])


@quick
@given(st.lists(st.one_of(coarse, floats), min_size=1, max_size=60), st.data())
def test_top_indices_are_the_highest_first_come_first_served(scores, data):
    count = data.draw(st.integers(0, len(scores)))
    kept = top_indices(torch.tensor(scores), count)
    assert kept.dtype == torch.int64
    assert kept.tolist() == brute_top(scores, count)


def test_that_comparison_tells_ties_apart():
    tied = torch.zeros(40)
    last_served = (39 - torch.argsort(tied.flip(0), stable=True))[:10].sort().values
    assert top_indices(tied, 10).tolist() == brute_top(tied.tolist(), 10)
    assert last_served.tolist() != brute_top(tied.tolist(), 10)


def test_nan_ranks_lowest():
    scores = torch.tensor([float("nan"), -5.0, float("nan"), -7.0])
    assert top_indices(scores, 2).tolist() == [1, 3]
    assert top_indices(scores, 3).tolist() == [0, 1, 3]


def gaps(kept: list[int], n: int) -> list[int]:
    around = [-1, *kept, n]
    return [b - a for a, b in pairwise(around)]


@quick
@given(st.integers(1, 400).flatmap(lambda n: st.tuples(st.just(n), st.integers(1, n + 5))))
def test_spread_indices_are_even(case):
    n, count = case
    kept = spread_indices(n, count).tolist()
    assert len(kept) == len(set(kept)) == min(n, count)
    assert kept == sorted(kept)
    assert 0 <= kept[0] <= kept[-1] < n
    inner = gaps(kept, n)[1:-1]
    assert not inner or max(inner) - min(inner) <= 1
    # As much is left over at one end as at the other, and no more than between two of them.
    assert abs(gaps(kept, n)[0] - gaps(kept, n)[-1]) <= 1
    assert max(gaps(kept, n)) <= -(-n // len(kept)) + 1


def test_the_evenness_check_can_fail():
    assert max(gaps(list(range(10)), 100)) > 100 // 10 + 1


def test_spread_of_none_is_empty():
    assert spread_indices(7, 0).tolist() == []


@quick
@given(st.integers(0, 500), st.integers(0, 2000), st.sampled_from(["keep", "drop"]))
def test_split_budget_adds_up(separators, count, policy):
    kept, patches = split_budget(separators, count, policy)
    assert kept + patches == count
    assert 0 <= kept <= separators
    assert patches >= kept
    assert kept == 0 if policy == "drop" else kept in (separators, count // 2)


@quick
@given(st.lists(st.integers(0, 30), min_size=1, max_size=6))
def test_left_pad_keeps_every_row_at_the_right(lengths):
    rows = [torch.arange(1, n + 1) * 7 for n in lengths]
    index, valid = left_pad(rows)
    assert index.shape == valid.shape == (len(rows), max(lengths))
    for row, padded, mask in zip(rows, index, valid):
        assert padded[mask].tolist() == row.tolist()
        assert not padded[~mask].any()
        assert mask.tolist() == sorted(mask.tolist())


@quick
@given(st.integers(1, 12), st.integers(1, 12))
def test_grid_geometry_covers_the_picture_once(rows, cols):
    place = grid_geometry(rows, cols)
    assert len(place) == rows * cols
    assert (place.row * cols + place.col).tolist() == list(range(rows * cols))
    assert float((place.height * place.width).sum()) == pytest.approx(1.0, abs=1e-5)
    for centre, size in ((place.y, place.height), (place.x, place.width)):
        assert float((centre - size / 2).min()) == pytest.approx(0.0, abs=1e-5)
        assert float((centre + size / 2).max()) == pytest.approx(1.0, abs=1e-5)
    assert not place.tile.any()
    assert not place.separator.any()


def test_select_and_to_take_every_field():
    place, index = grid_geometry(3, 4), torch.tensor([5, 0, 11])
    chosen = place.select(index).to("cpu")
    assert isinstance(chosen, ImageGeometry)
    for field in fields(ImageGeometry):
        assert torch.equal(getattr(chosen, field.name), getattr(place, field.name)[index])


def test_frames_are_pictures_of_their_own():
    """A video's frames: all whole pictures, one after another; an image's tiles are not."""
    video = frames_geometry(3, 2, 4)
    assert video.frame.tolist() == video.tile.tolist() == [t for t in range(3) for _ in range(8)]
    assert video.whole.all()
    assert torch.equal(video.row.view(3, 8), grid_geometry(2, 4).row.expand(3, -1))
    image = grid_geometry(2, 4)
    assert image.frame.eq(0).all()
    tiles = replace(image, tile=torch.arange(8))
    assert tiles.whole.tolist() == [True] + [False] * 7


def test_separators_among_patches():
    source = torch.tensor([0, 0, 1, 2, 2])
    mark = torch.tensor([True, False, False, False, True])
    made = with_separators(grid_geometry(1, 3), source, mark)
    assert made.col.tolist() == [0, 0, 1, 2, 2]
    assert torch.equal(made.separator, mark)


def test_unit_rows_give_cosines_and_leave_zeros():
    states = torch.tensor([[3.0, 4.0], [0.0, 0.0], [-6.0, -8.0]], dtype=torch.bfloat16)
    unit = unit_rows(states)
    assert unit.dtype == torch.float32
    torch.testing.assert_close(unit, torch.tensor([[0.6, 0.8], [0.0, 0.0], [-0.6, -0.8]]))
    assert not unit[1].any()
    assert (unit @ unit.T)[0].tolist() == pytest.approx([1, 0, -1])
