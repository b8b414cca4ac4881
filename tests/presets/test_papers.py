"""The methods as the papers have them: acceptance tests (a) to (f), on the real runtime."""

import math
from pathlib import Path

import pytest
import torch
from cli_runner import refused
from reference import worst
from reference_models import LAYERS, THOROUGH, make_batch, make_config, tiny
from test_runtime import check_counts
from test_runtime_geometry import token_geometries
from test_space import facts

import prunetune
from prunetune.budget import mean_retention
from prunetune.config import PruningConfig
from prunetune.presets import _placed, load_preset, preset_names, read_preset
from prunetune.restorers import RESTORERS
from prunetune.space.space import Space
from prunetune.spec import StudySpec
from prunetune.tokens import grid_geometry

torch.set_num_threads(1)


def preset(model, name, keep):
    return load_preset(name, model_type=model.config.model_type, num_layers=LAYERS, keep=keep)[0]


# -- (a) and (f): keeping everything is the identity ----------------------------------------------


def moved(family, attention, name, keep):
    """Return how far a preset moves the logits and whether greedy decoding stays the same."""
    model = tiny(family, attention)
    batch, config = make_batch(model), preset(model, name, keep)
    options = {"max_new_tokens": 4, "do_sample": False}
    with torch.no_grad():
        plain = model(**batch.inputs).logits
        tokens = model.generate(**batch.inputs, **options)
        with prunetune.apply(model, config) as handle:
            pruned = model(**batch.inputs).logits
            assert len(handle.trace[-1].stages) == len(config.stages)
            same = torch.equal(model.generate(**batch.inputs, **options), tokens)
    return worst(pruned[batch.valid], plain[batch.valid]), same


@pytest.mark.parametrize("name", preset_names())
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", THOROUGH)
def test_a_f_keeping_everything_is_the_identity(family, attention, name):
    """Every method and kernel: catches a layer that is not causal any more."""
    difference, same = moved(family, attention, name, 1.0)
    assert difference <= 1e-6
    assert same


@pytest.mark.parametrize("name", preset_names())
def test_keeping_half_is_not(name):
    assert moved("llava_next", "sdpa", name, 0.5)[0] > 0.05


# -- (b) counts ------------------------------------------------------------------------------------


@pytest.mark.parametrize("keep", [0.5, 0.25])
@pytest.mark.parametrize("name", preset_names())
@pytest.mark.parametrize("family", THOROUGH)
def test_b_every_stage_leaves_its_share_of_every_image(family, name, keep):
    model = tiny(family)
    batch, config = make_batch(model), preset(model, name, keep)
    assert mean_retention(config.stages, LAYERS) == pytest.approx(keep, abs=1e-9)
    with torch.no_grad(), prunetune.apply(model, config) as handle:
        model(**batch.inputs)
    check_counts(handle.trace[-1], batch, config)


@pytest.mark.parametrize(("total", "drop", "every"), [(576, 0.5, 4), (256, 0.75, 3), (100, 0.3, 4)])
def test_b_topv_leaves_k_and_every_nth_of_the_rest(total, drop, every):
    """k + ceil((N - k) / n); a final share f needs a drop of (1 - f) / (1 - 1/n) before."""
    k = round(total * (1 - drop))
    count = k + math.ceil((total - k) / every)
    scores = torch.rand(total, generator=torch.Generator().manual_seed(0))
    kept = RESTORERS.get("uniform_recovery")(every=every).keep(
        scores, count, grid_geometry(1, total)
    )
    best = scores.argsort(descending=True)[:k]
    assert torch.isin(best, kept).all()
    assert len(kept) == count
    assert (1 - count / total) / (1 - 1 / every) == pytest.approx(drop, abs=2 / total)


@pytest.mark.parametrize("per_crop", [True, False])
def test_b_fastervlm_keeps_the_same_share_of_every_crop(per_crop):
    """Five crops of 16 patches and nothing padded: T each, as published; globally not."""
    model = tiny("llava_next")
    batch = make_batch(model, ((2, (32, 32), 3),))
    [[geometry]] = token_geometries(model, batch)
    scorer = {"name": "cls_attention", "per_crop": per_crop}
    total = len(geometry)
    config = make_config(model, [(0, 40 / total, (scorer,))], "drop", "packed")
    with torch.no_grad(), prunetune.apply(model, config) as handle:
        model(**batch.inputs)
        trace = handle.trace[-1]
    place = torch.searchsorted(trace.image_slots[0], trace.stages[0].kept[0])
    assert not geometry.separator[place].any()
    counts = torch.bincount(geometry.tile[place], minlength=5).tolist()
    assert (counts == [8] * 5) is per_crop


def kept_slots(name, dtype):
    model = tiny("llava_next").to(dtype)
    batch, config = make_batch(model), preset(model, name, 0.3)
    pixels = batch.inputs["pixel_values"].to(dtype)
    with torch.no_grad(), prunetune.apply(model, config) as handle:
        logits = model(**batch.inputs | {"pixel_values": pixels}).logits
    assert torch.isfinite(logits[batch.valid]).all()
    check_counts(handle.trace[-1], batch, config)
    return {
        (b, s) for b, kept in enumerate(handle.trace[-1].stages[-1].kept) for s in kept.tolist()
    }


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", preset_names())
def test_b_half_precision_models_keep_as_many_and_nearly_the_same(name, dtype):
    half, whole = kept_slots(name, dtype), kept_slots(name, torch.float32)
    assert len(half & whole) > (0.75 if name != "random" else 0.0) * len(whole)


