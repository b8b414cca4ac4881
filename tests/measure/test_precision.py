"""Half precision moves a gap by less than 5%: kinds of choice on the embedded model.

`benchmarks/precision.py` has all of it. What stands here has standard errors of 1 to 2%.
"""

import math

import pytest
import torch

from prunetune.calibration import load_calibration
from prunetune.config import PruningConfig
from prunetune.measure.evaluator import Evaluator
from prunetune.models import load_model
from prunetune.runtime.choice import selecting
from prunetune.runtime.layers import masks

CASES = {
    "cover, mass": {"retention": 0.1, "selector": {"name": "cover"}, "mass": 1.0},
    "quota, mass": {"retention": 0.1, "selector": {"name": "quota"}, "mass": 1.0},
    "mmr": {"retention": 0.25, "selector": {"name": "mmr"}},
}


@pytest.fixture(scope="module")
def evaluators():
    samples = load_calibration("tiny")[0].limit(24)
    return {
        dtype: Evaluator(load_model("tiny", dtype=dtype), samples, deepest=0)
        for dtype in ("float32", "bfloat16")
    }


def gap(evaluator, case):
    facts = evaluator.facts()
    scorers = [{"name": "cls_attention"}, {"name": "feature_distance", "weight": 0.5}]
    data = {
        "format": "prunetune.config", "version": 2, "separators": "drop",
        "model": {"model_type": facts.model_type, "num_layers": facts.num_layers},
        "stages": [{"layer": 0, "scorers": scorers} | CASES[case]],
    }  # fmt: skip
    config = PruningConfig.parse(data)
    return math.fsum(
        one.gap for some in evaluator.evaluate(config, answers=False) for _, one in some
    )


def deviation(evaluators, case):
    full, half = (gap(evaluators[dtype], case) for dtype in ("float32", "bfloat16"))
    return abs(half / full - 1)


@pytest.mark.parametrize("case", CASES)
def test_a_gap_in_bf16_is_that_of_fp32(evaluators, case):
    assert deviation(evaluators, case) < 0.05


def half_of_the_mass(patch):
    real = masks.biased

    def half(mask, bias, hidden, kernel):
        return real(mask, bias / (2 if hidden.dtype == torch.bfloat16 else 1), hidden, kernel)

    patch.setattr(masks, "biased", half)
    return "cover, mass"


@pytest.mark.parametrize("bug", [half_of_the_mass])
def test_red_with_a_bug(evaluators, bug, monkeypatch):
    case = bug(monkeypatch)
    # What was chosen before is remembered.
    real = selecting._key
    monkeypatch.setattr(selecting, "_key", lambda *a: real(*a) + "bug")
    assert deviation(evaluators, case) > 0.05
