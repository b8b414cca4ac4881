"""Every way to decode: sampling, beams, prompt lookup, no cache, static cache, FlashAttention-2."""

import copy

import family_models
import pytest
import torch
from reference import alive_slots, masked, worst
from reference_models import SCHEDULES, THOROUGH, make_batch, make_config, needs, tiny

import prunetune

TOLERANCE = 1e-5
STEPS = 8
SAMPLING = {"do_sample": True, "temperature": 1.5, "top_k": 0}


def generate(model, batch, **options):
    """Generate from a fixed seed, with raw logits."""
    torch.manual_seed(3)
    options = {"max_new_tokens": STEPS, "do_sample": False, "output_scores": True} | options
    return model.generate(
        **batch.inputs, return_dict_in_generate=True, output_logits=True, **options
    )


def logits_of(output):
    return torch.stack(output.logits, 1)


def pruned(model, config, batch, **options):
    """Return what a pruned ``generate`` gives, and the trace of its prefill."""
    with prunetune.apply(model, config) as handle:
        output = generate(model, batch, **options)
        return output, handle.trace[0]


KERNELS = ("sdpa", "eager")
SEVERAL = [SAMPLING | {"num_return_sequences": 2}, {"num_beams": 3}]


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("family", THOROUGH)
@torch.no_grad()
def test_sampling_equals_the_masked_model(family, schedule):
    check_decoding(tiny(family), None, schedule, SAMPLING)


def in_turn(schedule, other, two):
    """Return one of two, so that each meets every schedule, and what is ``other`` or not."""
    return two[(list(SCHEDULES).index(schedule) + other) % 2]


@needs("5.19", "it mixes up the images of prompts that have several")
@pytest.mark.parametrize("options", SEVERAL, ids=["two samples a prompt", "beams"])
@pytest.mark.parametrize("schedule", SCHEDULES)
@torch.no_grad()
def test_several_rows_a_prompt_equal_the_masked_model(schedule, options):
    family = in_turn(schedule, "num_beams" in options, THOROUGH)
    check_decoding(tiny(family), None, schedule, options)


@pytest.mark.parametrize("options", SEVERAL, ids=["two samples a prompt", "beams"])
@pytest.mark.parametrize("schedule", ["0+1+3", "2"])
@pytest.mark.parametrize("family", THOROUGH)
@torch.no_grad()
def test_several_rows_a_prompt_with_one_image(family, schedule, options):
    sizes = ((20, 60), (33, 12)) if family == "llava_next" else ((20, 20), (20, 20))
    rows = tuple((2 + i, size, 3 - i) for i, size in enumerate(sizes))
    check_decoding(tiny(family), rows, schedule, options)


def check_decoding(model, rows, schedule, options):
    """Transformers' own decoding loop over the masked, cache-less model is the reference."""
    plain, batch = copy.deepcopy(model), make_batch(model, rows)
    output, trace = pruned(model, make_config(model, schedule), batch, **options)
    copies = len(trace.image_slots) // len(batch.images)
    valid = batch.valid.repeat_interleave(copies, 0)
    alive = alive_slots(tuple(valid.shape), (0, trace))
    assert torch.equal(alive, alive[:, ::copies].repeat_interleave(copies, 1))
    with masked(plain, valid, alive):
        expected = generate(plain, batch, use_cache=False, **options)
    assert torch.equal(output.sequences, expected.sequences)
    assert worst(logits_of(output), logits_of(expected)) < TOLERANCE
    if "num_beams" in options:
        assert worst(output.sequences_scores, expected.sequences_scores) < TOLERANCE


@pytest.mark.parametrize(
    "options",
    [{"use_cache": False}, {"cache_implementation": "static"}],
    ids=["no cache", "static cache"],
)
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("family", THOROUGH)
@torch.no_grad()
def test_caches_agree(family, schedule, options):
    attention = in_turn(schedule, "use_cache" in options, KERNELS)
    model = tiny(family, attention)
    batch, config = make_batch(model), make_config(model, schedule)
    expected, first = pruned(model, config, batch)
    output, second = pruned(model, config, batch, **options)
    for one, two in zip(first.stages, second.stages, strict=True):
        assert all(map(torch.equal, one.kept, two.kept))
    assert torch.equal(output.sequences, expected.sequences)
    assert worst(logits_of(output), logits_of(expected)) < TOLERANCE


