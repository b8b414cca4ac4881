"""Every recipe of docs/recipes.md runs as written, on the embedded model, and prunes."""

import json
import re
import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from cli_runner import refused
from torch import nn

import prunetune
from prunetune.calibration import encode, load_calibration
from prunetune.config import PruningConfig
from prunetune.models import load_model
from prunetune.models.fingerprint import weights_digest
from prunetune.models.load import EMBEDDED
from prunetune.presets import load_preset
from prunetune.scorers import SCORERS

PAGE = Path(__file__).resolve().parents[1] / "docs" / "recipes.md"
BLOCKS = {
    name: block
    for block in re.findall(r"```python\n(.*?)```", PAGE.read_text("utf-8"), re.S)
    for name in re.findall(r"# recipe: (\w+)", block)
}
NEEDS = {"pipeline": "transformers"}
KEEP = 0.25


@pytest.fixture(scope="module")
def sample():
    return load_calibration("tiny", samples=1)[0].samples[0]


@pytest.fixture
def run(sample, tmp_path):
    """Run a recipe, and return its names: what is not said in the page is as the page says."""

    def recipe(name):
        needed = NEEDS.get(name, name)
        if find_spec(needed) is None:
            pytest.skip(f"{needed} is not installed")
        config, _ = load_preset("uniform", model_type="llava_next", num_layers=16, keep=KEEP)
        part = [{"type": "image", "image": next(iter(sample.images))}]
        part += [{"type": "text", "text": sample.question}]
        processor = load_model("tiny").processor
        names = {
            "NAME": str(EMBEDDED),
            "CONFIG": str(config.save(tmp_path / "c.prune.json")),
            "messages": [{"role": "user", "content": part}],
            "inputs": encode(processor, [sample]),
        }
        with torch.no_grad():
            exec(compile(BLOCKS[name], f"{PAGE.name}: {name}", "exec"), names)
        return names

    return recipe


def pruned(model, inputs, config):
    """Return a prompt's last logits with and without a config, which has to be off by now."""
    with torch.no_grad():
        plain = model(**inputs).logits[:, -1]
        with prunetune.apply(model, config) as handle:
            found = model(**inputs).logits[:, -1]
            stage = handle.trace[-1].stages[-1]
    assert sum(stage.after) == pytest.approx(KEEP * sum(stage.before), abs=1), stage
    assert not found.allclose(plain, atol=1e-3)
    return found, plain


def test_there_is_one_for_each():
    assert set(BLOCKS) == {"pipeline", "peft", "torchao", "bitsandbytes"}


def test_pipeline(run, sample):
    names = run("pipeline")
    assert isinstance(names["answer"][0]["generated_text"], str)
    assert len(names["handle"].trace) > 0
    pruned(names["pipe"].model, names["inputs"], names["CONFIG"])


def test_peft(run):
    names = run("peft")
    assert not names["adapted"].allclose(names["plain"], atol=1e-3)
    assert names["same"].allclose(names["adapted"], atol=1e-4)
    pruned(names["merged"], names["inputs"], names["CONFIG"])


@pytest.mark.parametrize("name", ["torchao", "bitsandbytes"])
def test_quantised(run, name):
    names = run(name)
    assert names["ids"].shape[1] > names["inputs"]["input_ids"].shape[1]
    pruned(names["model"], names["inputs"], names["CONFIG"])
    assert weights_digest(names["model"]) != weights_digest(load_model("tiny").model)


class Packed(nn.Module):
    """A linear layer as GPTQ and AWQ keep it: packed integers and scales, no ``weight``."""

    def __init__(self, linear):
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.bias = linear.bias
        scale = linear.weight.detach().abs().amax(1, keepdim=True).clamp(min=1e-8) / 127
        integers = (linear.weight.detach() / scale).round().to(torch.int8)
        self.register_buffer("qweight", integers.contiguous().view(torch.int32))
        self.register_buffer("scales", scale)

    def unpacked(self):
        return self.qweight.view(torch.int8).to(self.scales.dtype) * self.scales

    def forward(self, states):
        return nn.functional.linear(states, self.unpacked(), self.bias)


def linears(model):
    return [
        (parent, name, layer)
        for parent in model.model.language_model.modules()
        for name, layer in parent.named_children()
        if isinstance(layer, nn.Linear)
    ]


@pytest.mark.parametrize("layer", [0, 3])
def test_layers_that_hold_packed_integers_prune_alike(sample, layer):
    """GPTQ and AWQ: with every scorer as with the same weights, unpacked."""
    packed, plain = load_model("tiny").model, load_model("tiny").model
    for (parent, name, linear), (_, _, other) in zip(linears(packed), linears(plain), strict=True):
        made = Packed(linear)
        setattr(parent, name, made)
        with torch.no_grad():
            other.weight.copy_(made.unpacked())
    assert not hasattr(packed.model.language_model.layers[0].self_attn.q_proj, "weight")
    inputs = encode(load_model("tiny").processor, [sample])
    data = {
        "format": "prunetune.config",
        "version": 2,
        "model": {"model_type": "llava_next", "num_layers": 16},
        "stages": [
            {
                "layer": layer,
                "retention": KEEP,
                "scorers": [{"name": s, "weight": 0.5} for s in scorers_at(layer)],
            }
        ],
    }
    config = PruningConfig.parse(data)
    assert len(scorers_at(layer)) > 4
    found = [pruned(model, inputs, config) for model in (packed, plain)]
    assert found[0][0].allclose(found[1][0], atol=1e-4)
    assert found[0][1].allclose(found[1][1], atol=1e-4)


def scorers_at(layer):
    """Return the scorers that have their inputs there."""
    return [name for name in SCORERS if SCORERS.get(name)().usable_at(layer)]


@pytest.mark.parametrize(("method", "package"), [("gptq", "optimum"), ("awq", "gptqmodel")])
def test_a_checkpoint_that_needs_a_package_says_which(tmp_path, method, package):
    folder = tmp_path / "model"
    shutil.copytree(EMBEDDED, folder)
    data = json.loads((folder / "config.json").read_text())
    data["quantization_config"] = {"quant_method": method, "bits": 4, "group_size": 128}
    (folder / "config.json").write_text(json.dumps(data))
    config, _ = load_preset("uniform", model_type="llava_next", num_layers=16, keep=KEEP)
    path = config.save(tmp_path / "c.prune.json")
    refused("verify", path, "--model", folder, "--samples", "2", has=[package])
