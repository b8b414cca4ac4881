"""VFlowOpt's recycling against a second, slow implementation; exact counts."""

import by_hand
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference_models import PINPOINTS, make_batch, tiny
from test_runtime_geometry import token_geometries

from prunetune.restorers import RESTORERS, Restorer
from prunetune.tokens import ImageGeometry, grid_geometry, top_indices

torch.set_num_threads(1)
Recycling = RESTORERS.get("grid_recycling")


@pytest.fixture(scope="module")
def images():
    """Geometries of several shapes, as the model packs them; separators included."""
    model = tiny("llava_next")
    sizes = [(20, 60), (33, 12), (32, 20), (30, 34), (16, 32)]
    [found] = token_geometries(model, make_batch(model, (tuple(sizes),)))
    return [grid_geometry(11, 13), *found]


def patches(geometry: ImageGeometry) -> ImageGeometry:
    return geometry.select((~geometry.separator).nonzero().flatten())


def scores_of(n, seed, ties=False):
    scores = torch.rand(n, generator=torch.Generator().manual_seed(seed))
    return (scores * 6).floor() if ties else scores


@settings(max_examples=150)
@given(data=st.data())
def test_equals_the_paper_written_token_by_token(data, images):
    geometry = images[data.draw(st.integers(0, 5))]
    place = patches(geometry)
    n = len(place)
    count = data.draw(st.integers(1, n))
    size = data.draw(st.one_of(st.sampled_from([1.0, 2.0, 3.0, 24.0]), st.floats(1.0, 30.0)))
    scores = scores_of(n, data.draw(st.integers(0, 2**31)), data.draw(st.booleans()))
    mass, states = scores_of(n, 7) + 1e-3, torch.randn(n, 6)
    kept, heads = by_hand.recycle(scores.tolist(), count, by_hand.places(geometry), size)
    restorer = Recycling(size=size)
    index = restorer.keep(scores, count, place)
    assert index.tolist() == kept
    got = restorer.blend(states, scores, index, place, mass)
    expected = by_hand.blended(states, heads, mass.tolist())[index]
    if got is None:
        assert all(len(members) == 1 for members in heads.values())
        got = states[index]
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


@settings(max_examples=200)
@given(data=st.data())
def test_the_count_is_exact_and_a_prefix_of_the_ranking_survives(data, images):
    place = patches(images[data.draw(st.integers(0, 5))])
    n = len(place)
    count, size = data.draw(st.integers(1, n)), data.draw(st.floats(1.0, 30.0))
    scores = scores_of(n, data.draw(st.integers(0, 2**31)))
    kept = Recycling(size=size).keep(scores, count, place)
    assert len(kept) == count == len(set(kept.tolist()))
    assert torch.equal(kept, kept.sort().values)
    cells = len(torch.unique(Recycling(size=size).cells(place)))
    surely = top_indices(scores, max(0, count - cells))
    assert torch.isin(surely, kept).all()


def test_recycling_is_not_plain_top_k_and_cells_of_one_patch_are():
    scores, place = scores_of(576, 0), grid_geometry(24, 24)
    plain = Restorer(name="none").keep(scores, 144, place)
    assert not torch.equal(Recycling(size=6.0).keep(scores, 144, place), plain)
    alone = Recycling(size=1.0)
    assert torch.equal(alone.keep(scores, 144, place), plain)
    assert alone.blend(torch.randn(576, 4), scores, plain, place, scores + 1) is None


def test_every_cell_with_a_dropped_token_has_a_head_that_is_their_mean():
    scores, place, restorer = scores_of(576, 1), grid_geometry(24, 24), Recycling(size=8.0)
    kept = restorer.keep(scores, 100, place)
    cell = restorer.cells(place)
    assert set(cell[kept].tolist()) == set(range(9))
    states = torch.randn(576, 8)
    new = restorer.blend(states, scores, kept, place, torch.ones(576))
    moved = (new != states[kept]).any(1)
    assert int(moved.sum()) == 9
    gone = torch.ones(576, dtype=torch.bool)
    gone[kept] = False
    for head, state in zip(kept[moved], new[moved]):
        members = (gone | (torch.arange(576) == head)) & (cell == cell[head])
        torch.testing.assert_close(state, states[members].mean(0))
        assert scores[head] == scores[members].max()


