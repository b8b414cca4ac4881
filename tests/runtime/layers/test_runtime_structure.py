"""What a caller hides or packs besides padding, against references that share no code with it."""

import copy
from contextlib import contextmanager

import pytest
import torch
from reference import worst
from reference_models import IMAGE, SCHEDULES, family, make_batch, make_config, tiny
from test_runtime_generate import flash_model
from transformers import DynamicCache

import prunetune
from prunetune.errors import UnsupportedModelError
from prunetune.release import cache_argument
from prunetune.runtime.layers import masks
from prunetune.runtime.layers.sight import carried_over

__all__ = ["flash_model"]  # a fixture

TOLERANCE = 1e-5
PACKABLE = ("llava", "llava_next", "internvl", "qwen2_5_vl", "qwen3_vl")
QUERY = ((1, 0.5, ("last_query",)), (3, 0.3, ("topv",)))


def samples_of(model):
    """Return three prompts of one row each: an image, none, two images."""
    spec = family(model)
    rows = ((3, spec.image, 5), (7,), (2, spec.image, 4, spec.image, 3))
    return [make_batch(model, (row,), seed=i).inputs for i, row in enumerate(rows)]


def positions_of(model, inputs):
    explicit = family(model).explicit_positions(model, inputs)
    length = inputs["input_ids"].shape[1]
    return explicit.get("position_ids", torch.arange(length)[None])


def packed_row(model, samples):
    """Return the samples in one row: position ids start anew, no mask."""
    spec = family(model)
    row = {}
    for inputs in samples:
        for name, value in inputs.items():
            if name in spec.visual_inputs:
                row[name] = spec.join(name, row[name], value) if name in row else value
            elif name != "attention_mask":
                row[name] = torch.cat([row[name], value], 1) if name in row else value
    row["position_ids"] = torch.cat([positions_of(model, s) for s in samples], -1)
    return row


def compared(model, config, samples, row):
    """Return how far the packed row is from each sample alone; kept tokens must be the same."""
    with torch.no_grad(), prunetune.apply(model, config) as handle:
        alone, kept = [], []
        for inputs in samples:
            before = len(handle.trace)
            given = {**inputs, "position_ids": positions_of(model, inputs)}
            alone.append(model(**given, use_cache=False).logits)
            pruned = len(handle.trace) > before
            kept.append([s.kept[0] for s in handle.trace[-1].stages] if pruned else None)
        together = model(**row, use_cache=False).logits
        trace = handle.trace[-1]
    start = 0
    for number, stage in enumerate(trace.stages):
        expected, start = [], 0
        for inputs, tokens in zip(samples, kept, strict=True):
            expected += [] if tokens is None else [tokens[number] + start]
            start += inputs["input_ids"].shape[1]
        assert torch.equal(stage.kept[0], torch.cat(expected))
    return worst(together, torch.cat(alone, 1))


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("schedule", [*SCHEDULES, QUERY], ids=str)
@pytest.mark.parametrize("name", PACKABLE)
def test_samples_packed_into_one_row(name, schedule, attention):
    model = tiny(name, attention)
    samples = samples_of(model)
    config = make_config(model, schedule)
    assert compared(model, config, samples, packed_row(model, samples)) < TOLERANCE


@pytest.mark.parametrize("name", ["llava", "llava_next"])
def test_packed_positions_of_packed_samples(name):
    """Each sample is renumbered by what it has lost itself."""
    model = tiny(name)
    samples = samples_of(model)
    config = make_config(model, "0+1+3", positions="packed")
    assert compared(model, config, samples, packed_row(model, samples)) < TOLERANCE


@pytest.mark.parametrize("schedule", ["0", "2+4", QUERY], ids=str)
def test_packed_samples_under_flash_attention(schedule, flash_model):
    """It takes no mask: positions tell the samples apart, also behind a stage."""
    model = flash_model("llava")
    samples = samples_of(model)
    config = make_config(model, schedule)
    assert compared(model, config, samples, packed_row(model, samples)) < TOLERANCE