# -- (c) TopV's solvers and their trap: test_topv.py --------------------------------------------


# -- (d) causality ---------------------------------------------------------------------------------


def states_before_the_question(family, name, question):
    model = tiny(family)
    size = (20, 20) if family == "llava" else (20, 60)
    batch = make_batch(model, ((3, size, 6),))
    ids = batch.inputs["input_ids"]
    ids[:, -6:] = torch.tensor(question)
    with torch.no_grad(), prunetune.apply(model, preset(model, name, 0.4)) as handle:
        states = model.model(**batch.inputs).last_hidden_state
    return states[:, :-6], handle.trace[-1].stages[-1].kept[0]


@pytest.mark.parametrize("name", preset_names())
@pytest.mark.parametrize("family", THOROUGH)
def test_d_later_text_never_changes_earlier_states(family, name):
    """Of what the question decides what is kept may change, so its states may: FastV's does."""
    (one, kept), (two, other) = (
        states_before_the_question(family, name, q) for q in ([5] * 6, [9, 44, 80, 23, 61, 7])
    )
    if preset(tiny(family), name, 0.4).prompt_dependent:
        assert name != "fastv" or not torch.equal(kept, other)
        return
    assert torch.equal(kept, other)
    assert worst(one, two) <= 1e-6


def test_d_a_layer_that_is_not_causal_would_be_noticed():
    """VFlowOpt's release runs one layer with no mask (3.9.1); here every layer does."""
    model = tiny("llava")
    for layer in model.model.language_model.layers:
        layer.self_attn.is_causal = False
        layer.register_forward_pre_hook(
            lambda _, args, kwargs: (args, kwargs | {"attention_mask": None}), with_kwargs=True
        )
    batch = make_batch(model, ((3, (20, 20), 6),))
    other = dict(batch.inputs, input_ids=batch.inputs["input_ids"].clone())
    other["input_ids"][:, -3:] = 50
    with torch.no_grad():
        one, two = (model.model(**i).last_hidden_state[:, :-6] for i in (batch.inputs, other))
    assert worst(one, two) > 1e-3


# -- (e) VFlowOpt's released schedules ------------------------------------------------------------


@pytest.mark.parametrize(("keep", "published"), [(0.5, 0.5008), (0.25, 0.2507), (0.1, 0.1000)])
def test_e_released_values_have_the_published_mean_retention(keep, published):
    released = {s["keep"]: s["stages"] for s in read_preset("vflowopt")["released"]}[keep]
    stages = [_placed(stage, 28) for stage in released]
    assert [stage["layer"] for stage in stages] == [0, 9, 18]
    data = preset_data(28, stages)
    assert mean_retention(data.stages, 28) == pytest.approx(published, abs=1e-4)
    assert [_placed(stage, 32)["layer"] for stage in released] == [0, 10, 20]


def preset_data(num_layers, stages):
    return PruningConfig.parse(
        {
            "format": "prunetune.config",
            "version": 2,
            "model": {"model_type": "llava_next", "num_layers": num_layers},
            "stages": stages,
        }
    )


@pytest.mark.parametrize(
    ("keep", "threshold"),
    [(None, 34.76), (0.3, 34.76), (0.9, 28.683), (0.45, 28.683), (0.12, 39.265), (0.05, 39.265)],
)
def test_e_the_nearest_released_budget_is_moved(keep, threshold):
    config, note = load_preset("vflowopt", model_type="llava_next", num_layers=28, keep=keep)
    first, *later = config.stages
    assert note == ""
    assert first.scorers[0].threshold == threshold
    assert first.restorer.name == "grid_recycling"
    assert [(stage.scorers, stage.restorer) for stage in later] == [((), None)] * 2
    assert config.positions == "packed"
    assert keep is None or mean_retention(config.stages, 28) == pytest.approx(keep, abs=1e-9)


def test_vflowopts_own_search_is_five_reals_at_its_layers():
    spec = StudySpec.load(
        Path(__file__).resolve().parents[2] / "studies" / "vflowopt-llava-next.toml"
    )
    assert (spec.sampler, spec.trials, spec.startup, spec.samples) == ("gp", 300, 27, 30)
    space = Space(spec.space, spec.keep, facts(32))
    names = [d.name for d in space.dimensions()]
    assert names == [
        "keep_1",
        "keep_2",
        "context_entropy.threshold",
        "context_entropy.alpha",
        "grid_recycling.size",
    ]
    for unit in (0.0, 0.3, 0.7, 1.0):
        config = space.decode(dict.fromkeys(names, unit))
        assert [stage.layer for stage in config.stages] == [0, 10, 20]
        assert [len(stage.scorers) for stage in config.stages] == [1, 0, 0]
        assert config.stages[0].scorers[0].threshold == pytest.approx(50 * unit)
        assert config.stages[0].scorers[0].alpha == pytest.approx(2 * unit - 1)
        assert config.stages[0].restorer.size == pytest.approx(3 + 21 * unit)
        assert mean_retention(config.stages, 32) == pytest.approx(0.25, abs=1e-9)
        first, second, _ = (stage.retention for stage in config.stages)
        assert 0.25 <= first <= 0.375
        assert second / first >= 0.533
        assert space.decode(space.encode(config)) == config


@pytest.mark.parametrize(("names", "words"), [("fastvv", "did you mean 'fastv'"), ("", "commas")])
def test_presets_to_try_first_are_named_on_the_command_line(names, words):
    refused("search", "--preset", names, has=("preset", words))
