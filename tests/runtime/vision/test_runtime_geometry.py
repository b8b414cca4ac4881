"""Where each visual token comes from, against the model's own features and image processor."""

import numpy as np
import pytest
import torch
from PIL import Image
from reference_models import PINPOINTS, THOROUGH, TILE, make_batch, make_config, tiny

import prunetune
from prunetune.runtime.vision import views

SIZES = [(20, 32), (20, 60), (30, 34), (33, 12), (32, 20), (16, 32), (90, 31), (13, 64), (200, 201)]


def token_geometries(model, batch):
    """Return what the family says about every image of a batch, by row."""
    seen, assign = [], views.assign_images
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(views, "assign_images", lambda *a: seen.append(assign(*a)) or seen[-1])
        with prunetune.apply(model, make_config(model, [(0, 1.0, ("random",))])):
            model(**batch.inputs)
    return [[image.capture.geometry for image in row] for row in seen[0]]


def features(model, batch):
    """Return the packed features of every image, and what the projector gives for every patch."""
    names = ("pixel_values", "image_sizes")
    with torch.no_grad():
        packed = model.model.get_image_features(
            **{n: batch.inputs[n] for n in names if n in batch.inputs}, return_dict=True
        ).pooler_output
        pixels = batch.inputs["pixel_values"]
        crops = pixels if pixels.ndim == 5 else pixels[:, None]
        states = [
            model.model.vision_tower(c, output_hidden_states=True).hidden_states for c in crops
        ]
        patches = [model.model.multi_modal_projector(s[-2][:, 1:]) for s in states]
    return packed, patches


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("family", THOROUGH)
def test_every_token_is_the_patch_it_says(family, size):
    """Identify each token by its feature alone: the patch or the newline it is equal to."""
    model = tiny(family)
    size = size if family == "llava_next" else (TILE[family],) * 2
    batch = make_batch(model, ((2, size, 3),))
    [[geometry]] = token_geometries(model, batch)
    [packed], [patches] = features(model, batch)
    side = TILE[family] // 4
    tile, inside = geometry.tile, geometry.row * side + geometry.col
    expected = patches[tile, inside]
    distance = (packed[:, None] - patches.flatten(0, 1)).abs().amax(2)
    nearest = distance.argmin(1)
    is_patch = distance.amin(1) < 1e-4
    assert torch.equal(~is_patch, geometry.separator)
    assert torch.equal(nearest[is_patch], (tile * side * side + inside)[is_patch])
    assert torch.allclose(packed[is_patch], expected[is_patch], atol=1e-4)
    if family == "llava_next":
        assert torch.equal(
            packed[~is_patch], model.model.image_newline.expand(int((~is_patch).sum()), -1)
        )
        assert torch.equal(tile[1:][geometry.separator[1:]], tile[:-1][geometry.separator[1:]])
    assert set(geometry.tile_rows.tolist()) == set(geometry.tile_cols.tolist()) == {side}


@pytest.mark.parametrize("size", [(1, 60), (300, 1)], ids=str)
@pytest.mark.parametrize("family", ["llava_next", "llava_next_video", "llava_onevision"])
@torch.no_grad()
def test_a_picture_of_which_unpadding_leaves_nothing(family, size):
    """A dividing line, say: its tokens are the thumbnail's, and newlines at most."""
    model = tiny(family)
    batch = make_batch(model, ((2, size, 3),))
    [[geometry]] = token_geometries(model, batch)
    tiles = geometry.tile > 0
    assert family == "llava_onevision" or bool(geometry.separator[tiles].all())
    with prunetune.apply(model, make_config(model, [(1, 0.5, ("coverage", "tile_prior"))])):
        assert model(**batch.inputs).logits.isfinite().all()


@pytest.mark.parametrize("family", THOROUGH)
def test_rows_and_columns_are_those_of_the_patch_convolution(family):
    """Change one patch of one crop: only the token of that row and column changes."""
    model = tiny(family)
    crop = torch.zeros(1, 3, TILE[family], TILE[family])
    changed = crop.clone()
    changed[..., 8:12, 4:8] = 1.0
    tower = model.model.vision_tower
    embeddings = getattr(tower, "vision_model", tower).embeddings
    with torch.no_grad():
        moved = (embeddings(crop) - embeddings(changed))[0, 1:].abs().amax(1) > 0
    side = TILE[family] // 4
    assert moved.nonzero().flatten().tolist() == [2 * side + 1]


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_places_in_the_picture(size):
    """Light one spot of a picture: the tokens that see it say that they are there."""
    from transformers.models.llava_next.image_processing_pil_llava_next import (
        LlavaNextImageProcessorPil,
    )

    model = tiny("llava_next")
    processor = LlavaNextImageProcessorPil(
        size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16},
        image_grid_pinpoints=PINPOINTS, do_center_crop=True,
    )  # fmt: skip
    [[geometry]] = token_geometries(model, make_batch(model, ((2, size, 3),)))
    patches = ~geometry.separator
    assert (geometry.y[patches] > 0).all()
    assert (geometry.y[patches] < 1).all()
    assert (geometry.x[patches] > 0).all()
    assert (geometry.x[patches] < 1).all()
    height, width = size
    dark = np.zeros((height, width, 3), np.uint8)
    before = processor(Image.fromarray(dark), return_tensors="pt")["pixel_values"][0]
    for y, x in ((0.5, 0.5), (0.2, 0.3), (0.8, 0.7), (0.3, 0.9)):
        lit = dark.copy()
        top, left = int(y * height), int(x * width)
        lit[max(0, top - 1) : top + 2, max(0, left - 1) : left + 2] = 255
        after = processor(Image.fromarray(lit), return_tensors="pt")["pixel_values"][0]
        seen = torch.nn.functional.avg_pool2d((after - before).abs().mean(1), 4)
        light = seen[geometry.tile, geometry.row, geometry.col] * patches
        for thumbnail in (True, False):
            view = patches & ((geometry.tile == 0) == thumbnail)
            weight = light * view
            if thumbnail and not weight.any():
                continue
            centre = (
                torch.stack([(weight * geometry.y).sum(), (weight * geometry.x).sum()])
                / weight.sum()
            )
            reach = torch.stack([geometry.height[view].max(), geometry.width[view].max()])
            assert ((centre - torch.tensor([y, x])).abs() <= reach).all(), (thumbnail, centre)
