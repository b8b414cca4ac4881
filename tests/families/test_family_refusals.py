"""What cannot work with families of fixed views is refused in one line."""

from types import SimpleNamespace

import pytest
import torch
from family_models.idefics3 import FAKE, NEWLINE, SIDE
from family_models.ovis2 import COL, ROW
from reference_models import make_batch, make_config, tiny

import prunetune
from prunetune.errors import UnsupportedModelError
from prunetune.runtime.apply import family_of

ONE_LINE = r"\A[^\n]+\Z"


@torch.no_grad()
def test_tiles_without_line_breaks():
    model = tiny("idefics3")
    batch = make_batch(model, ((2, (30, 60), 3),))
    batch.inputs["input_ids"][batch.inputs["input_ids"] == NEWLINE] = FAKE
    with (
        prunetune.apply(model, make_config(model, "2")),
        pytest.raises(UnsupportedModelError, match="as the processor writes them"),
    ):
        model(**batch.inputs)


@torch.no_grad()
def test_tiles_that_make_no_rectangle():
    model = tiny("ovis2")
    batch = make_batch(model, ((2, (50, 52), 3),))
    ids = batch.inputs["input_ids"]
    ids[ids == COL] = ROW
    ids[0, (ids[0] == ROW).nonzero()[0]] = COL
    with (
        prunetune.apply(model, make_config(model, "2")),
        pytest.raises(UnsupportedModelError, match="as the processor writes them"),
    ):
        model(**batch.inputs)


@pytest.mark.parametrize("changes", [{"tokenize_function": "gumbel_argmax"}, {"hidden_stride": 4}])
def test_features_of_ovis_that_are_drawn_or_padded(changes):
    model = tiny("ovis2")
    for name, value in changes.items():
        setattr(model.config.vision_config, name, value)
    with pytest.raises(UnsupportedModelError, match=f"{ONE_LINE[:-2]}{next(iter(changes))}"):
        family_of(model)


@torch.no_grad()
def test_padding_inside_a_view():
    model = tiny("idefics3")
    batch = make_batch(model)
    pixels = batch.inputs["pixel_values"]
    mask = torch.ones(*pixels.shape[:2], SIDE, SIDE, dtype=torch.long)
    with prunetune.apply(model, make_config(model, "2")):
        model(**batch.inputs, pixel_attention_mask=mask)
        mask[0, 0, 20:] = 0
        with pytest.raises(UnsupportedModelError, match=ONE_LINE):
            model(**batch.inputs, pixel_attention_mask=mask)


def test_remote_code_has_a_conversion():
    model = SimpleNamespace(config=SimpleNamespace(model_type="internvl_chat"))
    with pytest.raises(UnsupportedModelError, match=r"\A[^\n]+-hf conversion[^\n]+\Z"):
        family_of(model)


def test_text_that_attends_in_both_directions():
    model = tiny("gemma3")
    prunetune.apply(model, make_config(model, "2")).remove()
    model.config.text_config.use_bidirectional_attention = True
    with pytest.raises(UnsupportedModelError, match=ONE_LINE):
        prunetune.apply(model, make_config(model, "2"))


def test_another_number_of_tokens_a_view():
    view = family_of(tiny("gemma3"))
    call = SimpleNamespace(arguments={"pixel_values": torch.zeros(2, 3, 32, 32)}, lengths=[16, 15])
    with pytest.raises(UnsupportedModelError, match=ONE_LINE):
        view.geometries(call)


def test_a_siglip_tower_without_a_readable_attention():
    model = tiny("paligemma")
    layer = model.model.vision_tower
    layer = getattr(layer, "vision_model", layer).encoder.layers[-1]
    layer.self_attn = torch.nn.Identity()
    with pytest.raises(UnsupportedModelError, match=ONE_LINE):
        prunetune.apply(model, make_config(model, [(0, 0.5, ("cls_attention",))]))
    prunetune.apply(model, make_config(model, [(0, 0.5, ("coverage",))])).remove()
