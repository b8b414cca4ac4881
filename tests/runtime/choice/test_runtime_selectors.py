"""Stages with a selector: equal to masking, and what is kept is what the selector chooses."""

import pytest
import torch
from chosen import SCORED, SELECTED, selecting, staged
from family_models import FAMILIES, each
from mutants import RED
from reference import alive_slots, measure
from reference_models import make_batch, tiny
from test_runtime import TOLERANCE, check
from test_runtime_taps import reference_states

import prunetune
from prunetune.runtime.apply import Handle, family_of
from prunetune.runtime.choice import choose
from prunetune.selectors import SelectContext

KINDS = tuple(SELECTED)


@pytest.mark.parametrize("layer", [0, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_a_selection_equals_masking(kind, layer):
    """Prefill and decoded steps."""
    model = tiny("llava_next")
    batch, config = make_batch(model), selecting(model, kind, layer)
    check(measure(model, config, batch, steps=5), batch, config)


def kinds_of(family):
    """Two kinds each, in turn: over the families every one comes to each layer."""
    first = 2 * list(FAMILIES).index(family)
    return [KINDS[(first + k) % len(KINDS)] for k in (0, 1)]


@pytest.mark.parametrize("layer", [0, 2])
@pytest.mark.parametrize("family", each())
def test_every_family(family, layer):
    """Of images, and of videos where the family takes them."""
    model = tiny(family)
    kind = kinds_of(family)[layer // 2]
    batch, config = make_batch(model), selecting(model, kind, layer, separators="drop")
    check(measure(model, config, batch, steps=3), batch, config)


def test_every_kind_meets_a_family():
    assert {kind for family in FAMILIES for kind in kinds_of(family)} == set(KINDS)


@torch.no_grad()
def kept_as_chosen(kind, layer, family="llava_next"):
    """Compare what is kept with the selector's answer over states of a masked full-length run.

    In float64: near ties of random states fall either way by the rounding of float32.
    """
    model, plain = tiny(family).double(), tiny(family, "eager").double()
    batch, config = make_batch(model), selecting(model, kind, layer, separators="drop")
    batch.inputs["pixel_values"] = batch.inputs["pixel_values"].double()
    with prunetune.apply(model, config) as handle:
        model(**batch.inputs)
        trace = handle.trace[-1]
    alive = alive_slots(tuple(batch.valid.shape), (0, trace))
    for number, stage in enumerate(config.stages):
        states = reference_states(plain, batch, alive, stage.layer)["source"]
        before = trace.stages[number - 1].kept if number else trace.image_slots
        for row, slots in enumerate(trace.image_slots):
            images = torch.split(slots, trace.lengths[row])
            scores = trace.stages[number].scores[row]
            for own, geometry, q in zip(images, trace.geometries[row], scores, strict=True):
                patches = torch.isin(own, before[row]) & ~geometry.separator
                place = geometry.select(patches.nonzero().flatten())
                kept = trace.stages[number].kept[row]
                kept = kept[torch.isin(kept, own)]
                ctx = SelectContext(states[row, own[patches]], q, place, stage.layer)
                assert torch.equal(own[patches][stage.selector.keep(ctx, len(kept))], kept)


@pytest.mark.parametrize("layer", [0, 2])
@pytest.mark.parametrize(
    "kind", ["cover, weighed", "dpp", "dpp, each view", "maxmin", "distinct", "spread"]
)
def test_what_is_kept_is_what_the_selector_chooses(kind, layer):
    kept_as_chosen(kind, layer)


def states_of_other_patches(patch):
    right = choose._context

    def context(plan, stage, image, patches, hidden, at, b, tap):
        return right(plan, stage, image, patches, hidden, at.flip(0), b, tap)

    patch.setattr(choose, "_context", context)


def scores_lost(patch):
    right = choose.selected

    def selected(selector, ctx, count, memo):
        object.__setattr__(ctx, "scores", torch.zeros_like(ctx.scores))
        return right(selector, ctx, count, memo)

    patch.setattr(choose, "selected", selected)


def selector_ignored(patch):
    patch.setattr(
        choose, "selected", lambda selector, ctx, count, memo: choose.top_indices(ctx.scores, count)
    )


@pytest.mark.parametrize("bug", [states_of_other_patches, scores_lost, selector_ignored])
def test_red_with_a_bug(bug, monkeypatch):
    bug(monkeypatch)
    with pytest.raises(RED):
        kept_as_chosen("maxmin", 0)


@torch.no_grad()
def last_kept(model, config, batch):
    with prunetune.apply(model, config) as handle:
        model(**batch.inputs)
        trace = handle.trace[-1]
    return [
        [torch.searchsorted(own, row) for own, row in zip(trace.image_slots, stage.kept)]
        for stage in trace.stages
    ]


@pytest.mark.parametrize("kind", SELECTED)
def test_a_row_alone_keeps_what_it_keeps_in_a_batch(kind):
    model = tiny("llava_next")
    config = selecting(model, kind, 0)
    together = last_kept(model, config, make_batch(model))
    for b, row in enumerate(make_batch(model).pieces):
        alone = last_kept(model, config, make_batch_of(model, b))
        for stage, own in zip(together, alone, strict=True):
            assert torch.equal(stage[b], own[0]), row


def make_batch_of(model, b):
    """Return row ``b`` of the batch by itself, without its padding."""
    batch = make_batch(model)
    inputs = dict(batch.inputs)
    real = batch.valid[b]
    first = sum(len(images) for images in batch.images[:b])
    mine = slice(first, first + len(batch.images[b]))
    for name in ("pixel_values", "image_sizes"):
        inputs[name] = inputs[name][mine]
    for name in ("input_ids", "attention_mask"):
        inputs[name] = inputs[name][b][real][None]
    return type(batch)(inputs, [batch.images[b]])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("kind", SELECTED)
@torch.no_grad()
def test_half_precision(kind, dtype):
    """Counts are met, and what is kept is what fp32 keeps of the same rounded states."""
    model = tiny("llava").to(dtype)
    batch = make_batch(model)
    inputs = batch.inputs | {"pixel_values": batch.inputs["pixel_values"].to(dtype)}
    config = selecting(model, kind, 0)
    with prunetune.apply(model, config) as handle:
        output = model(**inputs)
        trace = handle.trace[-1]
    assert torch.isfinite(output.logits).all()
    wanted = [[max(1, int(0.4 * n + 0.5)) for n in row] for row in batch.images]
    assert trace.stages[0].after == [sum(row) for row in wanted]


@pytest.mark.parametrize("kind", ["cover", "quota"])
@torch.no_grad()
def test_no_cache_repeats_the_choice(kind):
    model = tiny("llava")
    batch, config = make_batch(model), selecting(model, kind, 2)
    with prunetune.apply(model, config):
        options = {"max_new_tokens": 6, "do_sample": False}
        cached = model.generate(**batch.inputs, **options)
        plain = model.generate(**batch.inputs, **options, use_cache=False)
    assert torch.equal(cached, plain)


@torch.no_grad()
def test_a_quota_weighs_scorers_that_count_nowhere_else():
    """A scorer of weight 0 is computed, and decides its part alone."""
    model = tiny("llava")
    batch = make_batch(model)
    scorers = ({"name": "coverage"}, {"name": "cls_attention", "weight": 0.0})
    part = {"share": 1.0, "scorers": [{"name": "cls_attention"}]}
    quota = {"name": "quota", "parts": [part]}

    def config(scorers, **fields):
        return staged(model, {"layer": 0, "retention": 0.3, "scorers": scorers, **fields})

    by_quota = last_kept(model, config(scorers, selector=quota), batch)
    by_score = last_kept(model, config(({"name": "cls_attention"},)), batch)
    by_sum = last_kept(model, config(({"name": "coverage"},)), batch)
    assert all(torch.equal(a, b) for a, b in zip(by_quota[0], by_score[0], strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(by_quota[0], by_sum[0], strict=True))


@torch.no_grad()
def test_a_hidden_part_of_a_picture_is_never_chosen():
    model = tiny("llava")
    batch = make_batch(model, ((3, (20, 20), 4),))
    mask = batch.inputs["attention_mask"].clone()
    slots = (batch.inputs["input_ids"][0] == model.config.image_token_id).nonzero().flatten()
    mask[0, slots[: len(slots) - 3]] = 0
    with prunetune.apply(model, selecting(model, "cover", 0)) as handle:
        model(**batch.inputs | {"attention_mask": mask})
        kept = handle.trace[-1].stages[0].kept[0]
    assert torch.equal(kept, slots[-3:])


def test_top_is_what_no_selector_does():
    model = tiny("llava_next")
    batch = make_batch(model)
    plain = {"layer": 0, "retention": 0.4, "scorers": SCORED}
    one = last_kept(model, staged(model, plain), batch)
    two = last_kept(model, staged(model, plain | {"selector": {"name": "top"}}), batch)
    assert all(torch.equal(a, b) for a, b in zip(one[0], two[0], strict=True))


def test_a_selector_alone_counts_all_patches_alike():
    model = tiny("llava")
    config = staged(model, {"layer": 0, "retention": 0.3, "selector": {"name": "cover"}})
    batch = make_batch(model)
    measured = measure(model, config, batch, steps=3)
    assert measured.worst < TOLERANCE
    assert not any(s.any() for row in measured.trace.stages[0].scores for s in row)
    assert Handle(family_of(model), config).plan.marks is None