@pytest.mark.parametrize("positions", ["anew", "going on"])
@pytest.mark.parametrize("schedule", ["0", "2+4", QUERY], ids=str)
def test_packed_samples_told_by_their_bounds(schedule, positions, flash_model):
    """As data collators without padding do: ``cu_seq_lens_q`` beside, or instead of, positions."""
    model = flash_model("llava")
    samples = samples_of(model)
    row = packed_row(model, samples)
    ends = torch.tensor([0, *(s["input_ids"].shape[1] for s in samples)]).cumsum(0)
    longest = int(ends.diff().max())
    row |= {"cu_seq_lens_q": ends.int(), "cu_seq_lens_k": ends.int()}
    row |= {"max_length_q": longest, "max_length_k": longest}
    with torch.no_grad():
        alone = torch.cat([model(**s, use_cache=False).logits for s in samples], 1)
        if worst(model(**row, use_cache=False).logits, alone) > TOLERANCE:
            pytest.skip("unpruned, too: from transformers 5.24 on the vision tower reads them")
    config = make_config(model, schedule)
    if positions == "anew":
        assert compared(model, config, samples, row) < TOLERANCE
        return
    # Rotary positions are relative within a sample: only their origin differs.
    row["position_ids"] = torch.arange(row["input_ids"].shape[1])[None]
    assert compared(model, config, samples, row) < 10 * TOLERANCE


@pytest.mark.parametrize("schedule", ["0", "2+4", QUERY], ids=str)
def test_several_packed_rows(schedule):
    model = tiny("llava")
    spec = family("llava")
    rows = ((3, spec.image, 5), (2, spec.image, 6), (1, spec.image, 7))
    first = [make_batch(model, (row,), seed=i).inputs for i, row in enumerate(rows[:2])]
    second = [make_batch(model, (row,), seed=9 + i).inputs for i, row in enumerate(rows[1:])]
    config = make_config(model, schedule)
    both = [packed_row(model, samples) for samples in (first, second)]
    together = {k: torch.cat([row[k] for row in both]) for k in both[0]}
    with torch.no_grad(), prunetune.apply(model, config):
        alone = torch.cat([model(**row, use_cache=False).logits for row in both])
        got = model(**together, use_cache=False).logits
    assert worst(got, alone) < TOLERANCE
    assert compared(model, config, first, both[0]) < TOLERANCE


@pytest.mark.parametrize("kind", ["bool", "additive"])
@pytest.mark.parametrize("schedule", ["0+1+3", "2", QUERY], ids=str)
def test_samples_kept_apart_by_a_mask(schedule, kind):
    """The same by a block-diagonal 4-D mask."""
    model = tiny("llava")
    samples = samples_of(model)
    row = packed_row(model, samples)
    blocks = [torch.ones(s["input_ids"].shape[1], s["input_ids"].shape[1]).tril() for s in samples]
    mask = torch.block_diag(*blocks).bool()[None, None]
    if kind == "additive":
        mask = torch.where(mask, 0.0, torch.finfo(torch.float32).min)
    config = make_config(model, schedule)
    assert compared(model, config, samples, row | {"attention_mask": mask}) < TOLERANCE


def test_a_mask_made_causal_would_be_noticed(monkeypatch):
    """The twin: what is carried over forgets the samples, as a rebuilt causal mask would."""

    def causal(mask, segment, seen, width):
        rows, keys = segment.tokens(seen), segment.keys(seen, width)
        return (keys[:, None] <= rows[..., None])[:, None] & (keys >= 0)[:, None, None]

    monkeypatch.setattr(masks, "carried_over", causal)
    model = tiny("llava")
    samples = samples_of(model)
    row = packed_row(model, samples)
    assert compared(model, make_config(model, "2+4"), samples, row) > 0.1


# -- full-length runs with masks of our own ----------------------------------------------------


