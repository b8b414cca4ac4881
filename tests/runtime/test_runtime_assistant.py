"""Assisted decoding: a pruned model checks the tokens that a plain, smaller one proposes."""

import pytest
import torch
from reference_models import family, make_batch, make_config, tiny
from transformers import DynamicCache

import prunetune
from prunetune.errors import UnsupportedModelError


def assisted():
    """Return a model, an assistant that often errs, and a prompt."""
    model, assistant = tiny("llava"), tiny("llava")
    generator = torch.Generator().manual_seed(0)
    weight = assistant.lm_head.weight.data
    weight += 0.02 * torch.randn(weight.shape, generator=generator)
    return model, assistant, make_batch(model, ((3, family("llava").image, 6),)).inputs


@pytest.mark.parametrize("schedule", ["2+4", "0", "0+1+3"])
@torch.no_grad()
def test_a_plain_assistant_equals_greedy(schedule, monkeypatch):
    removed = []
    crop = DynamicCache.crop
    monkeypatch.setattr(DynamicCache, "crop", lambda self, n: (removed.append(n), crop(self, n))[1])
    model, assistant, inputs = assisted()
    options = {"max_new_tokens": 16, "do_sample": False}
    with prunetune.apply(model, make_config(model, schedule)) as handle:
        expected = model.generate(**inputs, **options)
        assert not removed
        output = model.generate(**inputs, **options, assistant_model=assistant)
    assert any(n < 0 for n in removed), "no candidate was refused: nothing was tested"
    assert len(handle.trace) == 2
    assert torch.equal(output, expected)


@torch.no_grad()
def test_an_assistant_with_a_config_is_refused():
    """transformers passes it no images."""
    model, assistant, inputs = assisted()
    with (
        prunetune.apply(assistant, make_config(assistant)),
        pytest.raises(UnsupportedModelError, match=r"\A[^\n]+is an assistant[^\n]+\Z"),
    ):
        model.generate(**inputs, max_new_tokens=4, do_sample=False, assistant_model=assistant)
