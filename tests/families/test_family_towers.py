"""Towers of Gemma 4 and Llama 4: what a token is of its patches, and whom they attend to."""

import numpy as np
import pytest
import torch
from family_models import each, family
from family_models._towers import picture
from family_models.gemma4 import MERGE, PATCH
from reference import worst
from reference_models import make_batch, tiny
from test_family_views import contexts
from test_runtime_geometry import token_geometries
from transformers.models.gemma4.image_processing_pil_gemma4 import Gemma4ImageProcessorPil

from prunetune.errors import UnsupportedModelError
from prunetune.families import VisionCall
from prunetune.runtime.apply import family_of
from prunetune.tokens import Mosaic


@torch.no_grad()
def eager_rows(name, batch):
    """Return what each patch receives in each view, ``[rows, columns]``, by the eager tower."""
    plain, seen = tiny(name, "eager"), []
    module = family_of(plain).vision_attention_module()
    hook = module.register_forward_hook(lambda m, args, output: seen.append(output[1].mean(1)))
    plain(**batch.inputs)
    hook.remove()
    if name == "llama4":
        # The CLS token stands last.
        return [row[-1, :-1].view(4, 4) for row in seen[0]]
    places = batch.inputs["image_position_ids"]
    found = []
    for weights, place in zip(seen[0], places, strict=True):
        cols, rows = (place.amax(0) + 1).tolist()
        found.append(weights[: rows * cols, : rows * cols].mean(0).view(rows, cols))
    return found


def check(name):
    model, spec = tiny(name), family(name)
    batch = make_batch(model, spec.rows[1:2])
    rows = iter(eager_rows(name, batch))
    seen = contexts(model, batch)
    assert len(seen) == len(batch.images[0]) > 1
    for context in seen:
        place = context.geometry
        views = [next(rows) for _ in range(int(place.tile.max()) + 1)]
        # The last view is the whole picture, whose number is 0.
        received = torch.stack([views[-1], *views[:-1]]) if name == "llama4" else views[0][None]
        assert received.shape[1] == 2 * int(place.tile_rows[0])
        summed = 4 * torch.nn.functional.avg_pool2d(received, 2)
        assert worst(context.vision_attention, summed[place.tile, place.row, place.col]) < 1e-6
        assert summed.std() > 1e-4, "the tower looks everywhere alike"


@pytest.mark.parametrize("name", each("gemma4", "llama4"))
def test_vision_attention_is_the_towers_own(name):
    """The last layer's eager attention; a token has the sum of its 2 x 2 patches."""
    check(name)


@pytest.mark.parametrize("name", each("gemma4", "llama4"))
def test_patches_without_rotation_would_be_noticed(name, monkeypatch):
    still = lambda states, *rest: states.float().transpose(1, 2)  # noqa: E731
    monkeypatch.setattr(f"prunetune.families.{name}._turned", still)
    with pytest.raises(AssertionError):
        check(name)


@pytest.mark.parametrize("name", each("llama4"))
def test_tiles_are_read_off_their_separators(name):
    """Rows and columns of tiles; a picture of one view has a global view only."""
    model = tiny(name)
    shapes = [(2, 3), (1, 1), (1, 2), (3, 1), (1, 1), (4, 4)]
    batch = make_batch(model, ((3, *shapes, 2),))
    [found] = token_geometries(model, batch)
    for geometry, (rows, cols) in zip(found, shapes, strict=True):
        tiles = geometry.tile > 0
        assert int(geometry.tile.max()) == (rows * cols if rows * cols > 1 else 0)
        if tiles.any():
            assert torch.allclose(geometry.height[tiles], torch.tensor(1 / rows / 2))
            assert torch.allclose(geometry.width[tiles], torch.tensor(1 / cols / 2))


@pytest.mark.parametrize("name", each("llama4"))
def test_tiles_without_separators(name):
    view = family_of(tiny(name))
    # Three tiles, two of which are followed by the token of the last.
    ids = torch.tensor([7, 1, 5, 1, 6, 1, 5, 8, 1, 2])
    slots = (ids == 1).nonzero().flatten()
    with pytest.raises(UnsupportedModelError, match=r"\A[^\n]*as the processor writes them\Z"):
        view.mosaics(slots, ids, [torch.zeros(2, 2)] * 4)
    good = torch.tensor([7, 1, 6, 1, 5, 8, 1, 2])
    made = view.mosaics((good == 1).nonzero().flatten(), good, [torch.zeros(2, 2)] * 3)
    assert made == [Mosaic(1, 2)]


def test_gemma_4_puts_pictures_together_again():
    """From the patches of its own processor, in the processor's order."""
    processor = Gemma4ImageProcessorPil(
        patch_size=PATCH, pooling_kernel_size=MERGE, max_soft_tokens=70, do_resize=False
    )
    images = [picture(size, seed) for seed, size in enumerate([(24, 32), (40, 16)])]
    made = processor(images, return_tensors="pt")
    call = VisionCall({k: made[k] for k in ("pixel_values", "image_position_ids")}, [12, 10])
    view = family_of(tiny("gemma4"))
    for image, pixels, geometry in zip(
        images, view.pixels(call), view.geometries(call), strict=True
    ):
        array = torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255
        assert torch.allclose(pixels[0], array, atol=1e-6)
        assert int(geometry.tile_rows[0]) == image.size[1] // PATCH // MERGE
        assert int(geometry.tile_cols[0]) == image.size[0] // PATCH // MERGE
