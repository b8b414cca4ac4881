"""Features that the caller has merged into the embeddings: pruned where it can be, else said."""

import logging

import pytest
import torch
from reference import worst
from reference_models import IMAGE, SCHEDULES, family, make_batch, make_config, tiny

import prunetune
from prunetune.release import cache_of

TOLERANCE = 1e-5
NAMES = ("llava", "llava_next", "internvl")


def merged(model, inputs):
    """Return embeddings that hold the features, computed by the model's own encoder."""
    spec, ids = family(model), inputs["input_ids"]
    given = {n: inputs[n] for n in spec.visual_inputs if n in inputs}
    features = model.get_image_features(**given).pooler_output
    embeds = model.get_input_embeddings()(ids).clone()
    flat = torch.cat([part.flatten(0, -2) for part in features])
    embeds[ids == IMAGE] = flat.to(embeds.dtype)
    return embeds


def lengths(output):
    return [layer.keys.shape[2] for layer in cache_of(output).layers]


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_ids_beside_embeddings_tell_the_places(name, schedule, caplog):
    model = tiny(name)
    batch = make_batch(model)
    mask = batch.inputs["attention_mask"]
    with prunetune.apply(model, make_config(model, schedule)) as handle:
        right = model(**batch.inputs, use_cache=True)
        embeds = merged(model, batch.inputs)
        got = model(
            input_ids=batch.inputs["input_ids"], inputs_embeds=embeds, attention_mask=mask,
            use_cache=True,
        )  # fmt: skip
        one, two = handle.trace
    assert lengths(got) == lengths(right)
    for a, b in zip(one.stages, two.stages, strict=True):
        assert all(map(torch.equal, a.kept, b.kept))
    assert worst(got.logits, right.logits) < TOLERANCE
    assert not caplog.records


@torch.no_grad()
def test_with_positions_of_a_model_that_finds_them_by_ids():
    model = tiny("qwen2_5_vl")
    batch = make_batch(model, ((3, family("qwen2_5_vl").image, 5),))
    explicit = family(model).explicit_positions(model, batch.inputs)
    with prunetune.apply(model, make_config(model, "2")):
        right = model(**batch.inputs, use_cache=True)
        embeds = merged(model, batch.inputs)
        ids = batch.inputs["input_ids"]
        got = model(input_ids=ids, inputs_embeds=embeds, **explicit, use_cache=True)
    assert lengths(got) == lengths(right)
    assert worst(got.logits, right.logits) < TOLERANCE


@pytest.mark.parametrize("case", ["no ids", "features of before", "other features"])
@torch.no_grad()
def test_what_cannot_be_pruned_is_said_once(case, caplog):
    model = tiny("llava")
    batch = make_batch(model)
    ids, mask = batch.inputs["input_ids"], batch.inputs["attention_mask"]
    before = merged(model, batch.inputs)
    plain = model(inputs_embeds=before, attention_mask=mask).logits
    config = make_config(model, "2")
    with caplog.at_level(logging.WARNING, "prunetune"), prunetune.apply(model, config) as handle:
        embeds = before if case == "features of before" else merged(model, batch.inputs)
        if case == "other features":
            embeds[ids == IMAGE] *= 1.5
        given = {} if case == "no ids" else {"input_ids": ids}
        for _ in range(2):
            output = model(**given, inputs_embeds=embeds, attention_mask=mask, use_cache=True)
        assert not handle.trace
    said = [r.getMessage() for r in caplog.records]
    assert len(said) == 1
    assert all(word in said[0] for word in ("inputs_embeds", "not pruned", "input_ids"))
    assert set(lengths(output)) == {batch.length}
    if case != "other features":
        assert worst(output.logits[batch.valid], plain[batch.valid]) < TOLERANCE


@torch.no_grad()
def test_text_and_decoding_steps_are_not_warned_about(caplog):
    model = tiny("llava")
    batch = make_batch(model)
    with (
        caplog.at_level(logging.WARNING, "prunetune"),
        prunetune.apply(model, make_config(model, "2")),
    ):
        model.generate(**batch.inputs, max_new_tokens=3)
        model(input_ids=torch.tensor([[4, 5, 6]]))
        model(inputs_embeds=model.get_input_embeddings()(torch.tensor([[4]])))
    assert not caplog.records
