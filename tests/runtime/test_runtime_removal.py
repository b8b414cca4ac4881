"""Keeping everything is the identity, and a handle leaves nothing behind."""

import threading
from contextlib import nullcontext

import family_models
import pytest
import torch
from reference import alive_slots, reference_logits, worst
from reference_models import SCHEDULES, THOROUGH, available, make_batch, make_config, tiny

import prunetune
from prunetune.errors import ConfigError, PrunetuneError

KEEP_ALL = [(0, 1.0, ("random",)), (2, 1.0, ("topv",)), (4, 1.0, ("last_query",))]


def generate(model, batch, **options):
    options = {"max_new_tokens": 6, "do_sample": False} | options
    return model.generate(**batch.inputs, **options)


@pytest.mark.parametrize("positions", ["original", "packed"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", THOROUGH)
@torch.no_grad()
def test_keeping_everything_is_the_identity(family, attention, positions):
    model = tiny(family, attention)
    stages = available(KEEP_ALL, family_models.family(family))
    batch, config = make_batch(model), make_config(model, stages, positions=positions)
    plain = model(**batch.inputs, output_hidden_states=True)
    tokens = generate(model, batch)
    with prunetune.apply(model, config) as handle:
        pruned = model(**batch.inputs, output_hidden_states=True)
        assert [s.after for s in handle.trace[-1].stages] == [[sum(i) for i in batch.images]] * len(
            config.stages
        )
        assert worst(pruned.logits[batch.valid], plain.logits[batch.valid]) <= 1e-6
        assert torch.equal(generate(model, batch), tokens)


def snapshot(model):
    """Return everything that pruning might leave on a model: hooks, attributes, settings."""
    hooks = [
        name
        for name in vars(torch.nn.Module())
        if name.endswith(("_hooks", "_with_kwargs", "_always_called"))
    ]
    assert "_forward_pre_hooks" in hooks
    return {
        path: (
            type(module),
            {name: list(getattr(module, name)) for name in hooks},
            # Qwen-VL notes the offset of its last input's positions, pruned or not.
            {k: id(v) for k, v in vars(module).items() if k not in (*hooks, "rope_deltas")},
            repr(getattr(module, "config", None)),
        )
        for path, module in model.named_modules()
    }


def leave(how, model, config, batch):
    if how == "remove":
        handle = prunetune.apply(model, config)
        model(**batch.inputs)
        handle.remove()
        handle.remove()
        return
    with prunetune.apply(model, config):
        if how == "error in the forward":
            model(**batch.inputs | {"input_ids": batch.inputs["input_ids"][:, 8:]})
        generate(model, batch)
        if how == "error in the block":
            raise ZeroDivisionError


ERRORS = {"error in the block": ZeroDivisionError, "error in the forward": Exception}


@pytest.mark.parametrize("how", ["with", "remove", "error in the block", "error in the forward"])
@pytest.mark.parametrize("family", THOROUGH)
@torch.no_grad()
def test_leaves_the_model_as_found(family, how):
    model = tiny(family)
    batch, config = make_batch(model), make_config(model, "0+1+3")
    before, found = model(**batch.inputs).logits, snapshot(model)
    with pytest.raises(ERRORS[how]) if how in ERRORS else nullcontext():
        leave(how, model, config, batch)
    assert snapshot(model) == found
    assert "get_image_features" not in vars(model.model)
    assert torch.equal(model(**batch.inputs).logits, before)


def test_the_snapshot_sees_a_hook_and_an_attribute():
    """The pair of the test above: what it looks at changes when something is left behind."""
    model = tiny("llava")
    found = snapshot(model)
    hook = model.model.language_model.layers[2].register_forward_pre_hook(lambda *_: None)
    assert snapshot(model) != found
    hook.remove()
    assert snapshot(model) == found
    model.model.get_image_features = model.model.get_image_features
    assert snapshot(model) != found


@torch.no_grad()
def test_one_handle_a_model():
    model = tiny("llava")
    batch, config = make_batch(model), make_config(model)
    with prunetune.apply(model, config) as handle:
        with pytest.raises(PrunetuneError, match=r"^[^\n]+$"):
            prunetune.apply(model, config)
        model(**batch.inputs)
        assert len(handle.trace) == 1
    with prunetune.apply(model, make_config(model, "0")) as handle:
        model(**batch.inputs)
        assert [s.layer for s in handle.trace[-1].stages] == [0]


def test_a_removed_handle_is_not_entered():
    """Nothing would be pruned inside."""
    model = tiny("llava")
    with prunetune.apply(model, make_config(model)) as handle:
        pass
    with pytest.raises(ConfigError, match=r"\A[^\n]+apply again\Z"), handle:
        pass


@torch.no_grad()
def test_an_interrupted_forward_is_forgotten():
    """After a KeyboardInterrupt torch calls no hooks; the forward would keep its cache."""
    model = tiny("llava")
    batch, layers = make_batch(model), model.model.language_model.layers

    def interrupt(*_):
        raise KeyboardInterrupt

    with prunetune.apply(model, make_config(model)) as handle:
        expected = generate(model, batch)
        hook = layers[-1].register_forward_pre_hook(interrupt)
        for _ in range(2):
            with pytest.raises(KeyboardInterrupt):
                generate(model, batch)
        hook.remove()
        assert torch.equal(generate(model, batch), expected)
        assert not handle.frames


@pytest.mark.parametrize("family", THOROUGH)
@torch.no_grad()
def test_text_alone_is_untouched(family):
    model = tiny(family)
    batch = make_batch(model, ((9,), (4,), (6,)))
    plain, tokens = model(**batch.inputs).logits, generate(model, batch)
    with prunetune.apply(model, make_config(model, "0+1+3")) as handle:
        assert torch.equal(model(**batch.inputs).logits, plain)
        assert torch.equal(generate(model, batch), tokens)
        assert not handle.trace


@pytest.mark.parametrize("family", THOROUGH)
@torch.no_grad()
def test_embeddings_instead_of_ids(family):
    model = tiny(family)
    batch, config = make_batch(model), make_config(model, "0+1+3")
    inputs = dict(batch.inputs)
    inputs |= family_models.family(model).explicit_positions(model, inputs)
    inputs["inputs_embeds"] = model.get_input_embeddings()(inputs.pop("input_ids"))
    text = {k: inputs[k] for k in ("inputs_embeds", "attention_mask")}
    plain = model(**text).logits
    with prunetune.apply(model, config) as handle:
        assert torch.equal(model(**text).logits, plain)
        assert not handle.trace
        assert worst(model(**inputs).logits, model(**batch.inputs).logits) < 1e-6
        assert len(handle.trace) == 2


@pytest.mark.parametrize("schedule", SCHEDULES)
@torch.no_grad()
def test_two_threads_on_one_model(schedule):
    model = tiny("llava_next")
    config = make_config(model, schedule)
    batches = [make_batch(model, seed=s) for s in (1, 2)]
    batches.append(make_batch(model, ((2, (20, 60), 4),), seed=3))
    got, errors = {}, []
    with prunetune.apply(model, config):
        alone = [generate(model, batch) for batch in batches]
        barrier = threading.Barrier(len(batches))

        def work(i):
            try:
                barrier.wait()
                with torch.no_grad():
                    got[i] = [generate(model, batches[i]) for _ in range(3)]
            except Exception as error:
                errors.append(error)

        threads = [threading.Thread(target=work, args=(i,)) for i in range(len(batches))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not errors
    for i, tokens in enumerate(alone):
        assert all(torch.equal(again, tokens) for again in got[i])


@torch.no_grad()
def test_the_trace_is_bounded():
    model = tiny("llava")
    batch = make_batch(model, ((2, (20, 20), 2),))
    with prunetune.apply(model, make_config(model, "2")) as handle:
        model(**batch.inputs)
        first = handle.trace[-1]
        for _ in range(80):
            model(**batch.inputs)
        assert len(handle.trace) <= 64
        assert all(trace is not first for trace in handle.trace)


@pytest.mark.parametrize("family", THOROUGH)
@torch.no_grad()
def test_a_row_without_images(family):
    """A text prompt may share a batch with prompts that have images."""
    model = tiny(family)
    size = (20, 20)
    batch = make_batch(model, ((3, size, 4), (6,), (1, size, 2)))
    with prunetune.apply(model, make_config(model, "0+1+3")) as handle:
        logits = model(**batch.inputs).logits
        trace = handle.trace[-1]
    alive = alive_slots(tuple(batch.valid.shape), (0, trace))
    survives = batch.valid & alive[-1]
    assert [len(kept) > 0 for kept in trace.stages[-1].kept] == [True, False, True]
    assert worst(logits[survives], reference_logits(model, batch, alive)[survives]) < 1e-5