def test_the_release_overshoots_where_this_is_exact():
    """The release removes int(L / a^2) tokens more, and gets back one for every cell."""
    place, size, total = grid_geometry(27, 27), 11.757, 27 * 27
    scores = scores_of(total, 3)
    dropped = round(total * 0.5)
    extra = int(total / size**2)
    lowest = scores.argsort()[: dropped + extra]
    cells = len(torch.unique(Recycling(size=size).cells(place)[lowest]))
    assert total - dropped - extra + cells > total - dropped
    assert len(Recycling(size=size).keep(scores, total - dropped, place)) == total - dropped


def test_a_score_order_decides_the_head_and_mass_only_weighs():
    scores = torch.tensor([5.0, 1.0, 2.0, 3.0])
    place, restorer = grid_geometry(2, 2), Recycling(size=2.0)
    kept = restorer.keep(scores, 2, place)
    assert kept.tolist() == [0, 3]
    mass = torch.tensor([9.0, 6.0, 3.0, 1.0])
    new = restorer.blend(torch.eye(4), scores, kept, place, mass)
    assert new.tolist() == [[1, 0, 0, 0], pytest.approx([0, 0.6, 0.3, 0.1])]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_states_are_averaged_in_full(dtype):
    scores, place, restorer = scores_of(576, 1), grid_geometry(24, 24), Recycling(size=24.0)
    kept = restorer.keep(scores, 10, place)
    states = (100 + torch.randn(576, 4)).to(dtype)
    new = restorer.blend(states, scores, kept, place, scores + 0.1)
    whole = restorer.blend(states.float(), scores, kept, place, scores + 0.1)
    assert torch.equal(new.float(), whole)
    untouched = (new == states[kept].float()).all(1)
    assert int(untouched.sum()) == 9


def test_the_mosaic_is_stitched_and_unpadded(images):
    """Neighbours across a tile border share cells; rows that were padding count for nothing."""
    assert [16, 48] in PINPOINTS
    for geometry in images[1:]:
        place = patches(geometry)
        got = Recycling(size=1.0).cells(place)
        where = by_hand.places(geometry)
        assert len(torch.unique(got)) == len(set(where)) == len(place)
        coarse = Recycling(size=3.0).cells(place).tolist()
        by_cell = {}
        for cell, (grid, row, col) in zip(coarse, where, strict=True):
            by_cell.setdefault(cell, set()).add((grid, row // 3, col // 3))
        assert all(len(found) == 1 for found in by_cell.values())
        assert len(by_cell) == len({(g, r // 3, c // 3) for g, r, c in where})


def test_tiles_apart_would_be_noticed(images):
    """The pair of the test above: tile-local coordinates give other cells."""
    geometry = images[1]
    place = patches(geometry)
    local = [(t, r // 3, c // 3) for t, r, c in zip(place.tile, place.row, place.col)]
    apart = {tuple(map(int, cell)) for cell in local}
    stitched = {(g, r // 3, c // 3) for g, r, c in by_hand.places(geometry)}
    assert len(apart) != len(stitched)


def test_cells_of_a_video_stay_inside_a_frame():
    from prunetune.tokens import frames_geometry

    made = RESTORERS.get("grid_recycling")(size=2)
    cells = made.cells(frames_geometry(3, 4, 4)).view(3, 4, 4)
    assert len(cells.unique()) == 12
    for one in cells:
        assert len(one.unique()) == 4
        assert len(one[:2, :2].unique()) == 1
