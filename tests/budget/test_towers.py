"""FLOPs before the first token, against torch's own count on small random models."""

import functools
import math
from dataclasses import replace

import pytest
import torch
from family_models import each
from family_models import family as tiny_family
from torch.utils.flop_counter import FlopCounterMode

from prunetune.budget import facts_of, prefill_flops, resized, tower_flops
from prunetune.families.base_towers import Seen, window_pairs
from prunetune.families.qwen2_5_vl import Qwen25VL
from prunetune.release import cache_of
from prunetune.runtime.apply import family_of


def counted(family, inputs):
    """Return what torch counts of (tower and projector, language model), attention in full.

    Eager: of other kernels torch does not count every one.
    """
    spent, depth = {"tower": 0, "language": 0}, [0]

    def counting(name, function):
        @functools.wraps(function)
        def run(*args, **kwargs):
            # Qwen3-VL's method for videos calls the one for images.
            if depth[0]:
                return function(*args, **kwargs)
            depth[0] += 1
            try:
                with FlopCounterMode(display=False) as counter:
                    return function(*args, **kwargs)
            finally:
                depth[0] -= 1
                spent[name] += counter.get_total_flops()

        return run

    base, text = family.base, family.text_model
    for method in set(family.encoders.values()):
        base.__dict__[method] = counting("tower", getattr(base, method))
    text.__dict__["forward"] = counting("language", text.forward)
    with torch.no_grad():
        family.model(**inputs, use_cache=False)
    return spent


@pytest.fixture(scope="module")
def measured():
    @functools.cache
    def measure(name):
        tiny = tiny_family(name)
        family = family_of(tiny.model("eager"))
        # Of several pictures Pixtral's tower computes all pairs, and hides most of them.
        rows = ((3, tiny.image, 4),) if name == "mistral3" else None
        batch = tiny.batch(family.model, rows)
        return family, batch, counted(family, batch.inputs)

    return measure


@pytest.mark.parametrize("name", each())
def test_the_tower_is_what_torch_counts(name, measured):
    """Several pictures and videos a prompt, of several sizes: tiles, frames, windows cut off."""
    family, batch, spent = measured(name)
    seen = family.seen(batch.inputs)
    assert tower_flops(family.tower_shape(), seen) == pytest.approx(spent["tower"], rel=0.02)


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "gemma3"])
def test_the_language_model_is_what_torch_counts(name, measured):
    """Torch counts the whole square of attention, where we count what is causal."""
    family, batch, spent = measured(name)
    # A batch is as long as its longest row.
    facts = facts_of(family, image_tokens=batch.length, text_tokens=0, seen=Seen())
    rows = len(batch.inputs["input_ids"])
    queries = facts.num_heads * facts.head_dim * facts.num_layers
    rest = 2 * queries * (batch.length**2 - batch.length)
    flops = rows * (prefill_flops((), facts).language + rest)
    assert flops == pytest.approx(spent["language"], rel=0.03)


def test_latent_attention_keeps_one_latent_of_all_heads():
    """Kimi K2.5's decoder without experts: by torch's count and by the cache's own tensors."""
    tiny = tiny_family("kimi_k25")
    family = family_of(tiny.model("eager", first_k_dense_replace=6))
    batch = tiny.batch(family.model)
    spent = counted(family, batch.inputs)
    facts = facts_of(family, image_tokens=batch.length, text_tokens=0, seen=Seen())
    rows = len(batch.inputs["input_ids"])
    rest = 2 * facts.num_heads * facts.head_dim * facts.num_layers
    flops = rows * (prefill_flops((), facts).language + rest * (batch.length**2 - batch.length))
    assert flops == pytest.approx(spent["language"], rel=0.05)
    with torch.no_grad():
        layers = cache_of(family.model(**batch.inputs, use_cache=True)).layers
    kept = sum(part.numel() for one in layers for part in (one.keys, one.values))
    assert facts.kv_mib == pytest.approx(4 * kept / rows / 2**20)


def test_a_tower_that_is_counted_wrongly_would_be_seen(measured, monkeypatch):
    """Its pair: without windows, and without what is merged, the count is another one."""
    family, batch, spent = measured("qwen2_5_vl")
    seen, tower = family.seen(batch.inputs), family.tower_shape()
    whole = replace(tower, whole=tower.whole + tower.within, within=0.0)
    assert tower_flops(whole, seen) > 1.02 * spent["tower"]
    assert tower_flops(tower, replace(seen, tokens=seen.patches)) > 1.02 * spent["tower"]
    monkeypatch.setattr(Qwen25VL, "windowed_layers", lambda self: frozenset())
    assert family.tower_shape() == whole


def test_windows_are_cut_at_the_edges():
    """By hand: 3 x 5 tokens in windows of 2 x 2: four of 4, 2, 2, 2, 1 ones cut off."""
    windows = [4, 4, 2, 2, 2, 1]
    assert sum(windows) == 3 * 5
    assert window_pairs(3, 5, 2, 4) == 16 * sum(n * n for n in windows)


def test_a_smaller_picture_costs_the_tower_less(measured):
    """Half of each side is a quarter of the patches, and of attention's pairs a sixteenth."""
    family = measured("qwen2_vl")[0]
    grid = torch.tensor([[1, 16, 16]])
    pixels = {"pixel_values": torch.zeros(256, 96), "image_grid_thw": grid}
    large = family.seen(pixels)
    small = family.seen(
        {"pixel_values": torch.zeros(64, 96), "image_grid_thw": grid // torch.tensor([1, 2, 2])}
    )
    assert (small.patches, small.tokens, small.pairs) == (
        large.patches / 4,
        large.tokens / 4,
        large.pairs / 16,
    )
    assert large + large == large.times(2)
    full = facts_of(family, image_tokens=64, text_tokens=10, seen=large)
    less = resized(full, 16, small)
    before, after = prefill_flops((), full), prefill_flops((), less)
    assert after.tower < before.tower / 4
    assert after.language < before.language
    assert math.isclose(after.total, after.tower + after.language)
    # Pruning in the language model leaves the tower's work as it was.
    stage = type("Step", (), {"layer": 0, "retention": 0.25})
    pruned = prefill_flops((stage,), full)
    assert pruned.tower == before.tower
    assert pruned.language == pytest.approx(after.language)
    assert prefill_flops((), replace(full, seen=None)) is None
