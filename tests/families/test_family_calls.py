"""Other ways to call models with blocks, kinds of layers and joined views."""

import pytest
import test_runtime_generate
import test_runtime_inputs
import torch
from reference import worst
from reference_models import Batch, make_batch, make_config, tiny

TOLERANCE = 1e-5
FAMILIES = ("gemma3", "idefics3", "internvl", "paligemma", "smolvlm")
every = pytest.mark.parametrize("family", FAMILIES)


@every
def test_a_given_answer_does_not_choose_the_tokens(family):
    """Token types that end with the prompt leave the answer causal, as in transformers."""
    test_runtime_inputs.test_a_given_answer_does_not_choose_the_tokens(family)


@every
def test_positions_of_the_caller(family):
    test_runtime_inputs.test_positions_of_the_caller(family)


@every
def test_padding_on_the_right(family):
    model = tiny(family)
    left = make_batch(model)
    turned = {}
    for name in left.inputs.keys() & {"input_ids", "attention_mask", "token_type_ids"}:
        rows = zip(left.inputs[name], left.valid, strict=True)
        turned[name] = torch.stack([row.roll(-int((~valid).sum())) for row, valid in rows])
    batch = Batch(left.inputs | turned, left.images)
    assert not batch.valid[:, -1].all()
    config = make_config(model, "0+1+3")
    assert test_runtime_inputs.run(model, config, batch)[1] < TOLERANCE


@pytest.mark.parametrize("family", [name for name in FAMILIES if name != "paligemma"])
def test_prompt_lookup_equals_greedy(family, monkeypatch):
    test_runtime_generate.test_prompt_lookup_equals_greedy(family, "0+1+3", monkeypatch)


@torch.no_grad()
def test_prompt_lookup_is_transformers_own_mistake_with_paligemma():
    """It lets candidates join the prompt's block, so that the prompt sees them; unpruned too."""
    model = tiny("paligemma")
    batch = make_batch(model, ((3, (20, 20), 6),))
    ids = batch.inputs["input_ids"]
    ids[:, -6:-3] = ids[:, -3:]
    greedy, lookup = (
        test_runtime_generate.generate(model, batch, max_new_tokens=4, **options).logits[0]
        for options in ({}, {"prompt_lookup_num_tokens": 4})
    )
    assert worst(greedy, lookup) > 100 * TOLERANCE
