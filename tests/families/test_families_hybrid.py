"""Hybrid models: a token that never enters a layer is in no state of it."""

import pytest
import torch
from family_models import each, family
from reference import alive_slots, removed, worst
from reference_models import LAYERS, make_batch, make_config, tiny
from transformers import LlavaConfig, LlavaForConditionalGeneration, Qwen3NextConfig

import prunetune
from prunetune.errors import UnsupportedModelError
from prunetune.release import cache_of
from prunetune.runtime.apply import family_of

TOLERANCE = 1e-5
every = pytest.mark.parametrize("name", each("qwen3_5", "lfm2_vl", "minicpmv4_6"))


def states(output):
    """Return all states that a cache carries, one tensor each."""
    layers = [one for one in cache_of(output).layers if hasattr(one, "conv_states")]
    assert len(layers) == 4
    found = [one.conv_states[0] for one in layers]
    return found + [
        one.recurrent_states[0] for one in layers if one.recurrent_states.get(0) is not None
    ]


def gap(name, kept=None):
    """Return how far the pruned states are from those of a run on what is left alone."""
    model = tiny(name)
    batch = make_batch(model, (make_rows(name),))
    config = make_config(model, [(0, 0.4, ("random",))])
    seen = {}

    def note(text, args, kwargs):
        seen.update(kwargs)

    with torch.no_grad():
        hook = model.model.language_model.register_forward_pre_hook(note, with_kwargs=True)
        model(**batch.inputs)
        hook.remove()
        with prunetune.apply(model, config) as handle:
            pruned = states(model(**batch.inputs, use_cache=True))
            trace = handle.trace[-1]
        alive = torch.ones(batch.length, dtype=torch.bool)
        alive[trace.image_slots[0]] = False
        alive[trace.stages[0].kept[0] if kept is None else trace.image_slots[0][:kept]] = True
        places = seen.get("position_ids")
        places = torch.arange(batch.length)[None] if places is None else places[-3:]
        left = model.model.language_model(
            inputs_embeds=seen["inputs_embeds"][:, alive], position_ids=places[..., alive],
            attention_mask=torch.ones(1, int(alive.sum()), dtype=torch.long), use_cache=True,
        )  # fmt: skip
    return max(worst(one, two) for one, two in zip(pruned, states(left), strict=True))


def make_rows(name):
    return (3, family(name).image, 4, family(name).other, 2)


@every
def test_states_are_those_of_what_is_left(name):
    assert gap(name) < TOLERANCE


@every
def test_other_tokens_would_be_noticed(name):
    """Its pair: states of as many other tokens are far away."""
    assert gap(name, kept=9) > 100 * TOLERANCE


@pytest.mark.parametrize("name", each("lfm2_vl"))
def test_padding_never_runs_through_a_state(name):
    """Rows of unequal length behind a first turn are refused, not answered wrongly."""
    model = tiny(name)
    config = make_config(model, [(0, 0.4, ("random",))])
    first = make_batch(model, ((4,), (4,)))
    image = make_batch(model, (make_rows(name), (*make_rows(name)[:3], 3)), seed=1)
    with torch.no_grad(), prunetune.apply(model, config):
        cache = cache_of(model(**first.inputs, use_cache=True))
        mask = torch.cat([first.inputs["attention_mask"], image.inputs["attention_mask"]], 1)
        inputs = image.inputs | {"attention_mask": mask}
        with pytest.raises(UnsupportedModelError, match=r"\A[^\n]+batches of one\Z"):
            model(**inputs, past_key_values=cache, use_cache=True)


# -- a family of any language model ---------------------------------------------------------------

CARRYING = ["linear_attention", "full_attention"] * 3


def hybrid(kinds):
    """Return LLaVA over a language model of layers of these kinds."""
    torch.manual_seed(0)
    text = Qwen3NextConfig(
        vocab_size=120, hidden_size=64, intermediate_size=96, num_hidden_layers=LAYERS,
        num_attention_heads=4, num_key_value_heads=2, head_dim=16, num_experts=0,
        layer_types=kinds, pad_token_id=0, rms_norm_eps=1e-2, initializer_range=0.1,
        linear_num_key_heads=2, linear_num_value_heads=4, linear_key_head_dim=8,
        linear_value_head_dim=8,
    )  # fmt: skip
    vision = family("llava").model().config.vision_config
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_id=99)
    return LlavaForConditionalGeneration(config).eval()


@pytest.mark.parametrize("kinds", [CARRYING, ["full_attention"] * 6], ids=["hybrid", "plain"])
def test_behind_a_layer_that_carries_a_state_nothing_is_dropped(kinds):
    """Its pair has attention everywhere."""
    model = hybrid(kinds)
    if kinds is CARRYING:
        match = r"\A[^\n]*layer 2, allowed layer 0[^\n]*kind linear_attention[^\n]+\Z"
        with pytest.raises(UnsupportedModelError, match=match):
            prunetune.apply(model, make_config(model, "2+4"))
    else:
        prunetune.apply(model, make_config(model, "2+4")).remove()


@torch.no_grad()
def test_before_a_layer_that_carries_a_state_tokens_leave():
    """What is left is all that the language model has seen."""
    model = hybrid(CARRYING)
    batch = make_batch(model)
    plain = model(**batch.inputs).logits
    with prunetune.apply(model, make_config(model, "0")) as handle:
        pruned = model(**batch.inputs).logits
        decoded = model.generate(
            **batch.inputs, max_new_tokens=5, pad_token_id=0, do_sample=False,
            return_dict_in_generate=True, output_logits=True,
        )  # fmt: skip
        trace = handle.trace[-1]
    alive = alive_slots(tuple(batch.valid.shape), (0, trace))
    whole = {"input_ids": decoded.sequences, "attention_mask": batch.inputs["attention_mask"]}
    whole["attention_mask"] = torch.nn.functional.pad(whole["attention_mask"], (0, 5), value=1)
    with removed(model, batch.valid, alive):
        expected = model(**batch.inputs | whole, use_cache=False).logits
    left = batch.valid & alive[-1]
    assert worst(pruned[left], expected[:, : batch.length][left]) < TOLERANCE
    steps = torch.stack(decoded.logits, 1)
    assert worst(steps, expected[:, batch.length - 1 : -1]) < TOLERANCE
    assert worst(pruned[:, -1], plain[:, -1]) > 0.02


@pytest.mark.parametrize("kinds", [["mamba", "full_attention"] * 3, ["linear_attention"] * 6])
def test_layers_of_other_kinds_are_refused(kinds):
    """And a language model none of whose layers keeps keys."""
    model = hybrid(CARRYING)
    model.config.text_config.layer_types = kinds
    match = r"\A[^\n]*(kind mamba|no layer[^\n]*keeps keys)[^\n]*\Z"
    with pytest.raises(UnsupportedModelError, match=match):
        family_of(model)
