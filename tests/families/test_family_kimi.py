"""Kimi K2.5, PaddleOCR-VL: the tower's own attention, pictures from patches, refusals."""

import sys

import pytest
import torch
from family_models.kimi_k25 import MERGE, PATCH
from reference import worst
from reference_models import make_batch, make_config, tiny
from test_family_granite import Probe

import prunetune
from prunetune.errors import UnsupportedModelError
from prunetune.families.base_calls import VisionCall
from prunetune.runtime.apply import family_of

NAME = "kimi_k25"


@pytest.mark.parametrize("name", [NAME, "paddleocr_vl"])
@torch.no_grad()
def test_a_token_receives_what_its_patches_do(name):
    model, plain = tiny(name), tiny(name, "eager")
    batch, weights = make_batch(model), []
    attention = family_of(plain).vision_attention_module()
    code = sys.modules[type(attention).__module__]
    own = code.eager_attention_forward

    def noted(module, *args, **kwargs):
        output, found = own(module, *args, **kwargs)
        if module is attention:
            weights.append(found[0].mean(0))
        return output, found

    Probe.seen.clear()
    with prunetune.apply(model, make_config(model, [(0, 0.5, (Probe(),))])):
        model(**batch.inputs)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(code, "eager_attention_forward", noted)
        plain(**batch.inputs)
    for context, (_, h, w), found in zip(
        Probe.seen, batch.inputs["image_grid_thw"].tolist(), weights, strict=True
    ):
        received = found.mean(0).view(h // MERGE, MERGE, w // MERGE, MERGE).sum((1, 3)).flatten()
        assert worst(context.vision_attention, received) < 1e-6
        assert received.std() > 1e-5


@pytest.mark.parametrize("name", [NAME, "paddleocr_vl"])
def test_pictures_are_put_together_row_by_row(name):
    whole = torch.rand(3, 6 * PATCH, 8 * PATCH)
    patches = whole.view(3, 6, PATCH, 8, PATCH).permute(1, 3, 0, 2, 4).flatten(0, 1)
    call = VisionCall({"pixel_values": patches, "image_grid_thw": torch.tensor([[1, 6, 8]])}, [12])
    [made] = family_of(tiny(name)).pixels(call)
    assert torch.equal(made[0], whole)


def test_frames_and_queries_are_refused():
    view = family_of(tiny(NAME))
    with pytest.raises(UnsupportedModelError, match=r"\A[^\n]*several frames[^\n]*\Z"):
        view.grids(VisionCall({"image_grid_thw": torch.tensor([[2, 4, 4]])}, [4]))
    for name in ("last_query", "key_norm"):
        with pytest.raises(UnsupportedModelError, match=rf"\A[^\n]*{name}[^\n]*\Z"):
            prunetune.apply(view.model, make_config(view.model, [(1, 0.5, (name,))]))
