"""Proportional attention: a bias on the keys of what is kept, against full-length masked runs."""

import copy
from contextlib import contextmanager

import pytest
import torch
from family_models import each, family
from reference import worst
from reference_models import LAYERS, make_batch, make_config, tiny
from transformers import DynamicCache, StaticCache

import prunetune
from prunetune.config import PruningConfig
from prunetune.errors import ConfigError, UnsupportedModelError
from prunetune.release import cache_argument, cache_of
from prunetune.runtime import frame
from prunetune.runtime.choice import choose as choosing
from prunetune.runtime.layers.segment import Held, Segment

TOLERANCE = 2e-5
SCHEDULES = {
    "0": ((0, 0.4, ("coverage",)),),
    "2": ((2, 0.35, ("topv",)),),
    "0+2+4": ((0, 0.7, ("coverage",)), (2, 0.45, ("random",)), (4, 0.2, ())),
    "1+3": ((1, 0.5, ("last_query",)), (3, 0.25, ("last_query",))),
}


def heavy(model, schedule, mass=1.0, **options):
    """Return a config whose stages all have mass (one number, or one a stage)."""
    plain = make_config(model, SCHEDULES[schedule], **options)
    shares = [mass] * len(plain.stages) if isinstance(mass, float) else mass
    stages = [
        stage.model_dump(mode="json") | {"mass": share}
        for stage, share in zip(plain.stages, shares, strict=True)
    ]
    return PruningConfig.parse(plain.model_dump(mode="json") | {"version": 2, "stages": stages})


def groups_of(trace, row):
    """Return the slots of each image of a row."""
    return torch.split(trace.image_slots[row], trace.lengths[row])


@contextmanager
def weighed(model, trace, config, valid, prompt):
    """Run full length: what is dropped is hidden, what is kept counts for what joined it.

    Masses are worked out anew from the states of this very run, one cosine after the other.
    """
    text = family(model).text_model(model)
    length = valid.shape[1]
    alive = torch.ones(LAYERS, *valid.shape, dtype=torch.bool)
    bias = torch.zeros(LAYERS, *valid.shape)
    mass = torch.ones(*valid.shape)
    for stage in trace.stages:
        for row, (slots, kept) in enumerate(zip(trace.image_slots, stage.kept)):
            alive[stage.layer :, row, slots] = False
            alive[stage.layer :, row, kept] = True

    def join(layer, states):
        for stage, made in zip(trace.stages, config.stages, strict=True):
            if stage.layer != layer:
                continue
            for row in range(len(valid)):
                for slots in groups_of(trace, row):
                    before = slots[alive[layer - 1, row, slots]] if layer else slots
                    after = slots[alive[layer, row, slots]]
                    for u in before.tolist():
                        if u in after.tolist():
                            continue
                        near = [
                            float(torch.cosine_similarity(states[row, u], states[row, s], 0))
                            for s in after.tolist()
                        ]
                        mass[row, after[near.index(max(near))]] += mass[row, u]
                    bias[layer:, row, slots] = made.mass * mass[row, slots].log()

    def told(number, _, args, kwargs):
        states = args[0]
        now = states.shape[1]
        if now == length:
            join(number, states[:, :length].float())
        extra = now - valid.shape[1]
        keys = torch.nn.functional.pad(valid & alive[number], (0, extra), value=True)
        real = torch.nn.functional.pad(valid, (0, extra), value=True)
        near = family(model).near(model, number, real)
        allowed = family(model).allowed(model, told.ids, keys, prompt, near, number)
        allowed = allowed | torch.eye(now, dtype=torch.bool)
        added = torch.nn.functional.pad(bias[number], (0, extra))[:, None]
        mask = torch.where(allowed, added, torch.finfo(torch.float32).min)
        return args, kwargs | {"attention_mask": mask[:, None]}

    def ids(_, args, kwargs):
        told.ids = args[0] if args else kwargs.get("input_ids")

    base = getattr(model, "model", model)
    hooks = [base.register_forward_pre_hook(ids, with_kwargs=True)]
    for k, layer in enumerate(text.layers):
        hooks.append(layer.register_forward_pre_hook(lambda *a, k=k: told(k, *a), with_kwargs=True))
    try:
        yield bias
    finally:
        for hook in hooks:
            hook.remove()


