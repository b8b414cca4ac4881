"""What is copied, pickled or saved of a model with a config applied is the model without it."""

import copy
import io
import pickle

import pytest
import torch
from reference_models import make_batch, make_config, tiny
from test_runtime_removal import snapshot

import prunetune
from prunetune.errors import ConfigError
from prunetune.runtime.copies import Before


def saved(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


COPIED = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),  # noqa: S301
    "torch.save": saved,
}
# Qwen3-VL's language model is given another method; the tower is read for cls_attention.
FAMILIES = {"llava": "0+1+3", "llava_next": "2+4", "qwen3_vl": "2+4"}


def parts(model):
    found = snapshot(model)
    # Instances differ from copy to copy; what is there and which hooks are must not.
    return {path: (one[0], one[1], set(one[2]), one[3]) for path, one in found.items()}


def each_part(model):
    """Return the modules that people take out of a model, by path."""
    text = "model.language_model"
    return ["", "model", text, f"{text}.layers", f"{text}.layers.1", f"{text}.layers.3"]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("how", COPIED)
@torch.no_grad()
def test_a_copy_is_clean(family, how):
    model = tiny(family)
    batch, config = make_batch(model), make_config(model, FAMILIES[family])
    plain = tiny(family)(**batch.inputs).logits
    found = {path: parts(model.get_submodule(path)) for path in each_part(model)}
    with prunetune.apply(model, config) as handle:
        # Before its first forward, which puts hooks of transformers' own that are never pickled.
        copies = {path: COPIED[how](model.get_submodule(path)) for path in found}
        pruned = model(**batch.inputs).logits
        late = copy.deepcopy(model)
    assert torch.equal(late(**batch.inputs).logits, plain)
    for path, one in copies.items():
        assert parts(one) == found[path], path
    forwards = len(handle.trace)
    one = copies[""]
    assert torch.equal(one(**batch.inputs).logits, plain)
    with prunetune.apply(one, config):
        assert torch.equal(one(**batch.inputs).logits, pruned)
    assert torch.equal(one(**batch.inputs).logits, plain)
    assert len(handle.trace) == forwards


@torch.no_grad()
def test_only_what_apply_put_on_is_left_out(caplog):
    model, calls = tiny("llava"), []
    config = make_config(model, [(2, 0.5, ("random",))])
    layer = model.model.language_model.layers[2]
    layer.register_forward_pre_hook(lambda *_: calls.append("before"))
    with prunetune.apply(model, config):
        layer.register_forward_pre_hook(lambda *_: calls.append("after"))
        model.model.note = "mine"
        one = copy.deepcopy(model)
        copy.deepcopy(model)
        shallow = copy.copy(layer)
        assert len(layer._forward_pre_hooks) == 3
    (record,) = caplog.records
    assert "apply the config to the copy" in record.getMessage()
    one(**make_batch(model).inputs)
    assert calls == ["before", "after"]
    assert one.model.note == "mine"
    assert len(shallow._forward_pre_hooks) == 2


@torch.no_grad()
def test_a_copy_takes_the_models_own_attention():
    """With mass, attention modules have another config while one is applied."""
    model = tiny("llava", "sdpa")
    for part in model.modules():
        if hasattr(part, "config"):
            part.config._attn_implementation_internal = "flash_attention_2"
    stage = {"layer": 1, "retention": 0.5, "scorers": [{"name": "random"}], "mass": 1.0}
    reference = {"model_type": "llava", "num_layers": model.config.text_config.num_hidden_layers}
    data = {"format": "prunetune.config", "version": 2, "model": reference, "stages": [stage]}
    attention = model.model.language_model.layers[2].self_attn
    with prunetune.apply(model, prunetune.PruningConfig.parse(data)) as handle:
        assert attention.config is not model.model.language_model.config
        one = copy.deepcopy(model)
        with pytest.raises(ConfigError, match=r"\A[^\n]+apply the config to the copy\Z"):
            copy.deepcopy(handle)
    own = one.model.language_model.layers[2].self_attn.config
    assert own is one.model.language_model.config
    assert own._attn_implementation == "flash_attention_2"


def test_without_the_watch_a_copy_carries_hooks(monkeypatch):
    """The pair of the tests above."""
    monkeypatch.setattr(Before, "watch", lambda *_: lambda: None)
    model = tiny("llava")
    layers = model.model.language_model.layers
    with prunetune.apply(model, make_config(model)):
        copied = copy.deepcopy(layers)
    assert parts(copied) != parts(layers)
