"""What cannot work is refused in one line, and what only might be wrong is warned about."""

import logging

import pytest
import torch
import transformers
from reference import measure
from reference_models import LAYERS, make_batch, make_config, needs, tiny
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    MistralConfig,
    Qwen2Config,
)

import prunetune
from prunetune.config import PruningConfig
from prunetune.errors import ConfigError, PrunetuneError, UnsupportedModelError

ONE_LINE = r"\A[^\n]+\Z"


def with_model(config, **changes):
    return config.model_copy(update={"model": config.model.model_copy(update=changes)})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model_type": "llava_next"}, ("llava_next", "llava")),
        ({"num_layers": LAYERS + 1}, (str(LAYERS), str(LAYERS + 1))),
    ],
    ids=["model_type", "depth"],
)
def test_a_config_for_another_model(changes, words):
    model = tiny("llava")
    config = with_model(make_config(model), **changes)
    with pytest.raises(ConfigError, match=ONE_LINE) as error:
        prunetune.apply(model, config)
    assert all(word in str(error.value) for word in words)
    assert "get_image_features" not in vars(model.model)


def test_an_unknown_model_lists_the_supported():
    config = LlamaConfig(
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        vocab_size=9,
        num_attention_heads=2,
    )
    model = LlamaForCausalLM(config)
    for other in (model, torch.nn.Linear(2, 2)):
        with pytest.raises(UnsupportedModelError, match=ONE_LINE) as error:
            prunetune.apply(other, make_config(tiny("llava")))
        assert "llava_next" in str(error.value)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("Gemma3nConfig", "share KV states"),
        ("MllamaConfig", "cross-attention"),
        ("IdeficsConfig", "cross-attention"),
        ("Florence2Config", "cross-attention"),
        ("T5Gemma2Config", "cross-attention"),
    ],
)
def test_models_that_cannot_work_are_refused_by_name(kind, reason):
    """Their configs are real; weights are not looked at."""
    if not hasattr(transformers, kind):
        pytest.skip(f"transformers {transformers.__version__} has no {kind}")
    model = torch.nn.Module()
    model.config = getattr(transformers, kind)()
    with pytest.raises(UnsupportedModelError, match=ONE_LINE) as error:
        prunetune.apply(model, make_config(tiny("llava")))
    assert reason in str(error.value)
    assert model.config.model_type in str(error.value)


@pytest.mark.parametrize(
    ("kind", "refused"), [("Cohere", True), ("Olmo2", True), ("Llama", False), ("Glm4", False)]
)
def test_layers_normed_otherwise_are_refused(kind, refused):
    """Scores are made of what the two norms of a decoder layer give, before attention and MLP."""
    text = getattr(transformers, f"{kind}Config")(
        vocab_size=99, hidden_size=16, intermediate_size=16, num_hidden_layers=LAYERS,
        num_attention_heads=2, num_key_value_heads=2, head_dim=8, pad_token_id=0,
    )  # fmt: skip
    vision = CLIPVisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
        image_size=16, patch_size=8,
    )  # fmt: skip
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=98)
    model = LlavaForConditionalGeneration(config)
    applied = make_config(model)
    if not refused:
        prunetune.apply(model, applied).remove()
        return
    with pytest.raises(UnsupportedModelError, match=ONE_LINE) as error:
        prunetune.apply(model, applied)
    assert kind.lower() in str(error.value)
    assert "norm" in str(error.value)


def test_what_is_not_a_config():
    with pytest.raises(ConfigError, match="PruningConfig"):
        prunetune.apply(tiny("llava"), {"stages": []})


def test_fingerprint(caplog):
    from prunetune.models.fingerprint import fingerprint

    model = tiny("llava")
    same = with_model(make_config(model), fingerprint=fingerprint(model.config))
    other = with_model(make_config(model), fingerprint="0" * 64)
    with caplog.at_level(logging.WARNING, logger="prunetune"):
        prunetune.apply(model, same, strict=True).remove()
        prunetune.apply(model, make_config(model), strict=True).remove()
        assert not caplog.records
        prunetune.apply(model, other).remove()
        assert "fingerprint" in caplog.text
    with pytest.raises(ConfigError, match=ONE_LINE):
        prunetune.apply(model, other, strict=True)


def test_other_weights_are_warned_of_once_a_model(caplog):
    from prunetune.config import Provenance
    from prunetune.models.fingerprint import weights_digest

    model, tuned = tiny("llava"), tiny("llava")
    tuned.lm_head.weight.data *= 1.01
    made = Provenance(weights_digest=weights_digest(model))
    config = make_config(model).model_copy(update={"provenance": made})
    with caplog.at_level(logging.WARNING, logger="prunetune"):
        prunetune.apply(model, config, strict=True).remove()
        prunetune.apply(tuned, make_config(model)).remove()
        assert not caplog.records
        for _ in range(2):
            prunetune.apply(tuned, config, strict=True).remove()
    assert len(caplog.records) == 1
    assert "other weights" in caplog.text


