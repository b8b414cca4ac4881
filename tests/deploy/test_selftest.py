"""The self-test of ``verify``: right models pass it, and each of its figures can fail."""

import dataclasses

import pytest
import test_mutations as planted
import torch
from cli_runner import call, refused, write_set
from family_models import each
from reference_models import family, make_batch, make_config, tiny
from test_families import schedule

from prunetune.calibration import load_calibration
from prunetune.config import ModelRef, PruningConfig
from prunetune.deploy import masked, self_test, selftest
from prunetune.deploy.selftest import MOST, compared
from prunetune.errors import UnsupportedModelError
from prunetune.models import load_model
from prunetune.runtime import frame
from prunetune.runtime.choice import choose

FIGURES = ("cache", "batch", "masked", "kept")
GRID = {"name": "grid_recycling", "size": 3.0}
CONFIGS = {
    "layer 0": ("original", ((0, 0.3, ("cls_attention",), None),)),
    "packed": ("packed", ((0, 0.3, ("coverage",), None), (2, 0.1, ("last_query",), None))),
    "restored": (
        "original",
        ((0, 0.5, ("cls_attention",), GRID), (3, 0.2, ("last_query", "topv"), GRID)),
    ),
}


def config_of(kind, depth=16):
    positions, stages = CONFIGS[kind]
    return PruningConfig(
        model=ModelRef(model_type="llava_next", num_layers=depth, name="tiny"),
        positions=positions,
        stages=[
            {
                "layer": layer,
                "retention": share,
                "scorers": [{"name": name} for name in names],
                "restorer": restorer,
            }
            for layer, share, names, restorer in stages
        ],
    )


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return write_set(tmp_path_factory.mktemp("data") / "set", calibration=3, held_out=1)


@pytest.fixture(scope="module")
def samples(source):
    return load_calibration(str(source), seed=0)[0]


@pytest.fixture(scope="module")
def loaded():
    return load_model("tiny")


def of(name, config_schedule="0+1+3", attention="sdpa", **options):
    """Test a random model of a family, on its ragged batch and each of its rows."""
    model = tiny(name, attention)
    batch = make_batch(model)
    alone = [family(name).assemble(model, [row]).inputs for row in batch.pieces]
    config = make_config(model, schedule(config_schedule, name), **options)
    return compared(config, model, alone, batch.inputs)


def values(found):
    return {name: getattr(found, name).difference for name in FIGURES}


def failing(found):
    return {name for name in FIGURES if not getattr(found, name).passed}


# -- right models pass -------------------------------------------------------------------------


@pytest.mark.parametrize("name", each())
def test_every_family_passes(name):
    found = of(name)
    assert found.passed, found
    assert found.samples == 3
    assert max(values(found).values()) < 1e-4, found
    assert not any(getattr(found, figure).reason for figure in FIGURES)


@pytest.mark.parametrize("kind", CONFIGS)
def test_configs_of_every_kind_pass(loaded, samples, kind):
    seen = []
    found = self_test(config_of(kind), loaded, samples, samples=2, progress=seen.append)
    assert found.passed, found
    assert max(values(found).values()) < 1e-4, found
    assert seen == [1, 2]


def test_eager_attention_passes():
    found = of("gemma3", "2+4", "eager")
    assert found.passed, found
    assert found.masked.difference < 1e-4


def test_half_precision_is_measured_by_the_unpruned_model(samples):
    found = self_test(config_of("packed"), load_model("tiny", dtype="bfloat16"), samples, samples=2)
    assert found.passed, found
    assert found.cache.tolerance > 10 * selftest.EXACT
    assert found.masked.difference > 1e-4


def test_one_sample_is_compared_with_another_prompt(loaded, samples):
    found = self_test(config_of("layer 0"), loaded, samples, samples=1)
    assert found.samples == 2
    assert found.passed


WEIGHED = {
    "format": "prunetune.config", "version": 2, "separators": "drop",
    "model": {"model_type": "llava_next", "num_layers": 16, "name": "tiny"},
    "stages": [
        {"layer": 0, "retention": 0.3, "selector": {"name": "cover"}, "mass": 1.0},
        {"layer": 5, "retention": 0.1, "scorers": [{"name": "coverage"}], "mass": 0.5,
         "restorer": {"name": "similarity_merge", "share": 0.5}},
        {"layer": 12, "retention": 0.0},
    ],
}  # fmt: skip


def test_sets_mass_merging_and_exits_pass(loaded, samples):
    found = self_test(PruningConfig.parse(WEIGHED), loaded, samples, samples=2)
    assert found.passed, found
    assert max(values(found).values()) < 1e-4, found


def test_mass_on_the_wrong_token_is_seen(loaded, samples, monkeypatch):
    real = frame.bias_of
    monkeypatch.setattr(frame, "bias_of", lambda *a: real(*a).roll(1, 1))
    found = self_test(PruningConfig.parse(WEIGHED), loaded, samples, samples=2)
    assert "masked" in failing(found)


