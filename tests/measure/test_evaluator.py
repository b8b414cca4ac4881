"""Measuring configs: the same numbers however samples are batched, and wherever a trial starts."""

import math

import pytest
import torch

from prunetune.calibration import CalibrationSet, load_calibration
from prunetune.config import ModelRef, PruningConfig, Stage
from prunetune.families import Family
from prunetune.measure.evaluator import Evaluator
from prunetune.models import load_model
from prunetune.scorers import SCORERS


@pytest.fixture(scope="module")
def loaded():
    return load_model("tiny")


@pytest.fixture(scope="module")
def samples():
    """Five questions, two of them about one picture, the longest prompt not first."""
    found, _ = load_calibration("tiny", samples=40)
    images = [s.image_id for s in found]
    twice = next(i for i in images if images.count(i) > 1)
    pair = [s for s in found if s.image_id == twice][:2]
    others = [s for s in found if s.image_id != twice][:3]
    return CalibrationSet((pair[0], *others, pair[1]))


@pytest.fixture(scope="module")
def evaluator(loaded, samples):
    return Evaluator(loaded, samples, deepest=2)


def config(*layers):
    scorers = tuple(SCORERS.get(n)(name=n) for n in ("cls_attention", "last_query", "topv"))
    first = Stage(layer=layers[0], retention=0.3, scorers=scorers)
    later = [Stage(layer=layer, retention=0.1, scorers=scorers) for layer in layers[1:]]
    ref = ModelRef(model_type="llava_next", num_layers=16)
    return PruningConfig(model=ref, stages=(first, *later))


def columns(evaluator, config, **options):
    batches = list(evaluator.evaluate(config, **options))
    indices = [index for batch in batches for index, _ in batch]
    assert indices == list(range(len(evaluator.samples)))
    results = [result for batch in batches for _, result in batch]
    numbers = torch.tensor([[r.gap, r.kl] for r in results])
    return numbers, [(r.agrees, r.correct) for r in results]


def same(one, other):
    torch.testing.assert_close(one[0], other[0], atol=1e-5, rtol=0)
    return one[1] == other[1]


@pytest.mark.parametrize("layers", [(0, 3), (2, 9), (4,)])
def test_batches_change_no_number_and_no_order(evaluator, layers, monkeypatch):
    together = columns(evaluator, config(*layers))
    monkeypatch.setattr(evaluator, "token_budget", 1)
    monkeypatch.setattr(evaluator, "batch_size", 2)
    assert same(columns(evaluator, config(*layers)), together)


def test_without_answers_only_they_are_missing(evaluator):
    asked, unasked = (columns(evaluator, config(1), answers=a) for a in (True, False))
    torch.testing.assert_close(asked[0], unasked[0], atol=1e-5, rtol=0)
    assert [agrees for agrees, _ in asked[1]] == [agrees for agrees, _ in unasked[1]]
    assert {correct for _, correct in unasked[1]} == {None}
    assert None not in {correct for _, correct in asked[1]}


@pytest.mark.parametrize("answers", [True, False])
def test_a_family_without_a_reusable_prefix_runs_whole_with_the_same_result(
    loaded, samples, evaluator, answers, monkeypatch
):
    monkeypatch.setattr(Family, "prefix_problem", lambda self: "a test says so")
    whole = Evaluator(loaded, samples, deepest=2)
    assert whole.whole == "a test says so"
    assert whole.unpruned_correct == evaluator.unpruned_correct
    for layers in ((0, 3), (2, 9)):
        expected = columns(evaluator, config(*layers), answers=answers)
        found = columns(whole, config(*layers), answers=answers)
        assert same(found, expected)
        # The twin: the comparison sees a config that differs a little.
        assert not torch.allclose(
            found[0], columns(whole, config(layers[0], layers[1] + 1))[0], atol=1e-5, rtol=0
        )


def test_the_vision_tower_sees_each_picture_once(loaded, samples):
    seen = []
    tower = loaded.model.model.vision_tower
    hook = tower.register_forward_hook(lambda *call: seen.append(1))
    try:
        Evaluator(loaded, samples, deepest=0)
        # The first sample is computed to learn its size; the pair shares one run.
        assert len(seen) == 4
        Evaluator(loaded, CalibrationSet(samples.samples[1:4]), deepest=0)
        assert len(seen) == 4 + 3
    finally:
        hook.remove()


@pytest.mark.parametrize("broken", [True, False])
def test_a_state_that_is_no_number_is_never_a_perfect_one(broken):
    from types import SimpleNamespace

    from prunetune.measure.results import compare

    tail, logits = torch.ones(1, 1, 4), torch.zeros(1, 1, 5)
    if broken:  # float16 overflows
        tail, logits = tail / 0 * 0, logits / 0
    reference = SimpleNamespace(tail=torch.ones(1, 4), log_probs=torch.zeros(5).log_softmax(-1))
    (result,) = compare(tail, logits, [reference], [None], frozenset())
    if broken:
        assert math.isnan(result.gap)
        assert math.isnan(result.kl)
    else:  # the twin: the same state is a gap of 0
        assert (result.gap, result.kl) == (pytest.approx(0), pytest.approx(0))
