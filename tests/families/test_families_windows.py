"""Prompts longer than a sliding window: it counts the tokens of the sequence, dropped ones too."""

import copy

import pytest
import test_family_trials
import test_runtime_mass
import torch
from family_models import each, family
from family_models.paligemma import second
from reference import measure
from reference_models import make_batch, make_config, predicted_kv, tiny, windowed_kv
from test_families_decoding import check_beams
from test_runtime_generate import flash_model
from test_runtime_refusals import windowed
from test_runtime_turns import Chat, cache_of
from transformers import DynamicCache

import prunetune
from prunetune.errors import UnsupportedModelError
from prunetune.families import Family
from prunetune.families.llama4 import Llama4
from prunetune.masking import causal_mask
from prunetune.runtime.layers import masks

__all__ = ["flash_model"]  # a fixture
TOLERANCE = 1e-5
SLIDES = {"use_sliding_window": True, "max_window_layers": 3}
MODELS = {
    "gemma3": lambda window: tiny("gemma3", sliding_window=window),
    "llama4": lambda window: tiny("llama4", attention_chunk_size=window, floor_scale=15),
    "llava of mistral": lambda window: windowed("mistral", window),
    "llava of qwen2": lambda window: windowed("qwen2, windowed", window),
    "paligemma of gemma 2": lambda window: second(sliding_window=window),
    "qwen2_5_vl": lambda window: tiny("qwen2_5_vl", sliding_window=window, **SLIDES),
}
NAMES = [pytest.param(n, marks=family("llama4").marks if n == "llama4" else ()) for n in MODELS]


def windows(model):
    """Return the window of each decoder layer, as its cache keeps it."""
    layers = DynamicCache(config=family(model).text_model(model).config).layers
    return [getattr(layer, "sliding_window", None) for layer in layers]


def gap(name, schedule, window=20):
    model = MODELS[name](window)
    batch, config = make_batch(model), make_config(model, schedule)
    assert batch.length > window + 10
    return measure(model, config, batch), windowed_kv(predicted_kv(batch, config), windows(model))


@pytest.mark.parametrize("schedule", ["2+4", "0+1+3"])
@pytest.mark.parametrize("name", NAMES)
def test_a_window_shorter_than_the_prompt(name, schedule):
    measured, kept = gap(name, schedule)
    assert measured.worst < TOLERANCE
    assert measured.moved > 0.05
    assert measured.kv == kept
    assert min(kept) < 20


@pytest.mark.parametrize("name", ["gemma3", "llava of mistral"])
def test_a_window_that_decoding_outgrows(name):
    model = MODELS[name](200)
    length = make_batch(model).length
    model = MODELS[name](length + 4)
    measured = measure(model, make_config(model, "0"), make_batch(model))
    assert measured.worst < TOLERANCE


def over_what_is_left(patch):
    """A window over the tokens that a layer holds: what its cache and its mask do by themselves."""

    def plain(config, hidden, segment, own, view, layer, seen, length, width, window):
        shape = "" if window is None else "sliding"
        return causal_mask(config, hidden, segment.real_keys(), view, layer=layer, window=shape)

    patch.setattr(masks, "_plain_mask", plain)


def forgotten_in_decoding(patch):
    carried = masks.carried_over
    patch.setattr(
        masks, "carried_over", lambda own, segment, seen, width, before=0: carried(
            own, segment, seen, width, 0 if before else before)
    )  # fmt: skip


@pytest.mark.parametrize("name", each("llama4"))
def test_a_temperature_over_other_tokens_would_be_noticed(name, monkeypatch):
    monkeypatch.setattr(Llama4, "number", Family.number)
    measured, _ = gap(name, "2+4")
    assert measured.worst > 0.01


@pytest.mark.parametrize("mutant", [over_what_is_left, forgotten_in_decoding])
def test_a_window_over_other_tokens_would_be_noticed(mutant, monkeypatch):
    mutant(monkeypatch)
    measured, _ = gap("llava of mistral", "2+4")
    assert measured.worst > 0.01