@torch.no_grad()
def gap(model, config, batch, steps=4, **options):
    """Return how far prefill and greedy decoding are from the full-length weighed run."""
    plain = copy.deepcopy(model)
    with prunetune.apply(model, config) as handle:
        output = model(**batch.inputs)
        first = handle.trace[-1]
        generated = model.generate(
            **batch.inputs, max_new_tokens=steps, do_sample=False,
            return_dict_in_generate=True, output_logits=True, **options,
        )  # fmt: skip
        again = handle.trace[-1]
    for one, two in zip(first.stages, again.stages, strict=True):
        assert all(map(torch.equal, one.kept, two.kept))
    valid, length = batch.valid, batch.length
    survives = valid.clone()
    for row, slots in enumerate(first.image_slots):
        survives[row, slots] = False
        survives[row, first.stages[-1].kept[row]] = True
    logits = torch.stack(generated.logits, 1)
    rows = []
    with weighed(plain, first, config, valid, length) as bias:
        right = plain(**batch.inputs, use_cache=False).logits
        whole = dict(batch.inputs)
        for step in range(1, steps):
            rows.append(_longer(plain, whole, batch, generated.sequences, step))
    moved = worst(right[survives], plain(**batch.inputs).logits[survives])
    assert bias.max() > 0.5, "nothing joined anything: nothing was tested"
    assert moved > 0.01
    decoded = torch.stack([right[:, -1], *rows], 1)
    return max(worst(output.logits[survives], right[survives]), worst(logits, decoded))


def _longer(model, inputs, batch, sequences, step):
    """Return the logits behind ``step`` generated tokens."""
    length = batch.length
    grown = {}
    for name, value in inputs.items():
        if value.shape == batch.inputs["input_ids"].shape:
            grown[name] = torch.nn.functional.pad(value, (0, step))
    grown |= {
        "input_ids": sequences[:, : length + step],
        "attention_mask": torch.nn.functional.pad(
            batch.inputs["attention_mask"], (0, step), value=1
        ),
    }
    return model(**(inputs | grown), use_cache=False).logits[:, -1]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("name", ["llava", "llava_next"])
def test_equals_a_full_length_run_with_the_bias(name, schedule, attention):
    model = tiny(name, attention)
    assert gap(model, heavy(model, schedule), make_batch(model)) < TOLERANCE


@pytest.mark.parametrize("name", each())
def test_every_family(name):
    """In a state nothing can count for several."""
    model = tiny(name)
    if family(name).hybrid:
        refused = rf"\Amass: received 1, allowed 0 for {name}[^\n]*\Z"
        with pytest.raises(UnsupportedModelError, match=refused):
            prunetune.apply(model, heavy(model, "0", [1.0]))
        prunetune.apply(model, heavy(model, "0", [0.0])).remove()
        return
    assert gap(model, heavy(model, "0+2+4"), make_batch(model)) < TOLERANCE


@pytest.mark.parametrize("share", [0.3, (1.0, 0.0, 0.5)])
def test_a_part_of_the_mass(share):
    model = tiny("llava")
    assert gap(model, heavy(model, "0+2+4", share), make_batch(model)) < TOLERANCE


@pytest.mark.parametrize(
    "options",
    [{"cache_implementation": "static"}, {"use_cache": False}],
    ids=["static", "no cache"],
)
@pytest.mark.parametrize("schedule", ["0", "0+2+4"])
def test_other_caches(schedule, options):
    model = tiny("llava")
    assert gap(model, heavy(model, schedule), make_batch(model), **options) < TOLERANCE


@pytest.mark.parametrize("positions", ["packed"])
@torch.no_grad()
def test_packed_positions_run(positions):
    model = tiny("llava")
    config = heavy(model, "0", positions=positions)
    with prunetune.apply(model, config):
        one = model.generate(**make_batch(model).inputs, max_new_tokens=3)
        two = model.generate(**make_batch(model).inputs, max_new_tokens=3, use_cache=False)
    assert torch.equal(one, two)


@pytest.mark.parametrize("kind", ["dynamic", "static"])
@torch.no_grad()
def test_a_second_turn_keeps_the_mass(kind):
    """Turns over one cache equal the same tokens in one prompt: nothing lost, nothing doubled."""
    model = tiny("llava")
    config = heavy(model, "0+2+4")
    one = dict(make_batch(model, ((3, (20, 20), 4), (20, (20, 20), 6))).inputs)
    more = torch.tensor([[5, 9, 13], [7, 11, 15]])
    with prunetune.apply(model, config):
        text = model.config.get_text_config()
        cache = DynamicCache(config=text) if kind == "dynamic" else StaticCache(text, 160)
        mask = one["attention_mask"]
        one["position_ids"] = (mask.cumsum(1) - 1).clamp_min(0)
        model(**one, **cache_argument(model, cache))
        steps = []
        for start, stop in ((0, 2), (2, 3)):
            mask = torch.nn.functional.pad(mask, (0, stop - start), value=1)
            at = (mask.cumsum(1) - 1)[:, start - stop :]
            output = model(
                input_ids=more[:, start:stop], attention_mask=mask, position_ids=at,
                **cache_argument(model, cache),
            )  # fmt: skip
            steps.append(output.logits)
        ids = torch.cat([one["input_ids"], more], 1)
        whole = one | {"input_ids": ids, "attention_mask": mask}
        whole["position_ids"] = (mask.cumsum(1) - 1).clamp_min(0)
        right = model(**whole, use_cache=False).logits[:, -3:]
    assert worst(torch.cat(steps, 1), right) < TOLERANCE


