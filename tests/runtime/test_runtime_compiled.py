"""Models that ``torch.compile`` has compiled before a config comes, changes and goes."""

import pytest
import torch
from reference import worst
from reference_models import family, make_batch, make_config, tiny
from transformers import CompileConfig

import prunetune
from prunetune.runtime import handle

EQUAL = tuple((before, family("llava").image, 5 - before) for before in (2, 4))
COVERAGE = ((2, 0.3, ("coverage",)),)


def generate(model, batch, **options):
    """Decode greedily; with ``options`` that ask for it by compiled steps, as on a GPU."""
    output = model.generate(
        **batch.inputs, **options, max_new_tokens=3, do_sample=False,
        return_dict_in_generate=True, output_logits=True,
    )  # fmt: skip
    return torch.stack(output.logits, 1)


def warmed_up(rows):
    """Return what a server has that decodes over a StaticCache, and the gap once it prunes."""
    torch.compiler.reset()
    compiling = CompileConfig(backend="eager", mode=None)
    compiling._compile_all_devices = True
    static = {"cache_implementation": "static", "compile_config": compiling}
    model = tiny("llava")
    batch, config = make_batch(model, rows), make_config(model, COVERAGE)
    plain = generate(model, batch)
    assert worst(generate(model, batch, **static), plain) < 1e-5
    with prunetune.apply(model, config):
        gap = worst(generate(model, batch, **static), generate(model, batch))
    return gap, worst(generate(model, batch, **static), plain)


@pytest.mark.script
@pytest.mark.timeout(600)
@torch.no_grad()
def test_a_compiled_decoding_step_is_compiled_anew(monkeypatch):
    """One test: each process that compiles takes seconds to get ready for it."""
    for rows in (EQUAL[:1], None):
        pruned, after = warmed_up(rows)
        assert pruned < 1e-5, rows
        assert after < 1e-5, rows
    # The twin: compiled code that is left in place would be noticed.
    monkeypatch.setattr(handle, "forget_compiled", lambda: None)
    # Several rows make layer 0 of the cache one of another class: compiled for anew by itself.
    assert warmed_up(EQUAL[:1])[0] > 0.1


@torch.no_grad()
def test_layers_compiled_one_by_one():
    """A stage inside what is compiled, with states that it taps there: the layer's hooks are."""
    model = tiny("llava")
    batch, config = make_batch(model), make_config(model, [(2, 0.4, ("random", "topv"))])
    plain = model(**batch.inputs).logits
    with prunetune.apply(model, config):
        expected = model(**batch.inputs).logits
    for layer in model.model.language_model.layers[1:3]:
        layer.compile(backend="eager")
    assert worst(model(**batch.inputs).logits, plain) < 1e-5
    with prunetune.apply(model, config) as applied:
        assert worst(model(**batch.inputs).logits, expected) < 1e-5
        assert len(applied.trace) == 1
    assert worst(model(**batch.inputs).logits, plain) < 1e-5
