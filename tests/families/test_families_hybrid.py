"""Hybrid models: a token that never enters a layer is in no state of it."""

import pytest
import torch
from family_models import each, family
from reference import worst
from reference_models import make_batch, make_config, tiny

import prunetune
from prunetune.errors import UnsupportedModelError
from prunetune.release import cache_of

TOLERANCE = 1e-5
every = pytest.mark.parametrize("name", each("qwen3_5", "lfm2_vl"))


def states(output):
    """Return all states that a cache carries, one tensor each."""
    layers = [one for one in cache_of(output).layers if hasattr(one, "conv_states")]
    assert len(layers) == 4
    found = [one.conv_states[0] for one in layers]
    return found + [
        one.recurrent_states[0] for one in layers if one.recurrent_states.get(0) is not None
    ]


def gap(name, kept=None):
    """Return how far the pruned states are from those of a run on what is left alone."""
    model = tiny(name)
    batch = make_batch(model, (make_rows(name),))
    config = make_config(model, [(0, 0.4, ("random",))])
    seen = {}

    def note(text, args, kwargs):
        seen.update(kwargs)

    with torch.no_grad():
        hook = model.model.language_model.register_forward_pre_hook(note, with_kwargs=True)
        model(**batch.inputs)
        hook.remove()
        with prunetune.apply(model, config) as handle:
            pruned = states(model(**batch.inputs, use_cache=True))
            trace = handle.trace[-1]
        alive = torch.ones(batch.length, dtype=torch.bool)
        alive[trace.image_slots[0]] = False
        alive[trace.stages[0].kept[0] if kept is None else trace.image_slots[0][:kept]] = True
        places = seen.get("position_ids")
        places = torch.arange(batch.length)[None] if places is None else places[-3:]
        left = model.model.language_model(
            inputs_embeds=seen["inputs_embeds"][:, alive], position_ids=places[..., alive],
            attention_mask=torch.ones(1, int(alive.sum()), dtype=torch.long), use_cache=True,
        )  # fmt: skip
    return max(worst(one, two) for one, two in zip(pruned, states(left), strict=True))


def make_rows(name):
    return (3, family(name).image, 4, family(name).other, 2)


@every
def test_states_are_those_of_what_is_left(name):
    assert gap(name) < TOLERANCE


@every
def test_other_tokens_would_be_noticed(name):
    """Its pair: states of as many other tokens are far away."""
    assert gap(name, kept=9) > 100 * TOLERANCE


@pytest.mark.parametrize("name", each("lfm2_vl"))
def test_padding_never_runs_through_a_state(name):
    """Rows of unequal length behind a first turn are refused, not answered wrongly."""
    model = tiny(name)
    config = make_config(model, [(0, 0.4, ("random",))])
    first = make_batch(model, ((4,), (4,)))
    image = make_batch(model, (make_rows(name), (*make_rows(name)[:3], 3)), seed=1)
    with torch.no_grad(), prunetune.apply(model, config):
        cache = cache_of(model(**first.inputs, use_cache=True))
        mask = torch.cat([first.inputs["attention_mask"], image.inputs["attention_mask"]], 1)
        inputs = image.inputs | {"attention_mask": mask}
        with pytest.raises(UnsupportedModelError, match=r"\A[^\n]+batches of one\Z"):
            model(**inputs, past_key_values=cache, use_cache=True)


def test_mass_has_no_meaning_in_a_state():
    model = tiny("qwen3_5")
    data = make_config(model, [(0, 0.4, ("random",))]).model_dump(mode="json")
    data["stages"][0]["mass"] = 1.0
    with pytest.raises(UnsupportedModelError, match=r"\Amass: [^\n]+\Z"):
        prunetune.apply(model, prunetune.PruningConfig.parse(data | {"version": 2}))
