"""What a dropped token predicts: the answer of the compacted sequence, not zeros."""

import pytest
import torch
from reference import worst
from reference_models import IMAGE, SCHEDULES, family, make_batch, make_config, tiny

import prunetune
from prunetune.runtime import frame

TOLERANCE = 1e-5
NAMES = ("llava", "llava_next", "internvl", "qwen2_5_vl")


def compacted(model, inputs, kept):
    """Run a prompt from which everything that was dropped at layer 0 is missing, unpruned.

    Only for configs of one stage before the language model: then a pruned run is nothing but a
    shorter sequence at its original positions.
    """
    ids = inputs["input_ids"]
    slots = torch.arange(ids.shape[1])
    alive = ids[0] != IMAGE
    alive[kept] = True
    embeds = model.get_input_embeddings()(ids).clone()
    features = torch.cat(list(model.get_image_features(inputs["pixel_values"]).pooler_output))
    embeds[0, ids[0] == IMAGE] = features
    # A mask: without one, gaps of positions would be read as samples packed into one row.
    mask = torch.ones(1, int(alive.sum()), dtype=torch.long)
    given = {"attention_mask": mask, "position_ids": slots[alive][None], "use_cache": False}
    return model(inputs_embeds=embeds[:, alive], **given).logits[0], alive


@pytest.mark.parametrize("after", [0, 6])
@torch.no_grad()
def test_a_place_holds_the_answer_of_the_last_survivor(after):
    """Against the same model on the shorter sequence, as if the caller had cut it."""
    model = tiny("llava")
    inputs = dict(make_batch(model, ((5, (20, 20), after) if after else (5, (20, 20)),)).inputs)
    with prunetune.apply(model, make_config(model, "0")) as handle:
        logits = model(**inputs).logits[0]
        kept = handle.trace[-1].stages[-1].kept[0]
    shorter, alive = compacted(model, inputs, kept)
    place = alive.long().cumsum(0) - 1
    assert (~alive).any()
    assert worst(logits, shorter[place]) < TOLERANCE
    assert not logits.eq(0).all(-1).any()


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_a_prompt_that_ends_with_its_picture(name, schedule):
    """Greedy decoding starts from the last survivor, and goes on as after any prompt."""
    model = tiny(name)
    batch = make_batch(model, ((5, family(name).image),))
    config = make_config(model, schedule)
    with prunetune.apply(model, config) as handle:
        output = model(**batch.inputs, use_cache=True)
        trace = handle.trace[-1]
        generated = model.generate(
            **batch.inputs, max_new_tokens=4, do_sample=False, return_dict_in_generate=True,
            output_logits=True,
        )  # fmt: skip
        whole = torch.cat([batch.inputs["input_ids"], generated.sequences[:, -4:-3]], 1)
        grown = {k: torch.nn.functional.pad(v, (0, 1)) for k, v in batch.inputs.items()
                 if v.shape == batch.inputs["input_ids"].shape}  # fmt: skip
        grown |= {"input_ids": whole, "attention_mask": torch.ones_like(whole)}
        again = model(**(batch.inputs | grown), use_cache=False).logits
    first = output.logits[0, -1]
    assert not first.eq(0).all()
    assert worst(generated.logits[0][0], first) < TOLERANCE
    # Some families close a picture by a marker, which is text.
    if batch.inputs["input_ids"][0, -1] == IMAGE:
        survivor = trace.stages[-1].kept[0][-1]
        assert worst(first, output.logits[0, survivor]) < TOLERANCE
    # One step further, with the cache and without.
    kept = [[k.tolist() for k in s.kept] for s in trace.stages]
    if [[k.tolist() for k in s.kept] for s in handle.trace[-1].stages] == kept:
        assert worst(generated.logits[1][0], again[0, -1]) < TOLERANCE


@torch.no_grad()
def test_captions_are_ranked_by_all_of_their_tokens():
    """The first word of a caption is predicted by the picture's place."""
    model = tiny("llava")
    config = make_config(model, "0")
    losses, right = [], []
    for seed in range(4):
        inputs = dict(make_batch(model, ((4, (20, 20), 3),), seed=7).inputs)
        caption = torch.randint(2, 98, (3,), generator=torch.Generator().manual_seed(seed))
        inputs["input_ids"] = inputs["input_ids"].clone()
        inputs["input_ids"][0, -3:] = caption
        labels = torch.full_like(inputs["input_ids"], -100)
        labels[0, -3:] = caption
        with prunetune.apply(model, config) as handle:
            losses.append(float(model(**inputs, labels=labels).loss))
            kept = handle.trace[-1].stages[-1].kept[0]
        shorter, _ = compacted(model, inputs, kept)
        right.append(float(torch.nn.functional.cross_entropy(shorter[-4:-1], caption)))
    assert max(abs(a - b) for a, b in zip(losses, right, strict=True)) < TOLERANCE
    assert len(set(right)) == 4


@torch.no_grad()
def test_a_prompt_that_begins_with_its_picture():
    """Where no survivor precedes, there is nothing to say: zeros, as documented."""
    model = tiny("llava")
    batch = make_batch(model, (((20, 20), 6),))
    with prunetune.apply(model, make_config(model, "2+4")) as handle:
        logits = model(**batch.inputs).logits[0]
        first = int(handle.trace[-1].stages[-1].kept[0][0])
    assert logits[:first].eq(0).all()
    assert not logits[first:].eq(0).all(-1).any()


@pytest.mark.parametrize("schedule", ["0", "2+4"])
def test_gradients_reach_what_answers_for_a_dropped_token(schedule):
    """Training on the text behind a picture trains the last survivor's state."""
    model = tiny("llava")
    inputs = dict(make_batch(model, ((4, (20, 20), 1),)).inputs)
    labels = torch.full_like(inputs["input_ids"], -100)
    labels[0, -1] = 7
    with prunetune.apply(model, make_config(model, schedule)):
        model(**inputs, labels=labels, use_cache=False).loss.backward()
    weight = model.model.language_model.layers[-1].mlp.down_proj.weight
    assert weight.grad is not None
    assert weight.grad.abs().max() > 0


def test_zeros_would_be_noticed(monkeypatch):
    """The twin: a dropped place that holds zeros, as it did."""
    real = frame.of_last_survivors

    def zeros(hidden, place, count):
        own = torch.zeros_like(place, dtype=torch.bool)
        own[:, 1:] = place[:, 1:] == place[:, :-1]
        return real(hidden, place.masked_fill(own, -1), count)

    monkeypatch.setattr(frame, "of_last_survivors", zeros)
    with pytest.raises(AssertionError):
        test_a_place_holds_the_answer_of_the_last_survivor(6)
