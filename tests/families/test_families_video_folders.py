"""LLaVA families with videos from a folder: processor, search and deployment, as if downloaded."""

import copy

import numpy as np
import pytest
import torch
from cli_runner import picture, search_folder
from family_models import Batch, each
from family_models._folders_llava import KINDS, save
from PIL import Image
from reference import alive_slots, reference_logits, worst
from reference_models import make_config
from test_runtime_geometry import token_geometries

import prunetune
from prunetune.calibration import Sample, encode
from prunetune.models import load_model


@pytest.fixture(scope="module", params=each(*KINDS))
def folder(request, tmp_path_factory):
    return save(request.param, tmp_path_factory.mktemp("models") / request.param)


@pytest.fixture(scope="module")
def loaded(folder):
    return load_model(str(folder))


@pytest.mark.script
def test_a_search_of_the_folder(folder, tmp_path):
    pytest.importorskip("optuna", reason="without the extra `search` there is nothing to run")
    search_folder(folder, tmp_path)


@torch.no_grad()
def test_what_the_processor_makes_is_pruned_exactly(loaded):
    """One picture in the first prompt, two in the second, as the processor encodes them."""
    model, plain = copy.deepcopy(loaded.model), loaded.model
    samples = [Sample((picture(1),), "what ?"), Sample((picture(2, (64, 90)), picture(3)), "and ?")]
    inputs = dict(encode(loaded.processor, samples))
    with prunetune.apply(model, make_config(model, "0+1+3")) as handle:
        logits = model(**inputs).logits
        model.generate(**inputs, max_new_tokens=3)
        one, two = handle.trace
    assert list(map(len, one.lengths)) == [1, 2]
    assert one.lengths == two.lengths
    batch = Batch(inputs, one.lengths)
    alive = alive_slots(tuple(batch.valid.shape), (0, one))
    survives = batch.valid & alive[-1]
    assert worst(logits[survives], reference_logits(plain, batch, alive)[survives]) < 1e-5


@torch.no_grad()
@pytest.mark.parametrize("size", [(20, 60), (33, 12), (90, 31), (200, 201)], ids=str)
def test_places_in_the_picture(loaded, size):
    """Light one spot of a picture: the tokens that see it say that they are there."""
    # Video-LLaVA's processor cuts a square out of the middle.
    square = loaded.model.config.model_type == "video_llava"
    height, width = (max(size),) * 2 if square else size
    dark = np.zeros((height, width, 3), np.uint8)

    def inputs(pixels):
        return dict(encode(loaded.processor, [Sample((Image.fromarray(pixels),), "what ?")]))

    before = inputs(dark)
    [[geometry]] = token_geometries(loaded.model, Batch(before, []))
    patches = ~geometry.separator
    name = next(n for n in before if n.startswith("pixel_values"))
    side = int(geometry.tile_rows[0])
    for y, x in ((0.5, 0.5), (0.2, 0.3), (0.8, 0.7), (0.3, 0.9)):
        lit = dark.copy()
        top, left = int(y * height), int(x * width)
        lit[max(0, top - 1) : top + 2, max(0, left - 1) : left + 2] = 255
        moved = (inputs(lit)[name][0] - before[name][0]).abs().mean(-3)
        moved = moved.view(-1, *moved.shape[-2:])
        seen = torch.nn.functional.avg_pool2d(moved, moved.shape[-1] // side)
        light = seen[geometry.tile, geometry.row, geometry.col] * patches
        for whole in (True, False):
            view = patches & (geometry.whole == whole)
            weight = light * view
            if not weight.any():
                continue
            centre = torch.stack([(weight * geometry.y).sum(), (weight * geometry.x).sum()])
            reach = torch.stack([geometry.height[view].max(), geometry.width[view].max()])
            far = (centre / weight.sum() - torch.tensor([y, x])).abs()
            assert (far <= reach).all(), (whole, y, x)
