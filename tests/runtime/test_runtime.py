"""A pruned forward equals a full-length forward in which the dropped tokens are masked."""

from itertools import pairwise

import family_models
import pytest
import torch
from reference import alive_slots, measure, reference_logits, worst
from reference_models import (
    SCHEDULES,
    THOROUGH,
    counts_after,
    make_batch,
    make_config,
    predicted_kv,
    tiny,
)

import prunetune
from prunetune.runtime.apply import family_of

TOLERANCE = 1e-5


def check(measured, batch, config):
    assert measured.moved > 0.05, "pruning changed nothing: the comparison would prove nothing"
    assert measured.prefill < TOLERANCE
    assert measured.decode < TOLERANCE
    assert measured.tokens_agree
    assert measured.kv == predicted_kv(batch, config)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", THOROUGH)
def test_equals_masking(family, attention, schedule):
    model = tiny(family, attention)
    batch, config = make_batch(model), make_config(model, schedule)
    check(measure(model, config, batch), batch, config)


@pytest.mark.parametrize("positions", ["original", "packed"])
@pytest.mark.parametrize("separators", ["keep", "drop"])
@pytest.mark.parametrize("family", THOROUGH)
def test_equals_masking_for_every_policy(family, separators, positions):
    model = tiny(family)
    batch = make_batch(model)
    config = make_config(model, "0+1+3", separators, positions)
    check(measure(model, config, batch), batch, config)


def test_packed_positions_differ_from_original():
    """The pair of the test above: the reference tells the two policies apart."""
    model = tiny("llava")
    batch, config = make_batch(model), make_config(model, "0", positions="packed")
    trace = measure(model, config, batch).trace
    alive = alive_slots(tuple(batch.valid.shape), (0, trace))
    one, two = (reference_logits(model, batch, alive, packed=p)[:, -1] for p in (True, False))
    assert worst(one, two) > 0.01


def check_counts(trace, batch, config):
    stages = config.stages
    expected = [counts_after(images, stages) for images in batch.images]
    alive = [slots.tolist() for slots in trace.image_slots]
    assert [len(slots) for slots in alive] == [sum(images) for images in batch.images]
    for i, stage in enumerate(trace.stages):
        assert stage.layer == stages[i].layer
        assert stage.before == [len(slots) for slots in alive]
        assert stage.after == [sum(row[i]) for row in expected]
        for row, kept in enumerate(stage.kept):
            assert kept.tolist() == sorted(set(kept.tolist()) & set(alive[row]))
            assert len(kept) == stage.after[row]
            bounds = torch.tensor([0, *batch.images[row]]).cumsum(0)
            place = torch.searchsorted(trace.image_slots[row], kept)
            per_image = [int(((place >= a) & (place < b)).sum()) for a, b in pairwise(bounds)]
            assert per_image == expected[row][i]
            alive[row] = kept.tolist()


@pytest.mark.parametrize("separators", ["keep", "drop"])
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("family", THOROUGH)
def test_trace_counts(family, schedule, separators):
    model = tiny(family)
    batch, config = make_batch(model), make_config(model, schedule, separators)
    with torch.no_grad(), prunetune.apply(model, config) as handle:
        model(**batch.inputs)
        model.generate(**batch.inputs, max_new_tokens=3)
        assert len(handle.trace) == 2, "decoding steps and text leave no trace"
    for trace in handle.trace:
        check_counts(trace, batch, config)
        for row, ids in enumerate(batch.inputs["input_ids"]):
            assert torch.equal(trace.image_slots[row], (ids == 99).nonzero().flatten())


@pytest.mark.parametrize("family", THOROUGH)
def test_outputs_keep_their_shape(family):
    model = tiny(family)
    batch, config = make_batch(model), make_config(model, "2+4")
    shape = (*batch.valid.shape, 64)
    with torch.no_grad(), prunetune.apply(model, config) as handle:
        hidden, _ = family_of(model).final_states(batch.inputs)
        dropped = ~alive_slots(tuple(batch.valid.shape), (0, handle.trace[-1]))[-1]
        output = model(**batch.inputs, labels=batch.inputs["input_ids"])
        last = model(**batch.inputs, logits_to_keep=1).logits
        some = model(**batch.inputs, logits_to_keep=torch.tensor([5, -2, -1])).logits
    assert hidden.shape == shape
    assert dropped.any()
    for row, (gone, valid) in enumerate(zip(dropped, batch.valid, strict=True)):
        for slot in (gone & valid).nonzero().flatten().tolist():
            before = ((~gone & valid)[:slot]).nonzero().flatten()
            for states in (hidden, output.logits):
                right = states[row, before[-1]] if len(before) else torch.zeros(())
                assert states[row, slot].eq(right).all()
        assert hidden[row, ~valid].eq(0).all()
    assert torch.isfinite(output.loss)
    if not family_models.family(family).keeps_logits:
        last, some = last[:, -1:], some[:, [5, -2, -1]]
    assert torch.allclose(last, output.logits[:, -1:], atol=1e-6)
    assert torch.allclose(some, output.logits[:, [5, -2, -1]], atol=1e-6)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("family", THOROUGH)
def test_a_row_alone_equals_its_row_in_the_batch(family, schedule):
    model, spec = tiny(family), family_models.family(family)
    batch, config = make_batch(model), make_config(model, schedule)
    with torch.no_grad(), prunetune.apply(model, config) as handle:
        together = model(**batch.inputs).logits
        whole = handle.trace[-1]
        for row, pieces in enumerate(batch.pieces):
            alone = spec.assemble(model, [pieces])
            logits = model(**alone.inputs).logits
            assert worst(logits[0, -1], together[row, -1]) < TOLERANCE
            for one, all_ in zip(handle.trace[-1].stages, whole.stages, strict=True):
                assert torch.equal(one.kept[0] + batch.length - alone.length, all_.kept[row])


@pytest.mark.parametrize("family", THOROUGH)
def test_the_reference_masks_nothing_when_nothing_is_dropped(family):
    model = tiny(family)
    batch = make_batch(model)
    shape = tuple(batch.valid.shape)
    with torch.no_grad():
        plain = model(**batch.inputs).logits
    reference = reference_logits(model, batch, alive_slots(shape))
    assert worst(plain[batch.valid], reference[batch.valid]) < TOLERANCE
