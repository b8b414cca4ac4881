"""A model spread over devices: offloaded by accelerate, and over two stand-in devices."""

import pytest
import torch
from family_models import each
from reference import worst
from reference_models import make_batch, make_config, needs, tiny
from test_families import schedule
from two_devices import AWAY, Away, numbers, spread

import prunetune
from prunetune.errors import UnsupportedModelError
from prunetune.models.devices import device_of
from prunetune.models.fingerprint import weights_digest
from prunetune.runtime import frame

every = pytest.mark.parametrize("family", each())


@torch.no_grad()
def outcome(model, batch, config):
    """Return prefill logits, generated tokens, and what every stage kept."""
    with prunetune.apply(model, config) as handle:
        logits = model(**batch.inputs, logits_to_keep=1).logits
        new = model.generate(**batch.inputs, max_new_tokens=4, do_sample=False)
        kept = [[numbers(k).tolist() for k in s.kept] for s in handle.trace[0].stages]
    return logits, new, kept


@every
def test_weights_that_accelerate_offloads(family):
    from accelerate import cpu_offload

    model = tiny(family)
    batch, config = make_batch(model), make_config(model, schedule("0+1+3", family))
    logits, new, kept = outcome(model, batch, config)
    model.tie_weights()
    cpu_offload(model, execution_device=torch.device("cpu"))
    assert {p.device.type for p in model.parameters()} == {"meta"}
    assert device_of(model) == torch.device("cpu")
    try:
        with torch.no_grad():
            model.generate(**batch.inputs, max_new_tokens=1)
    except (NotImplementedError, RuntimeError) as error:
        pytest.skip(f"unpruned, transformers itself cannot: {error}")
    there = outcome(model, batch, config)
    assert worst(there[0], logits) < 1e-6
    assert torch.equal(there[1], new)
    assert there[2] == kept


@needs("5.18", "it takes no features, so that none can be passed")
@pytest.mark.parametrize("early", [True, False])
@torch.no_grad()
def test_features_that_accelerate_rebuilds_are_told_from_others(early):
    """Other pictures of the same size were encoded last; their scores are not taken for these."""
    from accelerate import cpu_offload

    model = tiny("llava")
    batch, other = make_batch(model), make_batch(model, seed=7)
    config = make_config(model, schedule("0+1+3", "llava"))
    logits, _, kept = outcome(model, batch, config)
    model.tie_weights()
    cpu_offload(model, execution_device=torch.device("cpu"))
    inputs = dict(batch.inputs)
    pixels = inputs.pop("pixel_values")
    features = model.model.get_image_features(pixels, return_dict=True)
    with prunetune.apply(model, config) as handle:
        model.model.get_image_features(other.inputs["pixel_values"] if early else pixels)
        if early:
            with pytest.raises(UnsupportedModelError, match=r"before prunetune\.apply"):
                model(**inputs, mm_encoder_outputs={"image": features})
        else:
            again = model(**inputs, mm_encoder_outputs={"image": features}, logits_to_keep=1).logits
            assert worst(again, logits) < 1e-6
            stages = handle.trace[-1].stages
            assert [[k.tolist() for k in stage.kept] for stage in stages] == kept


def test_offloaded_weights_have_the_digest_that_they_had():
    from accelerate import cpu_offload

    digests = []
    for factor in (1.0, 1.5):
        model = tiny("llava")
        model.model.language_model.norm.weight.data *= factor
        digests.append(weights_digest(model))
        model.tie_weights()
        cpu_offload(model, execution_device=torch.device("cpu"))
        assert weights_digest(model) == digests[-1]
    assert digests[0] != digests[1]


def spread_outcome(family, name, first):
    """Return what comes out in one place, and with layers from ``first`` on in another."""
    model = tiny(family, "eager")
    batch, config = make_batch(model), make_config(model, schedule(name, family))
    here = outcome(model, batch, config)
    model = tiny(family, "eager")
    text = model.model.language_model
    head = model.get_output_embeddings()
    head.weight = torch.nn.Parameter(head.weight.detach().clone())
    with spread(model, [*text.layers[first:], text.norm, head]):
        logits, new, kept = outcome(model, batch, config)
    assert isinstance(logits, Away)
    assert logits.device == AWAY
    return here, (logits.inner, new, kept)


@pytest.mark.parametrize(
    ("family", "name", "first"),
    # All of it away; at a stage's layer; between two.
    [
        ("llava_next", "0+1+3", 0), ("llava", "0+1+3", 2), ("llava_next", "0+1+3", 3),
        ("llava", "2+4", 2), ("llava_next", "2+4", 3), ("llava", "2+4", 4),
    ],
)  # fmt: skip
def test_layers_on_two_devices(family, name, first):
    here, there = spread_outcome(family, name, first)
    assert worst(there[0], here[0]) < 1e-6
    assert torch.equal(there[1], here[1])
    assert there[2] == here[2]


def test_a_tensor_left_behind_would_be_noticed(monkeypatch):
    monkeypatch.setattr(frame, "brought", lambda value, device: value)
    with pytest.raises(RuntimeError, match="tensors are on"):
        spread_outcome("llava", "0+1+3", 2)
