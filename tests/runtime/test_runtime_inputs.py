"""Inputs in every shape a caller may pass them, against the masked reference."""

import copy

import pytest
import torch
from reference import alive_slots, reference_logits, worst
from reference_models import SCHEDULES, THOROUGH, Batch, make_batch, make_config, tiny
from test_runtime_refusals import windowed
from test_runtime_turns import Chat
from transformers import DynamicCache, StaticCache

import prunetune

TOLERANCE = 1e-5


def run(model, config, batch, **inputs):
    """Return a pruned forward's output and its gap to the reference at surviving slots."""
    plain = copy.deepcopy(model)
    with torch.no_grad(), prunetune.apply(model, config) as handle:
        output = model(**(dict(batch.inputs) | inputs))
        trace = handle.trace[-1]
    alive = alive_slots(tuple(batch.valid.shape), (0, trace))
    survives = batch.valid & alive[-1]
    logits = output[0] if isinstance(output, tuple) else output.logits
    reference = reference_logits(plain, batch, alive)
    return output, worst(logits[survives], reference[survives])


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("family", THOROUGH)
def test_padding_on_the_right(family, schedule):
    """As in training and in scoring a given answer."""
    model = tiny(family)
    left = make_batch(model)
    turned = {}
    for name in ("input_ids", "attention_mask"):
        rows = zip(left.inputs[name], left.valid, strict=True)
        turned[name] = torch.stack([row.roll(-int((~valid).sum())) for row, valid in rows])
    batch = Batch(left.inputs | turned, left.images)
    assert not batch.valid[:, -1].all()
    assert run(model, make_config(model, schedule), batch)[1] < TOLERANCE


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_no_mask_and_ragged_survivors(schedule, attention):
    """Rows of one length without padding become ragged: they hold unequal numbers of images."""
    model, size = tiny("llava", attention), (20, 20)
    batch = make_batch(model, ((2, size, size, 3), (20, size, 10), (55,)))
    assert batch.valid.all()
    config = make_config(model, schedule)
    for mask in (None, batch.inputs["attention_mask"], batch.valid, batch.valid.float()):
        assert run(model, config, batch, attention_mask=mask)[1] < TOLERANCE


@pytest.mark.parametrize("kind", ["bool", "additive"])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_four_dimensional_mask(schedule, kind):
    model = tiny("llava")
    batch = make_batch(model)
    mask = batch.valid[:, None, None] & torch.ones(batch.length, batch.length).bool().tril()
    mask = mask | torch.eye(batch.length, dtype=torch.bool)
    if kind == "additive":
        mask = torch.where(mask, 0.0, torch.finfo(torch.float32).min)
    config = make_config(model, schedule)
    assert run(model, config, batch, attention_mask=mask)[1] < TOLERANCE


@pytest.mark.parametrize("family", THOROUGH)
def test_positions_of_the_caller(family):
    model = tiny(family)
    batch = make_batch(model)
    positions = (batch.valid.cumsum(1) - 1).clamp_min(0) + 11
    config = make_config(model, "0+1+3")
    assert run(model, config, batch, position_ids=positions)[1] < TOLERANCE


@pytest.mark.parametrize("family", THOROUGH)
def test_other_outputs(family):
    model = tiny(family, "eager")
    batch, config = make_batch(model), make_config(model, "0+1+3")
    output, gap = run(model, config, batch, return_dict=False)
    assert isinstance(output, tuple)
    assert gap < TOLERANCE
    output, gap = run(model, config, batch, output_hidden_states=True, output_attentions=True)
    assert gap < TOLERANCE
    assert len(output.hidden_states) == 7
    assert len(output.attentions) == 6
    assert output.image_hidden_states is not None


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("schedule", ["0", "2+4"])
def test_gradients(schedule, checkpointing):
    """Pruning does not cut the graph: gradients equal those of the masked model."""
    model = tiny("llava")
    plain, batch, config = copy.deepcopy(model), make_batch(model), make_config(model, schedule)
    if checkpointing:
        model.gradient_checkpointing_enable()
        model.train()
    with prunetune.apply(model, config) as handle:
        logits = model(**batch.inputs, use_cache=False).logits
        logits[:, -1].square().sum().backward()
        trace = handle.trace[-1]
    alive = alive_slots(tuple(batch.valid.shape), (0, trace))
    reference = reference_logits.__wrapped__(plain, batch, alive)
    reference[:, -1].square().sum().backward()
    pairs = zip(model.named_parameters(), plain.parameters(), strict=True)
    compared = 0
    for (name, one), two in pairs:
        assert (one.grad is None) == (two.grad is None), name
        if one.grad is not None:
            compared += 1
            assert worst(one.grad, two.grad) < 1e-4 * max(1.0, float(two.grad.abs().max())), name
    assert compared > 50


