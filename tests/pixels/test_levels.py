"""Pruned runs of smaller pictures: counts to a token, hidden tokens, and the search's figures."""

from dataclasses import replace

import pytest
import torch
from cli_runner import picture
from family_models import family
from family_models._folders import save_qwen
from family_models._folders_llava import save
from family_models._view_folders import save_views

import prunetune
from prunetune import PruningConfig
from prunetune.budget import FULL, Budget, Level, candidates, distinct, fitting, make_budget
from prunetune.calibration import CalibrationSet, Sample, encode, load_calibration
from prunetune.deploy.meter import Meter
from prunetune.deploy.selftest import self_test
from prunetune.measure.evaluator import Evaluator
from prunetune.models import load_model
from prunetune.runtime.apply import family_of
from prunetune.space.narrowed import SpaceSpec
from prunetune.space.space import Space
from prunetune.tokens import keep_count

SAVED = {
    "qwen2_5_vl": lambda folder: save_qwen(family("qwen2_5_vl"), folder),
    "qwen3_vl": lambda folder: save_qwen(family("qwen3_vl"), folder),
    "internvl": lambda folder: save_views(family("internvl"), folder),
    "smolvlm": lambda folder: save_views(family("smolvlm"), folder),
    "ovis2": lambda folder: save_views(family("ovis2"), folder),
    "llava_onevision": lambda folder: save("llava_onevision", folder),
    "llava_next": None,
}
# A level at which each family's pictures below have fewer tokens.
SHARES = {"llava_next": 0.2, "llava_onevision": 0.1}
STAGE = {"layer": 2, "retention": 0.37, "scorers": [{"name": "coverage"}]}


@pytest.fixture(scope="module", params=list(SAVED))
def loaded(request, tmp_path_factory):
    if request.param == "smolvlm":
        pytest.importorskip("num2words", reason="SmolVLM's processor needs it")
    save_it = SAVED[request.param]
    if save_it is None:
        return load_model("tiny")
    return load_model(str(save_it(tmp_path_factory.mktemp(request.param) / "model")))


def config_of(loaded, pixels, *stages):
    view = family_of(loaded.model)
    ref = {"model_type": view.config.model_type, "num_layers": len(view.layers)}
    data = {"format": "prunetune.config", "version": 2, "model": ref, "pixels": pixels}
    return PruningConfig.parse({**data, "stages": list(stages)})


@torch.no_grad()
def test_counts_and_hidden_tokens_at_a_level(loaded):
    kind = loaded.model.config.model_type
    share = SHARES.get(kind, 0.4)
    config = config_of(loaded, {"share": share}, STAGE)
    samples = [
        Sample((picture(1, (128, 128)),), "what ?"),
        Sample(
            (picture(2, (128, 64)), picture(3, (90, 128)))[: 1 + (kind != "llava_onevision")], "?"
        ),
    ]
    full = encode(loaded.processor, samples)["input_ids"] == loaded.model.config.image_token_id
    with prunetune.apply(loaded.model, config, processor=loaded.processor) as handle:
        loaded.model.generate(**encode(loaded.processor, samples), max_new_tokens=2)
    trace = handle.trace[0]
    assert sum(sum(row) for row in trace.lengths) < int(full.sum())
    for row, kept, slots in zip(trace.lengths, trace.stages[0].kept, trace.image_slots):
        for part in torch.split(slots, row):
            expected = keep_count(len(part), STAGE["retention"], len(part))
            assert int(torch.isin(part, kept).sum()) == expected == int(0.37 * len(part) + 0.5)
    found = self_test(config, loaded, CalibrationSet(tuple(samples)), samples=2)
    assert found.passed
    assert found.masked.difference is not None
    assert found.masked.difference < 1e-4


@pytest.mark.parametrize("own", [0, 3])
def test_a_trial_measures_what_a_deployment_does(own):
    """The search's cached states of smaller pictures against generate; both against full ones."""
    loaded = load_model("tiny")
    samples, _ = load_calibration("tiny", samples=3)
    evaluator = Evaluator(loaded, samples, deepest=2, own=own)
    for pixels, stages in (({"share": 0.25}, ()), ({"share": 0.25}, (STAGE,)), (None, (STAGE,))):
        config = config_of(loaded, pixels, *stages)
        results = [result for batch in evaluator.evaluate(config) for _, result in batch]
        told = Meter(config, loaded, 3).run(samples, lambda done: None).scores()
        assert sum(r.gap for r in results) / len(results) == pytest.approx(told.gap, abs=1e-6)
        assert sum(bool(r.correct) for r in results) / len(results) == told.accuracy
        if pixels is not None:
            # Against the unpruned run of the same small picture it would be nearly nothing.
            assert told.gap > 0.01
    assert set(evaluator.starts._smaller) == {
        ('{"share": 0.25}', bool(k)) for k in range(1 + (own > 0))
    }