@pytest.mark.parametrize("name", ["gemma3", *each("llama4")])
@torch.no_grad()
def test_beams_beyond_a_window(name):
    if (reason := family(name).beam) is not True:
        pytest.skip(str(reason))
    model, image = MODELS[name](20), family(name).other
    rows = ((6, image, 14), (3, image, 19))
    check_beams(model, make_batch(model, rows), make_config(model, "0+1+3"))


@pytest.mark.parametrize("kind", ["dynamic", "static"])
@pytest.mark.parametrize("name", ["gemma3", *each("llama4"), "llava of mistral", "llava of qwen2"])
@torch.no_grad()
def test_turns_that_grow_beyond_a_window(name, kind):
    """The second turn passes it; the first one's padding stays where it was."""
    model = MODELS[name](50)
    if kind == "static" and (reason := family(model).static) is not True:
        pytest.skip(str(reason))
    config = make_config(model, "0+1+3")
    chat = Chat(model, config, cache_of(kind, model))
    with prunetune.apply(model, config) as handle:
        chat.turn(handle, make_batch(model, ((3, family(model).other, 4), (2,), (12,))))
        for seed in (5, 6, 7):
            chat.turn(handle, make_batch(model, ((12,), (15,), (9,)), seed=seed))
    assert chat.inputs["input_ids"].shape[1] > 60
    assert chat.gap() < TOLERANCE


@pytest.mark.parametrize("name", ["gemma3", *each("llama4"), "llava of mistral"])
@torch.no_grad()
def test_a_new_image_beyond_a_window(name):
    """Its tokens attend to one another; its scores are those of a cache that forgets."""
    model = MODELS[name](30)
    config, image = make_config(model, "0+1+3"), family(model).image
    chat = Chat(model, config)
    with prunetune.apply(model, config) as handle:
        chat.turn(handle, make_batch(model, ((8, image, 9),), seed=1))
        chat.turn(handle, make_batch(model, ((2, image, 4),), seed=2))
        chat.turn(handle, make_batch(model, ((3,),), seed=3))
    assert len(chat.passes) == 2
    assert chat.gap() < TOLERANCE


@torch.no_grad()
def test_scores_beyond_a_window_are_those_without_a_cache():
    """What the last token pays attention to ends with the window, cached or not."""
    model = MODELS["gemma3"](20)
    batch, config = make_batch(model), make_config(model, [(1, 0.5, ("last_query",))])
    with prunetune.apply(model, config) as handle:
        model(**batch.inputs, use_cache=True)
        model(**batch.inputs, use_cache=False)
        one, two = (trace.stages[0].scores for trace in handle.trace)
    far = torch.cat([score for row in one for score in row])
    assert (far == 0).any(), "the window hides nothing"
    for first, second_ in zip(one, two, strict=True):
        assert all(map(torch.equal, first, second_))


@pytest.mark.parametrize("first", [0, 2, 4])
@pytest.mark.parametrize("name", ["gemma3", *each("llama4")])
def test_a_trial_beyond_a_window(name, first, monkeypatch):
    """From stored states on: masks by kind of layer, scores of what the window shows."""
    size = {"gemma3": "sliding_window", "llama4": "attention_chunk_size"}[name]
    monkeypatch.setattr(test_family_trials, "tiny", lambda name: tiny(name, **{size: 20}))
    assert test_family_trials.trial(name, first) < TOLERANCE


@pytest.mark.parametrize("name", ["gemma3", *each("llama4")])
def test_mass_beyond_a_window(name):
    """A key's bias goes with it, in caches that have let go of the first ones."""
    model = MODELS[name](20)
    batch = make_batch(model)
    assert test_runtime_mass.gap(model, test_runtime_mass.heavy(model, "0+2+4"), batch) < TOLERANCE


@torch.no_grad()
def test_flash_attention_counts_windows_itself(flash_model):
    """It takes no mask, so that beyond the window a pruned run is refused; within it goes on."""
    model = flash_model("gemma3")
    config, size = make_config(model, "2+4"), windows(model)[0]
    inside = make_batch(model, ((9, (32, 32), 4),)).inputs
    beyond = make_batch(model, ((size, (32, 32), 4),)).inputs
    with prunetune.apply(model, config):
        model(**inside)
        with pytest.raises(UnsupportedModelError, match=r"\A[^\n]+sliding window of 200[^\n]+\Z"):
            model(**beyond)
    model(**copy.copy(beyond))
