"""Pooling on the grid: `cells` and `cell_mean` together are average pooling, at any count."""

from dataclasses import fields

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prunetune.restorers import RESTORERS
from prunetune.selectors import SELECTORS, SelectContext
from prunetune.tokens import ImageGeometry, Mosaic, even_cells, frames_geometry, grid_geometry

torch.set_num_threads(1)
MEAN = RESTORERS.get("cell_mean")()
CELLS = SELECTORS.get("cells")()


def picture(across: int = 3, down: int = 2, rows: int = 4, cols: int = 6) -> ImageGeometry:
    """Tiles and a thumbnail, as a processor joins them."""
    mosaic = Mosaic(down, across)
    return mosaic.geometry([grid_geometry(rows, cols) for _ in range(mosaic.views)])


def pooled(place: ImageGeometry, states: torch.Tensor, count: int):
    """Return what `pool` keeps, and the states it has."""
    scores = torch.zeros(len(place))
    keep = CELLS.keep(SelectContext(states, scores, place), count)
    new = MEAN.blend(states, scores, keep, place, torch.ones(len(place)))
    return keep, states[keep] if new is None else new


def states_of(n: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, 8, generator=torch.Generator().manual_seed(seed))


def by_blocks(grid: torch.Tensor) -> torch.Tensor:
    """Average pooling of ``[rows, cols, d]`` by 2 x 2, in raster order."""
    out = torch.nn.functional.avg_pool2d(grid.permute(2, 0, 1), 2)
    return out.flatten(1).T


def test_a_quarter_of_a_view_is_pooled_by_blocks_of_two():
    states = states_of(48)
    _, new = pooled(grid_geometry(6, 8), states, 12)
    expected = by_blocks(states.view(6, 8, 8))
    torch.testing.assert_close(new.sort(0).values, expected.sort(0).values)
    torch.testing.assert_close(new.sum(1).sort().values, expected.sum(1).sort().values)


def test_a_quarter_of_a_mosaic_is_that_of_the_stitched_tiles():
    """With tiles of 3 x 5 blocks lie across their edges, beside the thumbnail's own."""
    place = picture(2, 2, 3, 6)
    states = states_of(len(place))
    mosaic = torch.empty(6, 12, 8)
    for i in (place.tile > 0).nonzero().flatten().tolist():
        t = int(place.tile[i]) - 1
        mosaic[t // 2 * 3 + int(place.row[i]), t % 2 * 6 + int(place.col[i])] = states[i]
    # 72 patches in the mosaic, 18 in the thumbnail, whose 3 rows have no blocks of 2.
    keep, new = pooled(place, states, 18 + 4)
    tiled = place.tile[keep] > 0
    assert int(tiled.sum()) == 18
    expected = by_blocks(mosaic)
    torch.testing.assert_close(new[tiled].sum(1).sort().values, expected.sum(1).sort().values)


def test_what_is_not_pooled_is_another_answer():
    states = states_of(48)
    keep, new = pooled(grid_geometry(6, 8), states, 12)
    assert not torch.allclose(new, states[keep], atol=0.1)
    other = pooled(grid_geometry(8, 6), states, 12)[1]
    assert not torch.allclose(other.sum(1).sort().values, new.sum(1).sort().values, atol=1e-2)


@settings(deadline=None, max_examples=150)
@given(
    rows=st.integers(1, 12), cols=st.integers(1, 12), share=st.floats(0.0, 1.0), seed=st.integers(0)
)
def test_every_cell_has_patches_and_they_are_as_many(rows, cols, share, seed):
    n = rows * cols
    count = max(1, round(share * n))
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed % 2**31))
    place = grid_geometry(rows, cols)
    cell = even_cells(place, count)
    assert torch.equal(even_cells(place.select(order), count), cell[order])
    sizes = torch.bincount(cell, minlength=count)
    assert len(sizes) == count
    assert 1 <= int(sizes.min()) <= int(sizes.max()) <= int(sizes.min()) + 2


@settings(deadline=None, max_examples=80)
@given(share=st.floats(0.0, 1.0), alive=st.floats(0.1, 1.0), seed=st.integers(0, 2**31))
def test_with_holes_the_count_is_exact_and_the_sum_is_kept(share, alive, seed):
    """States are averaged, not lost: each cell's mean times its size adds up to all of them."""
    whole = picture()
    dice = torch.Generator().manual_seed(seed)
    place = whole.select((torch.rand(len(whole), generator=dice) <= alive).nonzero().flatten())
    if not len(place):
        return
    count = max(1, round(share * len(place)))
    states = states_of(len(place), seed)
    keep, new = pooled(place, states, count)
    assert len(set(keep.tolist())) == count
    cell = even_cells(place, count)
    assert sorted(cell[keep].tolist()) == list(range(count))
    sizes = torch.bincount(cell[cell >= 0], minlength=count)
    total = (new * sizes[cell[keep]][:, None]).sum(0)
    torch.testing.assert_close(total, states[cell >= 0].sum(0), rtol=1e-4, atol=1e-4)


def test_frames_are_cut_one_by_one():
    cell = even_cells(frames_geometry(3, 4, 4), 12)
    assert cell.view(3, 16).amin(1).tolist() == [0, 4, 8]
    assert cell.view(3, 16).amax(1).tolist() == [3, 7, 11]


def test_the_middle_of_a_cell_is_kept():
    keep, _ = pooled(grid_geometry(6, 6), states_of(36), 4)
    assert [divmod(i, 6) for i in keep.tolist()] == [(1, 1), (1, 4), (4, 1), (4, 4)]


def test_under_other_scores_what_a_cell_dropped_goes_to_what_it_kept():
    """`cell_mean` beside another selector: two kept ones of a cell share, an empty cell is lost."""
    place, states = grid_geometry(2, 4), states_of(8)
    # Cells: columns 0-1, 2-3; kept are both of the first row's left half.
    new = MEAN.blend(states, torch.zeros(8), torch.tensor([0, 1]), place, torch.ones(8))
    for k in (0, 1):
        torch.testing.assert_close(new[k], (states[k] + states[4] + states[5]) / 3)


@pytest.mark.parametrize("count", [1, 24])
def test_geometry_is_whole(count):
    """Every field of a geometry is followed, so a picture's pieces are found again."""
    place = picture()
    order = torch.arange(len(place)).flip(0)
    moved = ImageGeometry(**{f.name: getattr(place, f.name)[order] for f in fields(place)})
    assert torch.equal(even_cells(moved, count), even_cells(place, count)[order])