# -- each figure can fail ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bug", "plan", "figure"),
    [
        (planted.logical_length_forgotten, "0", "cache"),
        (planted.unmasked_ragged_pads, "0+1+3", "batch"),
        (planted.pads_forgotten_when_decoding, "0+1+3", "batch"),
        (planted.mask_columns_shifted, "0+1+3", "batch"),
        (planted.wrong_rows_gathered, "2+4", "batch"),
        (planted.renumbered_positions, "2+4", "masked"),
        (planted.neighbours_gathered, "2+4", "masked"),
    ],
    ids=lambda f: getattr(f, "__name__", f),
)
def test_a_planted_bug_is_seen(monkeypatch, bug, plan, figure):
    bug(monkeypatch)
    found = of("llava", plan)
    assert figure in failing(found), found
    assert not found.passed


def test_a_mask_off_by_one_is_seen(monkeypatch):
    right = masked._without

    def shifted(mask, states, keys):
        return right(mask, states, keys.roll(1))

    monkeypatch.setattr(masked, "_without", shifted)
    assert failing(of("llava", "2+4")) == {"masked"}


def test_other_kept_tokens_are_compared_as_they_are(monkeypatch):
    """Equal scores fall either way by rounding; what is kept then is compared, not which."""
    right, scale, together = choose._scores, [0.0], [False]
    choosing = frame.choose

    def noting(plan, number, images, *args, **options):
        together[0] = len(images) > 1
        return choosing(plan, number, images, *args, **options)

    monkeypatch.setattr(frame, "choose", noting)

    def tied(plan, stage, image, *args):
        scores = right(plan, stage, image, *args)
        way = 1 if together[0] else -1
        noise = torch.arange(len(scores)) / len(scores) * way
        return scores.round(decimals=0) + scale[0] * noise

    monkeypatch.setattr(choose, "_scores", tied)
    scale[0] = 1e-4
    found = of("llava", "2+4")
    assert found.parted > 0
    assert found.passed, found
    assert 0 < found.kept.difference < 1e-2
    # The twin: more than rounding.
    scale[0] = 0.2
    assert "kept" in failing(of("llava", "2+4"))


@pytest.mark.parametrize("bug", [planted.a_layer_late, planted.decode_mask_of_layer_0])
def test_a_bug_that_breaks_the_run_is_a_refusal(monkeypatch, bug):
    bug(monkeypatch)
    with pytest.raises(UnsupportedModelError, match="the unpruned model runs"):
        of("llava", "2+4")


def test_a_model_that_fails_pruned_is_refused_by_its_version(monkeypatch):
    def failing_choice(*args, **options):
        raise RuntimeError("sizes\nmust match")

    monkeypatch.setattr("prunetune.runtime.frame.choose", failing_choice)
    with pytest.raises(UnsupportedModelError, match=r"^[^\n]*transformers 5[^\n]*sizes must match"):
        of("llava", "2+4")


def test_what_cannot_be_hidden_is_not_compared(monkeypatch):
    monkeypatch.setattr(selftest, "why_not", lambda family: "no mask")
    found = of("llava", "2+4")
    assert found.masked.difference is None
    assert found.masked.reason == "no mask"
    assert found.passed
    model = tiny("llava")
    assert masked.why_not(selftest.family_of(model)) == ""
    model.model.language_model.config._attn_implementation = "flash_attention_2"
    assert "flash_attention_2" in masked.why_not(selftest.family_of(model))


def test_an_unpruned_model_that_differs_from_itself_is_no_yardstick(monkeypatch):
    right = selftest.Runner.stepped

    def noisy(self, *args, pruned):
        run = right(self, *args, pruned=pruned)
        return dataclasses.replace(run, logits=run.logits * 1.5)

    monkeypatch.setattr(selftest.Runner, "stepped", noisy)
    found = of("llava", "2+4")
    assert "unpruned model itself" in found.cache.reason
    assert found.batch.reason == ""
    assert found.passed


# -- the command line ----------------------------------------------------------------------------


def test_the_verb_tells_every_figure(source, tmp_path, monkeypatch):
    path = config_of("layer 0").save(tmp_path / "c.json")
    words = ("verify", path, "--data", source, "--samples", "2", "--threads", "1")
    ran = call(*words, "--json")
    assert ran.status == 0, ran.err
    told = ran.json["self_test"]
    assert {*FIGURES, "parted", "samples", "passed"} == set(told)
    assert told["samples"] == 2
    assert told["passed"]
    assert all(told[name]["difference"] <= told[name]["tolerance"] for name in FIGURES)
    planted.logical_length_forgotten(monkeypatch)
    bad = call(*words)
    assert bad.status == 1
    assert "self-test, 2 prompts" in bad.out
    assert "DIFFER" in bad.out
    assert "the same" in bad.out
    # What all else says of it: nothing.
    assert "token counts: hold" in bad.out
    off = call(*words, "--self-test", "0", "--json")
    assert off.status == 0
    assert off.json["passed"]
    assert off.json["self_test"] is None


def test_a_wrong_number_is_refused(tmp_path):
    path = config_of("layer 0").save(tmp_path / "c.json")
    refused("verify", path, "--self-test", "-1", has=("--self-test", "-1"))
    refused("verify", path, "--self-test", str(MOST + 1), has=("--self-test", MOST))