def test_weights_that_are_packed_away_are_not_compared(monkeypatch):
    """Those of ``quantize_dynamic``, for one, are entries of the state dict that are no tensors."""
    from prunetune.config import Provenance

    model = tiny("llava")
    config = make_config(model).model_copy(update={"provenance": Provenance(weights_digest="ab")})
    state = model.state_dict() | {"lm_head._packed_params.dtype": torch.qint8}
    monkeypatch.setattr(model, "state_dict", lambda: state)
    prunetune.apply(model, config).remove()


@pytest.mark.parametrize("family", ["llava", "llava_next"])
@pytest.mark.parametrize("schedule", ["0", "2+4"])
@torch.no_grad()
def test_chunked_prefill(family, schedule):
    model = tiny(family)
    batch = make_batch(model)
    plain = model.generate(**batch.inputs, max_new_tokens=3, do_sample=False, prefill_chunk_size=16)
    assert plain.shape[1] == batch.length + 3
    with prunetune.apply(model, make_config(model, schedule)):
        with pytest.raises(PrunetuneError, match="prefill_chunk_size"):
            model.generate(**batch.inputs, max_new_tokens=3, prefill_chunk_size=16)
        model.generate(**batch.inputs, max_new_tokens=3)


@needs("5.18", "it takes no features, so that none can be passed")
@torch.no_grad()
def test_features_computed_before_apply():
    model = tiny("llava")
    batch = make_batch(model)
    inputs = dict(batch.inputs)
    early = model.model.get_image_features(inputs.pop("pixel_values"), return_dict=True)
    with (
        prunetune.apply(model, make_config(model)),
        pytest.raises(PrunetuneError, match=ONE_LINE),
    ):
        model(**inputs, mm_encoder_outputs={"image": early})


@needs("5.18", "it takes no features, so that none can be passed")
@pytest.mark.parametrize("scorer", ["cls_attention", "random"])
@torch.no_grad()
def test_features_computed_under_another_config(scorer):
    """They serve where nothing is asked of the tower that was not noted then."""
    model = tiny("llava")
    inputs = dict(make_batch(model).inputs)
    pixels = inputs.pop("pixel_values")
    with prunetune.apply(model, make_config(model, [(2, 0.5, ("coverage",))])):
        early = model.model.get_image_features(pixels, return_dict=True)
    inputs["mm_encoder_outputs"] = {"image": early}
    with prunetune.apply(model, make_config(model, [(2, 0.3, ("coverage",))])) as handle:
        model(**inputs)
        assert len(handle.trace) == 1
    with (
        prunetune.apply(model, make_config(model, [(2, 0.5, (scorer,))])),
        pytest.raises(PrunetuneError, match=ONE_LINE),
    ):
        model(**inputs)


def windowed(kind, window):
    torch.manual_seed(0)
    shape = {
        "vocab_size": 120, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": LAYERS,
        "num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.1,
        "sliding_window": window, "pad_token_id": 0, "eos_token_id": None,
    }  # fmt: skip
    vision = CLIPVisionConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
        image_size=20, patch_size=4, initializer_range=0.2,
    )  # fmt: skip
    text = {
        "mistral": lambda: MistralConfig(**shape),
        "qwen2, windowed": lambda: Qwen2Config(
            **shape, use_sliding_window=True, max_window_layers=3
        ),
        "qwen2, not windowed": lambda: Qwen2Config(**shape, use_sliding_window=False),
    }[kind]()
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_id=99)
    model = LlavaForConditionalGeneration(config).eval()
    model.generation_config.suppress_tokens = [99]
    return model


@pytest.mark.parametrize(("kind", "window"), [("mistral", 100), ("qwen2, not windowed", 40)])
@pytest.mark.parametrize("schedule", ["0", "2+4"])
def test_a_sliding_window_that_never_binds(kind, window, schedule):
    """81 tokens of prompt and 6 new ones; shorter windows: ``test_families_windows``."""
    model = windowed(kind, window)
    measured = measure(model, make_config(model, schedule), make_batch(model), steps=6)
    assert measured.worst < 1e-5
    assert measured.moved > 0.05


def test_loading_and_applying_a_file(tmp_path):
    model = tiny("llava_next")
    config = make_config(model, "0+1+3")
    loaded = PruningConfig.load(config.save(tmp_path / "c.json"))
    one, two = (measure(model, c, make_batch(model), steps=3) for c in (config, loaded))
    assert one.worst == two.worst
    assert one.kv == two.kv