@pytest.mark.parametrize("options", [{"num_beams": 3}, {"prompt_lookup_num_tokens": 3}], ids=str)
@torch.no_grad()
def test_beams_and_crops_carry_the_mass_along(options):
    model = tiny("llava")
    single = "prompt_lookup_num_tokens" in options
    # Before transformers 5.19 beams mix up several images of a prompt, and padding without a cache.
    batch = make_batch(model, ((3, (20, 20), 4, (20, 20), 6),) if single else ((3, (20, 20), 6),))
    config = heavy(model, "0+2+4")
    with prunetune.apply(model, config):
        cached = model.generate(**batch.inputs, max_new_tokens=6, do_sample=False, **options)
        if single:
            options = {}
        plain = model.generate(
            **batch.inputs, max_new_tokens=6, do_sample=False, **options,
            **({} if single else {"use_cache": False}),
        )  # fmt: skip
    assert torch.equal(cached, plain)


@torch.no_grad()
def test_masses_add_up():
    """Each image's tokens stand for all of it, after every stage."""
    model = tiny("llava_next")
    batch, seen = make_batch(model), []
    real = choosing.stood_for

    def noted(states, kept, mass):
        result = real(states, kept, mass)
        assert float(result.sum()) == float(mass.sum())
        assert (result >= 1).all()
        seen.append(float(result.sum()))
        return result

    with pytest.MonkeyPatch.context() as patch, prunetune.apply(model, heavy(model, "0+2+4")):
        patch.setattr(choosing, "stood_for", noted)
        model(**batch.inputs)
    sizes = [n for row in batch.images for n in row]
    assert seen == [float(n) for n in sizes] * 3


@torch.no_grad()
def test_half_precision():
    for dtype in (torch.bfloat16, torch.float16):
        model = tiny("llava").to(dtype)
        batch = make_batch(model)
        inputs = {k: v.to(dtype) if v.is_floating_point() else v for k, v in batch.inputs.items()}
        with prunetune.apply(model, heavy(model, "0+2+4")):
            logits = model(**inputs).logits
        assert torch.isfinite(logits).all()


def test_a_kernel_without_a_bias_is_refused():
    model = tiny("llava")
    config = heavy(model, "2")
    model.model.language_model.config._attn_implementation_internal = "flex_attention"
    with pytest.raises(UnsupportedModelError, match=r"\A[^\n]*flex_attention[^\n]*mass[^\n]*\Z"):
        prunetune.apply(model, config)


def test_mass_is_of_version_2():
    model = tiny("llava")
    data = heavy(model, "2").model_dump(mode="json")
    assert data["version"] == 2
    with pytest.raises(ConfigError, match="version: received 1"):
        PruningConfig.parse(data | {"version": 1})
    with pytest.raises(ConfigError, match=r"mass: received 1\.5, allowed a number from 0 to 1"):
        PruningConfig.parse(data | {"stages": [data["stages"][0] | {"mass": 1.5}]})


# -- planted bugs ------------------------------------------------------------------------------


def on_the_wrong_token(patch):
    real = frame.bias_of
    patch.setattr(frame, "bias_of", lambda *a: real(*a).roll(1, 1))


def lost_at_decode(patch):
    real = Segment.after

    def after(self, *args):
        held = real(self, *args)
        return Held(held.slots, held.behind, held.padded)

    patch.setattr(Segment, "after", after)


def doubled_by_a_second_turn(patch):
    real = Segment.after

    def after(self, *args):
        held = real(self, *args)
        if self.index is None and held.bias is not None:
            return Held(held.slots, held.behind, held.padded, held.bias * 2)
        return held

    patch.setattr(Segment, "after", after)


def only_of_the_last_stage(patch):
    real = choosing.stood_for
    patch.setattr(
        choosing, "stood_for", lambda states, kept, mass: real(states, kept, torch.ones_like(mass))
    )


def first_check():
    model = tiny("llava")
    assert gap(model, heavy(model, "0+2+4"), make_batch(model)) < TOLERANCE


def turns():
    test_a_second_turn_keeps_the_mass("dynamic")


@pytest.mark.parametrize(
    ("bug", "check"),
    [
        (on_the_wrong_token, first_check),
        (lost_at_decode, first_check),
        (lost_at_decode, turns),
        (doubled_by_a_second_turn, turns),
        (only_of_the_last_stage, first_check),
    ],
    ids=lambda f: f.__name__,
)
def test_red_with_a_bug(bug, check, monkeypatch):
    bug(monkeypatch)
    with pytest.raises(AssertionError):
        check()


def test_without_mass_nothing_is_added():
    """A plain config makes no additive mask: FlashAttention and sdpa's fast path stay."""
    model = tiny("llava")
    with torch.no_grad(), prunetune.apply(model, make_config(model, "2")):
        output = model(**make_batch(model, ((3, (20, 20), 4),)).inputs, use_cache=True)
    state = cache_of(output)._prunetune_state
    assert all(held.bias is None for held in state.held)