def test_answers_to_smaller_pictures_are_judged_alike():
    """In another spelling they are right at every level, as a deployment counts."""
    loaded = load_model("tiny")
    samples, _ = load_calibration("tiny", samples=6)
    spelled = tuple(replace(s, answer=f"{s.answer.capitalize()}.") for s in samples)
    samples = replace(samples, samples=spelled)
    vqa, exact = (
        Evaluator(loaded, samples, deepest=2, own=3, match=match) for match in ("vqa", "exact")
    )
    assert sum(vqa.unpruned_correct) > 2
    assert not any(exact.unpruned_correct)
    for pixels, stages in (({"share": 0.25}, ()), ({"share": 0.25}, (STAGE,)), (None, (STAGE,))):
        config = config_of(loaded, pixels, *stages)
        told = Meter(config, loaded, 6).run(samples, lambda done: None)
        right, strict = (
            [result.correct for batch in one.evaluate(config) for _, result in batch]
            for one in (vqa, exact)
        )
        assert right == told.correct
        assert told.unpruned == vqa.unpruned_correct
        assert any(right)
        assert not any(strict)


def test_every_point_meets_the_budget_of_the_full_pictures():
    loaded = load_model("tiny")
    samples, _ = load_calibration("tiny", samples=4)
    evaluator = Evaluator(
        loaded, samples, deepest=0, levels=(Level(0.6, 0.61), Level(0.3, 0.3), Level(0.1, 0.12))
    )
    facts = evaluator.facts()
    for kind, value in (("keep", 0.25), ("flops", 0.4)):
        budget = make_budget(kind, value, facts)
        space = Space(SpaceSpec(pixels=True), budget, facts)
        names = [dimension.name for dimension in space.dimensions()]
        assert "pixels" in names
        random = torch.Generator().manual_seed(0)
        levels = set()
        for draw in torch.rand(25, len(names), generator=random).tolist():
            config = space.decode(dict(zip(names, draw)))
            tokens = space.tokens(config)
            levels.add(tokens)
            stages = [s.retention * tokens for s in config.stages]
            assert all(0 <= share <= tokens for share in stages)
            shares = [tokens] * facts.num_layers
            for stage in config.stages:
                shares[stage.layer :] = [stage.retention * tokens] * (
                    facts.num_layers - stage.layer
                )
            cost = sum(budget.layer_cost(share) for share in shares) / facts.num_layers
            assert cost <= budget.share + 1e-9
            if config.stages:
                assert cost > budget.share - 1e-6
            again = space.decode(space.encode(config))
            assert again.pixels == config.pixels
            assert [s.layer for s in again.stages] == [s.layer for s in config.stages]
        assert levels == {level.tokens for level in fitting(facts.levels, budget, budget)}
        alone = space.alone()
        assert alone is not None
        assert alone.pixels.share == (0.1 if kind == "keep" else 0.3)
    # The twin: without asking for it nothing is made smaller.
    plain = Space(SpaceSpec(), 0.25, facts)
    assert "pixels" not in [dimension.name for dimension in plain.dimensions()]


def test_levels_are_told_by_their_tokens():
    steps = [Level(0.75, 1.0), Level(0.5, 0.4), Level(0.4, 0.4), Level(0.2, 0.1), Level(0.1, 0.05)]
    assert distinct([FULL, *steps]) == [FULL, Level(0.5, 0.4), Level(0.2, 0.1), Level(0.1, 0.05)]
    half = Budget("keep", 0.45)
    assert fitting(steps, half, half) == [FULL, Level(0.5, 0.4)]
    small = Budget("keep", 0.2)
    assert fitting(steps, small, small) == [FULL, Level(0.5, 0.4), Level(0.2, 0.1)]
    assert {0.25, 0.75} <= set(candidates([0.25]))


def test_the_control_that_sends_smaller_pictures():
    """The largest pictures that meet the budget; else the row says from where on."""
    pytest.importorskip("optuna", reason="without the extra `search` there are no tables")
    from prunetune.study.outcome.baselines import resize_at

    loaded = load_model("tiny")
    found, _ = load_calibration("tiny", samples=16)
    square = [sample for sample in found if sample.images[0].size == (128, 128)]
    evaluator = Evaluator(loaded, CalibrationSet(tuple(square[:4])), deepest=0)
    facts = evaluator.facts()
    half = resize_at(Space(SpaceSpec(), 0.5, facts), evaluator)
    assert half.config is not None
    assert half.config.stages == ()
    assert half.config.pixels.share == 0.25
    assert half.tokens == pytest.approx(136 / 336, abs=0.02)
    small = resize_at(Space(SpaceSpec(), 0.25, facts), evaluator)
    assert small.config is None
    assert small.note.startswith("not below 0.4")