@contextmanager
def hidden(model, allowed, stages, images):
    """Mask a cache-less forward of ``model``: what the caller hides, and what stages dropped.

    Args:
        model: The model, unpruned.
        allowed: ``[B, S, S]`` bool, the caller's structure.
        stages: Of the trace of the pruned run.
        images: ``[B, S]`` bool.
    """
    hooks = []
    for number, layer in enumerate(model.model.language_model.layers):
        alive = torch.ones_like(images)
        for stage in stages:
            if stage.layer <= number:
                alive = ~images
                for row, kept in enumerate(stage.kept):
                    alive[row, kept] = True
        seen = allowed & alive[:, None] | torch.eye(images.shape[1], dtype=torch.bool)
        mask = torch.where(seen, 0.0, torch.finfo(torch.float32).min)[:, None]

        def told(module, args, kwargs, mask=mask):
            return args, kwargs | {"attention_mask": mask}

        hooks.append(layer.register_forward_pre_hook(told, with_kwargs=True))
    yield
    for hook in hooks:
        hook.remove()


def gap_to_hidden(model, config, inputs, allowed, valid=None, **given):
    """Return the gap of a pruned run to the full-length one at what both have, and its trace."""
    ids = inputs["input_ids"]
    valid = torch.ones_like(ids, dtype=torch.bool) if valid is None else valid
    plain = copy.deepcopy(model)
    with torch.no_grad(), prunetune.apply(model, config) as handle:
        logits = model(**inputs, **given, use_cache=False).logits
        trace = handle.trace[-1]
    images = ids == IMAGE
    with torch.no_grad(), hidden(plain, allowed, trace.stages, images):
        positions = {k: v for k, v in given.items() if k == "position_ids"}
        plain_inputs = {k: v for k, v in inputs.items() if k != "attention_mask"}
        right = plain(**plain_inputs, **positions, use_cache=False).logits
    left = valid & ~images
    for row, kept in enumerate(trace.stages[-1].kept):
        left[row, kept] = True
    return worst(logits[left], right[left]), trace


def causal(length):
    return torch.ones(1, length, length, dtype=torch.bool).tril()


@pytest.mark.parametrize("schedule", [*SCHEDULES, QUERY], ids=str)
def test_branches_behind_one_prompt(schedule):
    """A tree of candidates: two answers that see the prompt, and not each other."""
    model = tiny("llava")
    inputs = dict(make_batch(model, ((3, (20, 20), 14),)).inputs)
    length = inputs["input_ids"].shape[1]
    allowed = causal(length)
    trunk, fork = length - 10, length - 5
    allowed[:, fork:, trunk:fork] = False
    positions = torch.arange(length)[None].clone()
    positions[:, fork:] -= 5
    inputs["attention_mask"] = allowed[:, None]
    gap, _ = gap_to_hidden(
        model, make_config(model, schedule), inputs, allowed, position_ids=positions
    )
    assert gap < TOLERANCE


