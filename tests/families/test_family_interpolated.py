"""VFlowOpt's map where a mosaic is shrunk: against the model's own packing of the map."""

from dataclasses import replace

import pytest
import torch
from family_models.llava_onevision import FAMILY, LIMIT, PATCH, SIDE

from prunetune.families import FAMILIES
from prunetune.families.base import VisionCall
from prunetune.scorers import SCORERS, ScoreContext

torch.set_num_threads(1)
GRID = SIDE // PATCH
# Of pictures: square, wide and high, of which the mosaics are cut (unpadded) and shrunk.
LARGE = ((40, 40), (21, 60), (40, 34))
SMALL = ((20, 20), (20, 32))


def packed(size, limit=LIMIT, seed=0):
    """Return a picture's patches as tokens, and a map of its views packed as its features are."""
    model = FAMILY.build("sdpa")
    family = FAMILIES.get("llava_onevision")(model)
    call = VisionCall({"image_sizes": torch.tensor([size]), "vision_aspect_ratio": limit}, [0])
    [views] = family.views(call)
    dice = torch.Generator().manual_seed(seed)
    importance = torch.rand(views, GRID**2, 1, generator=dice)
    marked, _ = model.model.pack_image_features(
        [importance],
        torch.tensor([size]),
        image_newline=torch.tensor([-1.0]),
        vision_aspect_ratio=limit,
    )
    [tokens] = marked
    call = replace(call, lengths=[len(tokens)])
    [geometry] = family.geometries(call)
    patches = (~geometry.separator).nonzero().flatten()
    assert torch.equal(geometry.separator, tokens[:, 0] < 0)
    return geometry.select(patches), importance[:, :, 0], tokens[patches, 0]


def scored(geometry, importance, **fields):
    """Return the scores of a map whose rows are all the same: what is received is the map."""
    scorer = SCORERS.get("context_entropy")(threshold=0.0, **fields)
    rows = importance[:, None].expand(-1, importance.shape[1], -1)
    return scorer.score(
        ScoreContext(geometry, 0, vision_map=rows, patch_entropy=torch.zeros_like(importance))
    )


@pytest.mark.parametrize("size", LARGE)
def test_a_token_between_patches_has_the_scores_around_it(size):
    """As the release does: stitched, unpadded and shrunk with the features, over tiles' edges."""
    geometry, importance, expected = packed(size)
    assert bool(geometry.row_off.count_nonzero())
    score = scored(geometry, importance, interpolated=True)
    torch.testing.assert_close(score, expected, rtol=1e-5, atol=1e-6)
    alive = torch.arange(len(geometry), device="cpu")[3::4]
    later = scored(geometry.select(alive), importance, interpolated=True)
    assert torch.equal(later, score[alive])


@pytest.mark.parametrize("size", LARGE)
def test_the_nearest_patch_is_another_ranking(size):
    """What version 1 of the config format means: the comparison above can fail."""
    geometry, importance, expected = packed(size)
    score = scored(geometry, importance)
    nearest = importance[geometry.tile, geometry.inside]
    torch.testing.assert_close(score, nearest, rtol=1e-6, atol=1e-7)
    assert not torch.allclose(score, expected, atol=0.05)
    quarter = len(score) // 4
    best, other = (s.argsort(descending=True)[:quarter] for s in (score, expected))
    assert torch.isin(best, other).float().mean() < 0.9


@pytest.mark.parametrize("size", SMALL)
def test_without_shrinking_nothing_lies_between(size):
    geometry, importance, expected = packed(size)
    assert not geometry.row_off.any()
    assert not geometry.col_off.any()
    for interpolated in (False, True):
        score = scored(geometry, importance, interpolated=interpolated)
        torch.testing.assert_close(score, expected, rtol=1e-6, atol=1e-7)