def test_gradients_pass_a_restorer():
    """What it blends is a constant; all other tokens stay in the graph."""
    model = tiny("llava")
    batch = make_batch(model)
    config = make_config(model, [(2, 0.4, ("random",), {"name": "grid_recycling", "size": 2})])
    with prunetune.apply(model, config):
        model(**batch.inputs).logits[:, -1].square().sum().backward()
    below = model.model.language_model.layers[1].mlp.up_proj.weight.grad
    assert below is not None
    assert below.abs().max() > 0


@pytest.mark.parametrize("schedule", ["2+4", "2"])
@torch.no_grad()
def test_masks_by_kind_of_layer(schedule):
    """A static cache of windowed and other layers: the masks come in a dict."""
    model = windowed("qwen2, windowed", 400)
    kinds = []
    hook = model.model.register_forward_pre_hook(
        lambda m, args, kwargs: kinds.append(type(kwargs.get("attention_mask"))), with_kwargs=True
    )
    cache = StaticCache(model.config.text_config, max_cache_len=160)
    config = make_config(model, schedule)
    chat = Chat(model, config, cache)
    with prunetune.apply(model, config) as handle:
        chat.turn(handle, make_batch(model, ((5,), (3,), (4,)), seed=1))
        chat.turn(handle, make_batch(model, seed=2))
        chat.turn(handle, make_batch(model, ((2,), (3,), (1,)), seed=3))
    hook.remove()
    assert dict in kinds
    assert chat.gap() < TOLERANCE


@pytest.mark.parametrize("image", [20, 0], ids=["image", "text"])
@pytest.mark.parametrize("kind", ["dynamic", "static"])
@pytest.mark.parametrize("schedule", SCHEDULES)
@torch.no_grad()
def test_a_cache_that_was_reset_starts_anew(schedule, kind, image):
    """A server that keeps one allocated cache: nothing of the last prompt is left in it."""
    model = tiny("llava")
    config, text = make_config(model, schedule), model.config.text_config
    cache = DynamicCache(config=text) if kind == "dynamic" else StaticCache(text, max_cache_len=120)
    chat = Chat(model, config, cache)
    with prunetune.apply(model, config) as handle:
        first = make_batch(model, seed=1)
        model.generate(**first.inputs, past_key_values=cache, do_sample=False, max_new_tokens=4)
        if kind == "dynamic":
            cache.crop(-max(layer.keys.shape[-2] for layer in cache.layers))
            assert all(layer.keys.shape[-2] == 0 for layer in cache.layers)
        else:
            cache.reset()
        first = (2, (image, image), 3) if image else (40,)
        chat.turn(handle, make_batch(model, (first,) * 3, seed=2))
        chat.turn(handle, make_batch(model, ((2,), (4,), (1,)), seed=3))
    assert chat.gap() < TOLERANCE


@pytest.mark.parametrize("family", THOROUGH)
@torch.no_grad()
def test_a_given_answer_does_not_choose_the_tokens(family):
    """Scoring an answer (``logits_to_keep``) prunes as the prompt alone would."""
    model = tiny(family)
    batch, config = make_batch(model), make_config(model, [(2, 0.4, ("last_query",))])
    answer = torch.randint(2, 99, (3, 4), generator=torch.Generator().manual_seed(0))
    ids = torch.cat([batch.inputs["input_ids"], answer], 1)
    mask = torch.nn.functional.pad(batch.inputs["attention_mask"], (0, 4), value=1)
    whole = batch.inputs | {"input_ids": ids, "attention_mask": mask}
    with prunetune.apply(model, config) as handle:
        prompt = model(**batch.inputs).logits[:, -1]
        scored = model(**whole, logits_to_keep=5).logits[:, 0]
        everything = model(**whole, logits_to_keep=ids.shape[1]).logits
        plain = model(**whole).logits
        kept = [trace.stages[0].kept for trace in handle.trace]
    assert all(map(torch.equal, kept[0], kept[1]))
    assert worst(prompt, scored) < TOLERANCE
    # Where the prompt ends is not told by these two: the last token's attention decides.
    assert torch.equal(everything, plain)
    assert not all(map(torch.equal, kept[0], kept[2]))
