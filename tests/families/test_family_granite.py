"""Granite 4 Vision: each token's place and attention against the model's own code."""

from typing import ClassVar

import pytest
import torch
from reference import worst
from reference_models import make_batch, make_config, tiny
from test_families import schedule
from test_runtime_geometry import token_geometries

import prunetune
from prunetune.errors import UnsupportedModelError
from prunetune.families import granite4_vision as code
from prunetune.families.bases.deepstack import left_of_mask
from prunetune.scorers import Scorer

NAME, SIDE = "granite4_vision", 3
TAKEN = -1
"""The tower layer of the first projector, and the last one of all."""


def pictures(batch):
    """Yield each picture's views, with its geometry."""
    for row, own in zip(batch.pieces, token_geometries(tiny(NAME), batch), strict=True):
        yield from zip((p.inputs["pixel_values"][0] for p in row if p.count), own, strict=True)


@torch.no_grad()
def test_a_token_is_of_the_view_and_place_that_it_says():
    model = tiny(NAME)
    batch = make_batch(model)
    packed = features(model, batch)[0][1]
    for tokens, (views, place) in zip(packed, pictures(batch), strict=True):
        states = model.model.vision_tower(views, output_hidden_states=True).hidden_states[TAKEN]
        alone = model.model.layerwise_projectors[0](states)
        patches = ~place.separator
        assert worst(tokens[patches], alone[place.tile, place.inside][patches]) < 1e-5
        assert place.separator.any()
        assert alone.std() > 0.01
        assert set(place.tile_rows.tolist()) == set(place.tile_cols.tolist()) == {SIDE}


def features(model, batch):
    names = ("pixel_values", "image_sizes")
    given = {name: batch.inputs[name] for name in names}
    return model.model.get_image_features(**given, return_dict=True).deepstack_features


class Probe(Scorer):
    """Keeps what it is given."""

    needs: ClassVar[frozenset] = frozenset({"vision_attention", "vision_map"})
    seen: ClassVar[list] = []
    name: str = "granite_probe"

    def score(self, ctx):
        self.seen.append(ctx)
        return -torch.arange(len(ctx)).float()


@torch.no_grad()
def test_vision_attention_is_the_towers_own_summed_over_blocks():
    model, plain = tiny(NAME), tiny(NAME, "eager")
    batch = make_batch(model)
    Probe.seen.clear()
    with prunetune.apply(model, make_config(model, [(0, 0.5, (Probe(),))])):
        model(**batch.inputs)
    for context, (views, _) in zip(Probe.seen, pictures(batch), strict=True):
        weights = plain.model.vision_tower(views, output_attentions=True).attentions[-1].mean(1)
        received = weights.mean(1).view(-1, SIDE, 2, SIDE, 2).sum((2, 4)).flatten(1)
        place = context.geometry
        assert worst(context.vision_attention, received[place.tile, place.inside]) < 1e-6
        assert received.std() > 1e-5, "the tower looks everywhere alike"


def off_by_one(visual, left):
    mask = left_of_mask(visual, left)
    return mask if left is None else mask.roll(1, 1)


@torch.no_grad()
def test_features_of_other_tokens_would_be_seen(monkeypatch):
    """The twin of the contract: what is added behind a stage is what belongs to each token."""
    from reference import measure

    model = tiny(NAME)
    batch, config = make_batch(model), make_config(model, schedule("0+1+3", NAME))
    assert measure(model, config, batch, steps=1).worst < 1e-5
    monkeypatch.setattr(code, "left_of_mask", off_by_one)
    assert measure(model, config, batch, steps=1).worst > 1e-3


def test_windows_of_broken_blocks_have_no_attention_to_read():
    model = tiny(NAME)
    model.config.downsample_rate = "2/3"
    with pytest.raises(UnsupportedModelError, match=r"\A[^\n]*attention[^\n]*\Z"):
        prunetune.apply(model, make_config(model, [(0, 0.5, ("cls_attention",))]))
    prunetune.apply(model, make_config(model, [(0, 0.5, ("coverage",))])).remove()
