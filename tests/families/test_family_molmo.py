"""Molmo 2: tokens that pool patches of several crops, against the model's own tower."""

from typing import ClassVar

import pytest
import torch
from family_models import each
from family_models.molmo2 import PATCHES, WINDOW
from reference import worst
from reference_models import make_batch, make_config, tiny
from test_family_granite import Probe
from test_runtime_geometry import token_geometries

import prunetune
from prunetune.errors import UnsupportedModelError
from prunetune.families.base_calls import VisionCall
from prunetune.runtime.apply import family_of

PIXELS = 4
only = pytest.mark.parametrize("name", each("molmo2"))


def pieces(batch):
    return [piece for row in batch.pieces for piece in row if piece.count]


@only
@torch.no_grad()
def test_a_token_is_where_the_patches_are_that_it_pools(name):
    """Crops overlap by their margins: a patch's place on the canvas is its crop's, and its own."""
    model = tiny(name)
    batch = make_batch(model)
    geometries = [g for row in token_geometries(model, batch) for g in row]
    for piece, place in zip(pieces(batch), geometries, strict=True):
        rows, cols, down, across = piece.inputs["image_grids"][0].tolist()
        assert place.whole.sum() == rows * cols == len(place) - down * across
        # Crops of a canvas of `n` patches stand WINDOW apart.
        tiles = [(2 * n - (PATCHES - WINDOW)) // WINDOW for n in (down, across)]
        assert len(piece.inputs["pixel_values"]) == 1 + tiles[0] * tiles[1]
        pooled = piece.inputs["image_token_pooling"]
        crop, inside = pooled // PATCHES**2 - 1, pooled % PATCHES**2
        y = crop // tiles[1] * WINDOW * (crop >= 0) + inside // PATCHES
        x = crop % tiles[1] * WINDOW * (crop >= 0) + inside % PATCHES
        for at, own, tall in ((y, place.y, down), (x, place.x, across)):
            size = torch.where(place.whole, PATCHES + PATCHES % 2, 2 * tall)
            middle = (at + 0.5).masked_fill(pooled < 0, 0).sum(1) / (pooled >= 0).sum(1)
            assert ((middle / size - own).abs() <= 0.5 / size).all()


@only
@torch.no_grad()
def test_vision_attention_is_the_sum_of_what_pooled_patches_receive(name):
    model, plain = tiny(name), tiny(name, "eager")
    batch = make_batch(model)
    Probe.seen.clear()
    with prunetune.apply(model, make_config(model, [(0, 0.5, (OneRow(),))])):
        model(**batch.inputs)
    for context, piece in zip(Probe.seen, pieces(batch), strict=True):
        tower = plain.model.vision_tower(piece.inputs["pixel_values"], output_attentions=True)
        # Features are of layers 2 and 0.
        received = tower.attentions[2].mean(1).mean(1).flatten()
        pooled = piece.inputs["image_token_pooling"]
        expected = received[pooled.clamp_min(0)].masked_fill(pooled < 0, 0).sum(1)
        assert worst(context.vision_attention, expected) < 1e-6
        assert expected.std() > 1e-4
        crops = pooled // PATCHES**2
        assert piece.inputs["image_num_crops"] < 3 or (crops.amax(1) > crops.amin(1)).any()


class OneRow(Probe):
    """Asks for no map."""

    needs: ClassVar[frozenset] = frozenset({"vision_attention"})


@only
def test_pixels_are_the_thumbnail_and_views_its_crops(name):
    model = tiny(name)
    batch = make_batch(model)
    family, call = family_of(model), VisionCall(batch.inputs, [0] * len(pieces(batch)))
    assert family.views(call) == [int(p.inputs["image_num_crops"]) for p in pieces(batch)]
    for whole, piece in zip(family.pixels(call), pieces(batch), strict=True):
        first = piece.inputs["pixel_values"][0].view(PATCHES, PATCHES, PIXELS, PIXELS, 3)
        assert whole.shape == (1, 3, PATCHES * PIXELS, PATCHES * PIXELS)
        cell = whole[0, :, PIXELS : 2 * PIXELS, 3 * PIXELS : 4 * PIXELS]
        assert torch.equal(cell, first[1, 3].permute(2, 0, 1))


@only
def test_maps_between_tokens_of_several_crops_are_refused(name):
    model = tiny(name)
    with pytest.raises(UnsupportedModelError, match=r"\A[^\n]*leave context_entropy out[^\n]*\Z"):
        prunetune.apply(model, make_config(model, [(0, 0.5, ("context_entropy",))]))
    for field, value in (("norm_after", True), ("qk_norm_type", "olmo")):
        other = tiny(name)
        setattr(other.config.text_config, field, value)
        with pytest.raises(UnsupportedModelError, match=rf"\A[^\n]*{field}[^\n]*\Z"):
            family_of(other)