@pytest.mark.parametrize("part", ["text", "some of an image", "an image"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("schedule", [*SCHEDULES, QUERY], ids=str)
def test_a_mask_that_hides_parts(schedule, attention, part):
    """A 2-D mask with holes: an old turn's text, half a picture, a whole one."""
    model = tiny("llava", attention)
    inputs = dict(make_batch(model, ((9, (20, 20), 4, (20, 20), 6), (50, (20, 20), 3))).inputs)
    mask = inputs["attention_mask"] = inputs["attention_mask"].clone()
    places = (inputs["input_ids"][0] == IMAGE).nonzero().flatten()
    gone = {"text": slice(2, 6), "some of an image": places[5:12], "an image": places[:25]}[part]
    mask[0, gone] = 0
    valid = mask.bool()
    allowed = causal(mask.shape[1]) & valid[:, None]
    gap, trace = gap_to_hidden(model, make_config(model, schedule), inputs, allowed, valid)
    assert gap < TOLERANCE
    kept = trace.stages[-1].kept[0]
    assert valid[0, kept].all(), "a hidden token was kept in place of one that is seen"


@pytest.mark.parametrize("schedule", ["0", "0+1+3", "2+4"])
def test_a_step_that_hides_a_part_of_what_is_cached(schedule):
    """An answer that must not see the system prompt, behind a pruned prefill."""
    model = tiny("llava")
    inputs = dict(make_batch(model, ((9, (20, 20), 6),)).inputs)
    plain, config = copy.deepcopy(model), make_config(model, schedule)
    length = inputs["input_ids"].shape[1]
    steps = torch.tensor([[5, 17, 23]])
    mask = torch.ones(1, length + 3, dtype=torch.long)
    mask[:, 2:7] = 0
    cache = DynamicCache()
    with torch.no_grad(), prunetune.apply(model, config) as handle:
        model(**inputs, **cache_argument(model, cache))
        trace = handle.trace[-1]
        one = model(
            input_ids=steps[:, :1], attention_mask=mask[:, :-2], **cache_argument(model, cache)
        )
        two = model(input_ids=steps[:, 1:], attention_mask=mask, **cache_argument(model, cache))
    allowed = causal(length + 3)
    allowed[:, length:, 2:7] = False
    whole = torch.cat([inputs["input_ids"], steps], 1)
    with torch.no_grad(), hidden(plain, allowed, trace.stages, whole == IMAGE):
        right = plain(
            input_ids=whole, pixel_values=inputs["pixel_values"], use_cache=False
        ).logits[:, length:]  # fmt: skip
    assert worst(torch.cat([one.logits, two.logits], 1), right) < TOLERANCE


def test_branches_over_a_pruned_cache():
    model = tiny("llava")
    inputs = dict(make_batch(model, ((9, (20, 20), 6),)).inputs)
    plain, config = copy.deepcopy(model), make_config(model, "0+1+3")
    length, cache = inputs["input_ids"].shape[1], DynamicCache()
    tail = torch.tensor([[5, 17, 23, 31]])
    allowed = causal(length + 4)
    allowed[:, length + 2 :, length : length + 2] = False
    positions = torch.tensor([[length, length + 1, length, length + 1]])
    with torch.no_grad(), prunetune.apply(model, config) as handle:
        model(**inputs, **cache_argument(model, cache))
        given = {"attention_mask": allowed[:, None, length:], "position_ids": positions}
        got = model(input_ids=tail, **given, **cache_argument(model, cache)).logits
        stages = handle.trace[-1].stages
    whole = torch.cat([inputs["input_ids"], tail], 1)
    numbers = torch.cat([torch.arange(length)[None], positions], 1)
    with torch.no_grad(), hidden(plain, allowed, stages, whole == IMAGE):
        right = plain(
            input_ids=whole, pixel_values=inputs["pixel_values"], position_ids=numbers,
            use_cache=False,
        ).logits[:, length:]  # fmt: skip
    assert worst(got, right) < TOLERANCE


def test_a_mask_of_numbers_is_refused():
    model = tiny("llava")
    inputs = dict(make_batch(model, ((3, (20, 20), 4),)).inputs)
    mask = causal(inputs["input_ids"].shape[1])[:, None].long()
    with (
        prunetune.apply(model, make_config(model, "0")),
        pytest.raises(UnsupportedModelError, match=r"\A[^\n]*4-D of torch.int64[^\n]*\Z"),
    ):
        model(**(inputs | {"attention_mask": mask}))


def test_masks_of_heads_are_carried_over():
    """A mask may differ by head (a bias of positions): all of them are cut alike."""
    model = tiny("llava")
    inputs = dict(make_batch(model, ((3, (20, 20), 4),)).inputs)
    length, heads = inputs["input_ids"].shape[1], 4
    distance = torch.arange(length)[:, None] - torch.arange(length)
    slopes = 0.02 * torch.arange(1, heads + 1)[:, None, None]
    bias = torch.where(distance < 0, torch.finfo(torch.float32).min, -slopes * distance)[None]
    seen = []
    real = carried_over

    def noted(mask, segment, *rest):
        part = real(mask, segment, *rest)
        rows = segment.index[0]
        assert torch.equal(part[0], mask[0][:, rows][:, :, rows])
        seen.append(part.shape)
        return part

    with torch.no_grad(), prunetune.apply(model, make_config(model, "2")):
        masks.carried_over = noted
        try:
            model(**(inputs | {"attention_mask": bias}), use_cache=False)
        finally:
            masks.carried_over = real
    assert seen
    assert {shape[1] for shape in seen} == {heads}
