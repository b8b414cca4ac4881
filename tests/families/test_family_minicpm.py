"""MiniCPM-V 4.6: packed pictures, and the tower's own attention behind its merging."""

from typing import Any

import pytest
import torch
from family_models import IMAGE, Piece, family
from family_models.minicpmv4_6 import MERGE, PATCH
from PIL import Image
from reference import worst
from reference_models import make_batch, make_config, tiny
from test_family_granite import Probe
from test_towers import counted
from transformers.models.minicpmv4_6.image_processing_pil_minicpmv4_6 import (
    MiniCPMV4_6ImageProcessorPil,
)

import prunetune
from prunetune.budget import tower_flops
from prunetune.errors import UnsupportedModelError
from prunetune.families.base_calls import VisionCall
from prunetune.runtime.apply import family_of

NAME = "minicpmv4_6"


def eager(model: Any, piece: Any, mode: str) -> torch.Tensor:
    """Return the last layer's attention over its rows, ``[heads, rows, rows]``, by hand."""
    seen = {}
    layer = model.model.vision_tower.encoder.layers[-1].self_attn
    hook = layer.register_forward_pre_hook(
        lambda module, args, kwargs: seen.update(kwargs), with_kwargs=True
    )
    model.model.get_image_features(**piece.inputs, downsample_mode=mode)
    hook.remove()
    states = seen["hidden_states"][0]
    query, key = (
        part(states).view(len(states), -1, layer.head_dim).transpose(0, 1)
        for part in (layer.q_proj, layer.k_proj)
    )
    return (query @ key.transpose(1, 2) * layer.scaling).softmax(-1)


@pytest.mark.parametrize("mode", ["16x", "4x"])
@torch.no_grad()
def test_a_token_receives_what_its_rows_do(mode):
    """Of both ways to merge: patches within the tower, and rows behind it."""
    model, side = tiny(NAME), 2 if mode == "16x" else 1
    rows = ((2, family(NAME).image, 3),)
    batch = make_batch(model, rows)
    batch = batch if mode == "16x" else finer(model, batch)
    piece = next(p for p in batch.pieces[0] if p.count)
    Probe.seen.clear()
    with prunetune.apply(model, make_config(model, [(0, 0.5, (Probe(),))])):
        model(**batch.inputs, downsample_mode=mode)
    [context] = Probe.seen
    h, w = (int(n) // side for n in piece.inputs["target_sizes"][0])
    received = eager(model, piece, mode).mean(0).mean(0).view(h // 2, 2, w // 2, 2)
    assert worst(context.vision_attention, received.sum((1, 3)).flatten()) < 1e-6
    assert set(context.geometry.tile_rows.tolist()) == {h // 2}
    assert received.std() > 1e-5


def test_pixels_are_the_pictures_that_the_processor_was_given():
    processor = MiniCPMV4_6ImageProcessorPil(
        scale_resolution=64, patch_size=PATCH, slice_mode=False, do_normalize=False
    )
    images = [Image.effect_noise((64, 64), 90).convert("RGB") for _ in range(2)]
    done = processor(images, return_tensors="pt")
    call = VisionCall(dict(done), [0, 0])
    view = family_of(tiny(NAME))
    for image, made in zip(images, view.pixels(call), strict=True):
        raw = torch.tensor(list(image.getdata())).view(64, 64, 3).permute(2, 0, 1) / 255
        assert worst(made[0], raw) < 1e-6
    side = 64 // PATCH // MERGE
    assert [len(g) for g in view.geometries(call)] == [side * side] * 2


def test_a_tower_that_merges_nothing_is_what_torch_counts():
    """The other way, all rows in all layers; the contract has the merging one."""
    model = tiny(NAME, "eager")
    model.config.downsample_mode = "4x"
    view = family_of(model)
    inputs = finer(model, make_batch(model, ((2, family(NAME).image, 3),))).inputs
    spent = counted(view, inputs)["tower"]
    assert tower_flops(view.tower_shape(), view.seen(inputs)) == pytest.approx(spent, rel=0.02)


def finer(model, batch):
    """Return the batch of one picture with the placeholders of ``4x``."""
    piece = next(p for p in batch.pieces[0] if p.count)
    ids = [piece.ids[0], *[IMAGE] * 4 * piece.count, piece.ids[-1]]
    return family(NAME).assemble(model, [[Piece(ids, 4 * piece.count, piece.inputs)]])


def test_merging_behind_the_last_layer_leaves_no_attention_of_tokens():
    model = tiny(NAME)
    model.config.vision_config.insert_layer_id = 2
    with pytest.raises(UnsupportedModelError, match=r"\A[^\n]*attention[^\n]*\Z"):
        prunetune.apply(model, make_config(model, [(0, 0.5, ("cls_attention",))]))
