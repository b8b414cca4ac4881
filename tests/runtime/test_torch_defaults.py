"""What a process has set in torch (number format, device, modes) changes no token and no number."""

from dataclasses import replace
from functools import cache
from types import SimpleNamespace

import pytest
import torch
from contexts import context
from reference_models import each, family, make_config
from torch_modes import CASTS, MODES, entered, every_mode, forget, identical, modes

import prunetune
from prunetune.families.base import TappedAttention
from prunetune.numerics import exactly, fitting
from prunetune.presets import load_preset, preset_names
from prunetune.restorers import RESTORERS
from prunetune.runtime.apply import family_of
from prunetune.runtime.vision.tower import VisionTap
from prunetune.scorers import SCORERS

families = pytest.mark.parametrize("name", each())
AT_LAYER_0 = [name for name in SCORERS if SCORERS.get(name)(name=name).usable_at(0)]


# -- tensors without a model ---------------------------------------------------------------


def scored(ctx, dtype):
    """Return everything that scorers and restorers make of one image."""
    states = [getattr(ctx, f"{which}_states").to(dtype) for which in ("source", "target")]
    ctx = replace(ctx, source_states=states[0], target_states=states[1])
    result = []
    for name in SCORERS:
        scorer = SCORERS.get(name)(name=name)
        result += [scorer.score(ctx), scorer.importance(ctx)]
        if name != "tile_prior":
            result.append(SCORERS.get(name)(name=name, per_crop=True).importance(ctx))
    scores = result[1]
    for name in RESTORERS:
        restorer = RESTORERS.get(name)(name=name)
        keep = restorer.keep(scores, 31, ctx.geometry)
        blended = restorer.blend(states[0], scores, keep, ctx.geometry, scores.exp())
        result += [keep] if blended is None else [keep, blended]
    return result


@every_mode
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_scorers_and_restorers(mode, dtype):
    ctx = context(width=24)
    plain = scored(ctx, dtype)
    forget()
    with entered(mode):
        there = scored(ctx, dtype)
    for again in (there, scored(ctx, dtype)):
        assert all(one.dtype == other.dtype for one, other in zip(plain, again, strict=True))
        assert identical(plain, again)


def test_a_mode_would_be_noticed():
    """Without the helper, what scorers are made of does depend on what they are run under."""
    one, other = torch.rand(32, 32, dtype=torch.float32), torch.rand(32, 32, dtype=torch.float32)
    mask = torch.arange(6) % 2 == 0
    for name, mode in CASTS.items():
        with mode():
            assert (one @ other).dtype != torch.float32, name
            with exactly():
                assert (one @ other).dtype == torch.float32
    for name in ("bfloat16", "float16", "float64"):
        with entered(name):
            assert (mask / mask.sum()).dtype == torch.get_default_dtype() != torch.float32
    with entered("device"):
        assert torch.arange(3).device.type == "meta"


@exactly()
def _tripled(x):
    return 3 * x


def test_no_graph_is_recorded_and_the_modes_come_back():
    x = torch.ones(2, requires_grad=True)
    with CASTS["autocast-bfloat16"]():
        assert not _tripled(x).requires_grad
        assert torch.is_autocast_enabled("cpu")
        assert torch.is_grad_enabled()
        with pytest.raises(ValueError), exactly():
            raise ValueError
        assert torch.is_autocast_enabled("cpu")
        assert torch.is_grad_enabled()


def test_states_fit_the_weights_that_they_meet():
    states = torch.ones(2, 4, dtype=torch.bfloat16)
    assert fitting(states, torch.nn.Linear(4, 4)).dtype == torch.float32
    same = torch.nn.Linear(4, 4, dtype=torch.bfloat16)
    assert fitting(states, same) is states
    # Quantised weights are in a format of their own, which nothing is converted to.
    for packed in (torch.zeros(4, 4, dtype=torch.uint8), torch.zeros(4).to(torch.float8_e4m3fn)):
        assert fitting(states, SimpleNamespace(weight=packed)) is states
    assert fitting(states, SimpleNamespace()) is states


# -- models --------------------------------------------------------------------------------


@cache
def subject(name):
    model = family(name).model()
    return model, family(name).batch(model), everything(name, model)


def everything(name, model):
    """Return a config with all scorers that the family has inputs for, and both restorers."""
    usable = [s for s in SCORERS if s not in family(name).refused_scorers]
    first = tuple(s for s in usable if s in AT_LAYER_0)
    stages = (
        (0, 0.7, first, {"name": "grid_recycling", "size": 2.0}),
        (1, 0.45, tuple(usable), {"name": "uniform_recovery"}),
        (3, 0.3, ()),
    )
    return make_config(model, stages)


def pruned(model, config, inputs):
    with prunetune.apply(model, config) as handle:
        logits = model(**inputs).logits.detach()
    kept = [row for stage in handle.trace[-1].stages for row in stage.kept]
    scores = [s for stage in handle.trace[-1].stages for row in stage.scores for s in row]
    return [logits, *kept, *scores]


@cache
def plainly(name):
    model, batch, config = subject(name)
    with torch.no_grad():
        return pruned(model, config, batch.inputs)


def unpruned_is_the_same(name, mode):
    model, batch, _ = subject(name)
    with torch.no_grad():
        plain = model(**batch.inputs).logits
        try:
            with entered(mode):
                return torch.equal(model(**batch.inputs).logits, plain)
        except (NotImplementedError, RuntimeError):
            return False


