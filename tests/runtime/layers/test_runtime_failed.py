"""A cache that a failed forward has grown in some layers only is not continued."""

import pytest
import torch
from reference import worst
from reference_models import make_batch, make_config, tiny
from transformers import DynamicCache, StaticCache

import prunetune
from prunetune.errors import ConfigError

ONE_LINE = r"\Aa forward over this cache failed[^\n]+start a new cache\Z"


class Fails(torch.nn.Module):
    """Raises on its way through a decoder layer."""

    def forward(self, *args, **kwargs):
        raise RuntimeError("out of memory")


@pytest.mark.parametrize("schedule", ["2", "0"])
@pytest.mark.parametrize("kind", ["dynamic", "static"])
@pytest.mark.parametrize("turn", ["first", "second"])
@torch.no_grad()
def test_a_cache_of_a_failed_forward_is_refused(schedule, kind, turn):
    """Layers before the one that failed have cached the tokens, the others have not."""
    model = tiny("llava")
    text = model.config.get_text_config()
    cache = DynamicCache(config=text) if kind == "dynamic" else StaticCache(text, max_cache_len=200)
    batch, more = make_batch(model), {"input_ids": torch.full((3, 2), 7)}
    with prunetune.apply(model, make_config(model, schedule)):
        expected = model(**batch.inputs).logits
        if turn == "second":
            model(**batch.inputs, past_key_values=cache, use_cache=True)
        layers = model.model.language_model.layers
        whole, layers[3].mlp = layers[3].mlp, Fails()
        with pytest.raises(RuntimeError, match="out of memory"):
            model(**(batch.inputs if turn == "first" else more), past_key_values=cache)
        layers[3].mlp = whole
        for _ in range(2):
            with pytest.raises(ConfigError, match=ONE_LINE):
                model(**more, past_key_values=cache)
        if kind == "dynamic":  # On transformers 5.17 its reset leaves it as long as it was.
            return
        cache.reset()
        again = model(**batch.inputs, past_key_values=cache, use_cache=True).logits
        assert worst(again, expected) < 1e-5
        model(**more, past_key_values=cache)


@torch.no_grad()
def test_a_cache_that_a_failed_forward_left_as_it_was_goes_on():
    """The vision tower fails before any layer of the language model has run."""
    model = tiny("llava")
    batch, more = make_batch(model), {"input_ids": torch.full((3, 2), 7)}
    with prunetune.apply(model, make_config(model, "2")):
        cache = model(**batch.inputs, use_cache=True).past_key_values
        whole, model.model.multi_modal_projector = model.model.multi_modal_projector, Fails()
        with pytest.raises(RuntimeError, match="out of memory"):
            model(**batch.inputs, past_key_values=cache)
        model.model.multi_modal_projector = whole
        model(**more, past_key_values=cache)
