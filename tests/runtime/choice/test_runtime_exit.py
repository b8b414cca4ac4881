"""Exits: no image token is left from a layer on."""

import pytest
import torch
from chosen import SCORED, staged
from family_models import each, family
from mutants import RED
from reference import measure
from reference_models import make_batch, tiny
from test_runtime import TOLERANCE
from test_runtime_turns import Chat

import prunetune
from prunetune.budget import kv_ratio, mean_retention
from prunetune.errors import UnsupportedModelError
from prunetune.runtime.choice import choose
from prunetune.tokens import keep_count

BEHIND = {
    "alone": ({"layer": 3, "retention": 0.0},),
    "behind two": (
        {"layer": 0, "retention": 0.6, "scorers": SCORED, "selector": {"name": "cover"}},
        {"layer": 2, "retention": 0.3},
        {"layer": 4, "retention": 0.0},
    ),
    "at once": (
        {"layer": 0, "retention": 0.3, "scorers": SCORED},
        {"layer": 1, "retention": 0.0},
    ),
}


def leaves_text_alone(name, stages, attention="sdpa", steps=10, rows=None):
    model = tiny(name, attention)
    batch, config = make_batch(model, rows), staged(model, *stages)
    measured = measure(model, config, batch, steps=steps)
    assert measured.moved > 0.02
    assert measured.worst < TOLERANCE
    text = int((batch.valid.sum(1) - torch.tensor([sum(row) for row in batch.images])).max())
    last = config.stages[-1]
    assert measured.kv[last.layer :] == [text] * (len(measured.kv) - last.layer)
    assert all(length > text for length in measured.kv[: last.layer])
    assert measured.trace.stages[-1].after == [0] * len(batch.images)
    assert [len(kept) for kept in measured.trace.stages[-1].kept] == [0] * len(batch.images)


@pytest.mark.parametrize("name", each())
def test_later_layers_run_text_alone(name):
    """In a hybrid model no layer can: its states have seen the pictures."""
    if family(name).hybrid:
        model = tiny(name)
        with pytest.raises(UnsupportedModelError, match=rf"\A[^\n]*layer 3[^\n]*{name}[^\n]*\Z"):
            prunetune.apply(model, staged(model, *BEHIND["alone"]))
        return
    leaves_text_alone(name, BEHIND["behind two"])


@pytest.mark.parametrize("stages", ["alone", "at once"])
@pytest.mark.parametrize("name", each("llava", "gemma3", "qwen2_5_vl"))
def test_an_exit_alone_and_at_once(name, stages):
    leaves_text_alone(name, BEHIND[stages], steps=3)


@pytest.mark.parametrize("stages", BEHIND.values(), ids=list(BEHIND))
def test_with_eager_attention(stages):
    leaves_text_alone("llava_next", stages, "eager")


@torch.no_grad()
def test_a_prompt_that_ends_with_its_picture():
    """It is answered, as whatever ends in a dropped token, at the last survivor."""
    model = tiny("llava")
    batch, config = make_batch(model, ((4, family("llava").image),)), BEHIND["behind two"]
    measured = measure(model, staged(model, *config), batch, steps=1)
    assert measured.prefill < TOLERANCE
    with prunetune.apply(model, staged(model, *config)):
        logits = model(**batch.inputs).logits
    assert torch.equal(logits[0, -1], logits[0, 3])


def one_stays(patch):
    patch.setattr(choose, "keep_count", lambda n, r, alive: max(1, keep_count(n, r, alive)))


def separators_stay(patch):
    right = choose.spread_indices
    patch.setattr(
        choose, "spread_indices", lambda n, count, device: right(n, max(count, 1), device)
    )


@pytest.mark.parametrize("bug", [one_stays, separators_stay])
def test_red_with_a_bug(bug, monkeypatch):
    bug(monkeypatch)
    with pytest.raises(RED):
        leaves_text_alone("llava_next", BEHIND["alone"], steps=2)


@torch.no_grad()
@pytest.mark.parametrize("name", ["llava", "llava_next"])
def test_over_the_turns(name):
    """Text, and another picture, over a cache whose last layers hold no picture."""
    model = tiny(name)
    config = staged(model, *BEHIND["behind two"])
    chat = Chat(model, config)
    image = family(name).image
    with prunetune.apply(model, config) as handle:
        chat.turn(handle, make_batch(model, ((3, image, 4),), seed=1))
        chat.turn(handle, make_batch(model, ((3,),), seed=2))
        chat.turn(handle, make_batch(model, ((2, image, 2),), seed=3))
    assert chat.gap() < TOLERANCE


@torch.no_grad()
def test_no_cache_and_beams():
    model = tiny("llava")
    # One row: before transformers 5.18 padded rows decode otherwise without a cache, unpruned too.
    batch = make_batch(model, family("llava").rows[:1])
    config = staged(model, *BEHIND["behind two"])
    options = {"max_new_tokens": 5, "do_sample": False}
    with prunetune.apply(model, config):
        cached = model.generate(**batch.inputs, **options)
        assert torch.equal(cached, model.generate(**batch.inputs, **options, use_cache=False))
        one = model.generate(**batch.inputs, **options, num_beams=2)
        two = model.generate(**batch.inputs, **options, num_beams=2, use_cache=False)
    assert torch.equal(one, two)


@torch.no_grad()
@pytest.mark.parametrize("rows", [((),), ((4,), ())], ids=["alone", "beside another"])
def test_a_prompt_of_a_picture_alone_is_refused(rows):
    model = tiny("llava")
    image = family("llava").image
    batch = make_batch(model, [[*row, image] for row in rows])
    refused = pytest.raises(UnsupportedModelError, match=r"\A[^\n]*exit at layer 3[^\n]*\Z")
    with prunetune.apply(model, staged(model, *BEHIND["alone"])), refused:
        model(**batch.inputs)
    # The twin: the same prompt without the exit.
    with prunetune.apply(model, staged(model, {"layer": 3, "retention": 0.1, "scorers": SCORED})):
        model(**batch.inputs)


def test_what_it_costs():
    model = tiny("llava")
    stages = staged(model, *BEHIND["behind two"]).stages
    assert mean_retention(stages, 6) == kv_ratio(stages, 6) == pytest.approx((1.2 + 0.6) / 6)


@pytest.mark.parametrize(("retention", "count"), [(0.0, 0), (1e-9, 1), (0.5, 4)])
def test_only_an_exit_keeps_nothing(retention, count):
    assert keep_count(8, retention, 8) == count