OTHERS = ("deterministic", "gradients", "inference")


def turns():
    """Each family under the default device, a number format and another mode, in turn."""
    kinds = ("device",), ("bfloat16", "float16", "float64"), OTHERS
    for number, case in enumerate(each()):
        for kind in kinds:
            mode = kind[(number + 1) % len(kind)]
            yield pytest.param(*case.values, mode, marks=case.marks)


def test_every_mode_has_its_turn():
    assert {case.values[1] for case in turns()} == set(MODES)


@pytest.mark.parametrize(("name", "mode"), turns())
def test_a_pruned_run(name, mode):
    model, batch, config = subject(name)
    plain = plainly(name)
    if not unpruned_is_the_same(name, mode):
        pytest.skip("transformers' own, unpruned model follows this default")
    forget()
    with torch.no_grad():
        with entered(mode):
            there = pruned(model, config, batch.inputs)
        after = pruned(model, config, batch.inputs)
    assert identical(plain, there)
    assert identical(plain, after)


@cache
def by_preset(name):
    model, batch, config = subject(name)
    ref = {"model_type": name, "num_layers": config.model.num_layers}
    chosen = {preset: load_preset(preset, keep=0.5, **ref)[0] for preset in preset_names()}
    with torch.no_grad():
        return {p: (c, pruned(model, c, batch.inputs)) for p, c in chosen.items()}


@modes
def test_presets(mode):
    model, batch, _ = subject("llava_next")
    for preset, (config, plain) in by_preset("llava_next").items():
        with torch.no_grad(), entered(mode):
            again = pruned(model, config, batch.inputs)
        assert identical(plain, again), preset


@pytest.mark.parametrize("narrow", [False, True])
@families
def test_a_capture_under_autocast(name, narrow):
    """The same states give the same attention; and states that autocast has narrowed are taken."""
    model, batch, _ = subject(name)
    view = family_of(model)
    tap = VisionTap(view, frozenset({"image_seed"}) | view.tower_tells())
    taken = []

    def capture(arguments, features, modality="image"):
        attention = getattr(tap._local, "tapped", None)
        for casting in (False, True):
            if attention is not None:
                states = attention.states.bfloat16() if narrow else attention.states
                states = states if casting else states.float()
                tap._local.tapped = TappedAttention(attention.module, states, attention.arguments)
            with entered("autocast-bfloat16") if casting else torch.no_grad():
                taken.append(VisionTap.capture(tap, arguments, features, modality))
        return taken[-1]

    with torch.no_grad():
        encode_through(view, tap, capture, batch.inputs)
    assert taken
    for plain, cast in zip(taken[::2], taken[1::2], strict=True):
        for one, other in zip(plain.images, cast.images, strict=True):
            assert one.seed == other.seed
            for part in ("vision_attention", "vision_map", "patch_entropy", "sketch"):
                known = getattr(one, part)
                assert known is None or torch.equal(known, getattr(other, part)), part


def encode_through(view, tap, capture, inputs):
    """Run a forward whose encoder calls are captured by ``capture``."""
    from prunetune.runtime.vision.tower import wrap_encoder

    replaced = SimpleNamespace(encoding=tap.encoding, capture=capture, features=tap.features)
    hooks = tap.install()
    try:
        for modality, method in view.encoders.items():
            encoder = getattr(view.base, method)
            wrapped = wrap_encoder(encoder, replaced, lambda *noted: None, modality)
            view.base.__dict__[method] = wrapped
        view.model(**inputs)
    finally:
        for method in view.encoders.values():
            view.base.__dict__.pop(method, None)
        for hook in hooks:
            hook.remove()


@families
def test_a_whole_run_under_autocast(name):
    """The model's states are then its own; every budget is met."""
    model, batch, config = subject(name)
    counts = [len(kept) for kept in plainly(name)[1:] if kept.dtype == torch.int64]
    with torch.no_grad(), entered("autocast-bfloat16"):
        under = pruned(model, config, batch.inputs)
    assert [len(kept) for kept in under[1:] if kept.dtype == torch.int64] == counts


@families
def test_gradients_after_a_forward_in_inference_mode(name):
    """What that forward captured and decided is used by the next, which records a graph."""
    model, batch, _ = subject(name)
    config = make_config(model, ((1, 0.45, ("coverage", "topv")), (3, 0.3, ())))
    with prunetune.apply(model, config):
        with torch.inference_mode():
            model(**batch.inputs)
        model(**batch.inputs).logits.square().mean().backward()
    gradient = model.get_input_embeddings().weight.grad
    model.zero_grad()
    assert gradient.isfinite().all()
    assert bool(gradient.any())


def test_features_encoded_in_inference_mode_can_be_trained_on():
    model, batch, config = subject("llava")
    given = {k: v for k, v in batch.inputs.items() if k != "pixel_values"}
    with prunetune.apply(model, config):
        with torch.inference_mode():
            encoded = model.model.get_image_features(batch.inputs["pixel_values"])
        output = model(**given, mm_encoder_outputs={"image": encoded})
        output.logits.square().mean().backward()
    assert bool(model.get_input_embeddings().weight.grad.any())
    model.zero_grad()