@torch.no_grad()
def test_no_cache_repeats_the_prefill_with_the_same_keep_indices():
    """A scorer that looks at the last token must not choose anew at every step."""
    model = tiny("llava_next")
    batch = make_batch(model)
    config = make_config(model, [(2, 0.4, ("last_query",))])
    with prunetune.apply(model, config) as handle:
        output = generate(model, batch, use_cache=False)
        kept = [trace.stages[0].kept for trace in handle.trace]
        cached = generate(model, batch)
    assert len(kept) == STEPS
    assert all(torch.equal(a, b) for later in kept[1:] for a, b in zip(later, kept[0], strict=True))
    assert torch.equal(output.sequences, cached.sequences)


@torch.no_grad()
def test_no_cache_chooses_anew_for_another_prompt():
    """The same image with another question, one that begins with the first, and another image."""
    model = tiny("llava")
    config = make_config(model, [(2, 0.4, ("last_query",))])
    rows = ((4, (20, 20), 5),)
    one, other = make_batch(model, rows), make_batch(model, rows, seed=1)
    ids = torch.cat([one.inputs["input_ids"], other.inputs["input_ids"][:, -3:]], 1)
    longer = one.inputs | {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    question = one.inputs | {"input_ids": other.inputs["input_ids"]}
    image = one.inputs | {"pixel_values": other.inputs["pixel_values"]}
    prompts = [one, *(type(one)(inputs, one.images) for inputs in (longer, question, image))]
    with prunetune.apply(model, config):
        without = [generate(model, batch, use_cache=False) for batch in prompts]
        cached = [generate(model, batch) for batch in prompts]
    for a, b in zip(without, cached, strict=True):
        assert worst(logits_of(a), logits_of(b)) < TOLERANCE


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("family", THOROUGH)
@torch.no_grad()
def test_prompt_lookup_equals_greedy(family, schedule, monkeypatch):
    """Candidate tokens that are refused leave the cache again."""
    from transformers.cache_utils import DynamicCache

    removed = []
    crop = DynamicCache.crop
    monkeypatch.setattr(DynamicCache, "crop", lambda self, n: (removed.append(n), crop(self, n))[1])
    model = tiny(family)
    batch = make_batch(model, ((3, family_models.family(family).image, 6),))
    ids = batch.inputs["input_ids"]
    ids[:, -6:-3] = ids[:, -3:]
    config = make_config(model, schedule)
    expected, _ = pruned(model, config, batch, max_new_tokens=24)
    output, _ = pruned(model, config, batch, max_new_tokens=24, prompt_lookup_num_tokens=4)
    assert torch.equal(output.sequences, expected.sequences)
    assert worst(logits_of(output), logits_of(expected)) < TOLERANCE
    assert any(n < 0 for n in removed), "no candidate was refused: nothing was tested"


# -- FlashAttention-2, emulated: transformers' own padding code over kernels written in torch ------


def flash_varlen(
    q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k,
    dropout_p=0.0, softmax_scale=None, causal=False, window_size=(-1, -1), deterministic=False,
):  # fmt: skip
    """``flash_attn_varlen_func``: sequences end to end; a causal mask is aligned at the end."""
    out = []
    bounds = zip(cu_seqlens_q, cu_seqlens_q[1:], cu_seqlens_k, cu_seqlens_k[1:])
    for first_q, last_q, first_k, last_k in bounds:
        query, key, value = q[first_q:last_q], k[first_k:last_k], v[first_k:last_k]
        groups = query.shape[1] // key.shape[1]
        key, value = (t.repeat_interleave(groups, 1) for t in (key, value))
        weights = torch.einsum("qhd,khd->hqk", query, key) * softmax_scale
        if causal:
            allowed = torch.ones(len(query), len(key), dtype=torch.bool).tril(len(key) - len(query))
            weights = weights.masked_fill(~allowed, -torch.inf)
        out.append(torch.einsum("hqk,khd->qhd", weights.softmax(-1), value))
    return torch.cat(out)


def flash(q, k, v, dropout_p=0.0, softmax_scale=None, causal=False, **options):
    """``flash_attn_func``: no padding."""
    ends = [torch.arange(len(q) + 1) * t.shape[1] for t in (q, k)]
    flat = [t.flatten(0, 1) for t in (q, k, v)]
    return flash_varlen(
        *flat, *ends, None, None, softmax_scale=softmax_scale, causal=causal
    ).unflatten(0, q.shape[:2])


@pytest.fixture
def flash_model(monkeypatch):
    """Return a function that makes a model believe in FlashAttention-2."""
    from transformers import modeling_flash_attention_utils as code

    for name, value in {
        "_loaded_implementation": "flash_attention_2",
        "_flash_fn": flash,
        "_flash_varlen_fn": flash_varlen,
        "_flash_with_kvcache_fn": None,
        "_pad_fn": code._pad_input,
        "_unpad_fn": code._unpad_input,
        "_process_flash_kwargs_fn": code._lazy_define_process_function(flash_varlen),
        "_process_with_kvcache_kwargs_fn": dict,
    }.items():
        # Which of these there are depends on the version of transformers.
        monkeypatch.setattr(code, name, value, raising=False)

    def make(family):
        model = tiny(family)
        for module in model.modules():
            if hasattr(module, "config"):
                module.config._attn_implementation_internal = "flash_attention_2"
        return model

    return make


@pytest.mark.parametrize("rows", ["batch of three", "batch of one"])
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("family", THOROUGH)
@torch.no_grad()
def test_flash_attention_equals_sdpa(family, schedule, rows, flash_model, monkeypatch):
    model, plain = flash_model(family), tiny(family)
    size = family_models.family(family).image
    batch = make_batch(plain, ((2, size, 3, size, 1),) if rows == "batch of one" else None)
    config = make_config(plain, schedule)
    expected, first = pruned(plain, config, batch)
    calls = []
    varlen = flash_varlen
    from transformers import modeling_flash_attention_utils as code

    monkeypatch.setattr(
        code, "_flash_varlen_fn", lambda *a, **k: (calls.append(1), varlen(*a, **k))[1]
    )
    output, second = pruned(model, config, batch)
    for one, two in zip(first.stages, second.stages, strict=True):
        assert all(map(torch.equal, one.kept, two.kept))
    assert worst(logits_of(output), logits_of(expected)) < TOLERANCE
    # Without padding no layer may take the slow path of packed sequences.
    assert bool(calls) == (rows == "batch of three")


@torch.no_grad()
def test_flash_attention_is_really_used(flash_model, monkeypatch):
    from transformers import modeling_flash_attention_utils as code

    model, seen = flash_model("llava"), []
    monkeypatch.setattr(
        code, "_flash_fn", lambda q, *a, **k: (seen.append(q.shape[2]), flash(q, *a, **k))[1]
    )
    batch = make_batch(model, ((2, (20, 20), 3),))
    with prunetune.apply(model, make_config(model, "2")):
        model(**batch.inputs)
    assert len(seen) == 3 + 6


@torch.no_grad()
def test_no_cache_restores_the_same_states():
    """What a restorer blends is weighed as in the prefill, not by the newest token's attention."""
    model = tiny("llava_next")
    batch = make_batch(model)
    config = make_config(model, [(2, 0.4, ("last_query",), {"name": "grid_recycling", "size": 2})])
    output, _ = pruned(model, config, batch, use_cache=False)
    cached, _ = pruned(model, config, batch)
    assert torch.equal(output.sequences, cached.sequences)
    assert worst(logits_of(output), logits_of(cached)) < TOLERANCE
