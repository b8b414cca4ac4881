import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prunetune.budget import (
    ModelFacts,
    check_keep,
    flops_ratio,
    kv_ratio,
    latest_first_layer,
    mean_retention,
    rebudget,
)
from prunetune.config import PruningConfig
from prunetune.errors import ConfigError

FACTS = ModelFacts("llava", 16, 128, 512, 4, 4, 32, image_tokens=336, text_tokens=20)


def config(*stages, scorer="coverage", restorer=None, num_layers=16, positions="original"):
    data = [{"layer": layer, "retention": r} for layer, r in stages]
    if stages[0][1]:
        data[0] |= {"scorers": [{"name": scorer}], "restorer": restorer}
    return PruningConfig.parse(
        {
            "format": "prunetune.config",
            "version": 1 if stages[-1][1] else 2,
            "model": {"model_type": "llava", "num_layers": num_layers},
            "positions": positions,
            "stages": data,
        }
    )


def test_mean_retention_counts_every_layer():
    assert mean_retention(config((0, 0.25)).stages, 16) == 0.25
    assert mean_retention(config((2, 0.5)).stages, 16) == (2 + 14 * 0.5) / 16
    three = config((0, 0.5), (4, 0.25), (12, 0.125))
    assert mean_retention(three.stages, 16) == (4 * 0.5 + 8 * 0.25 + 4 * 0.125) / 16
    assert kv_ratio(three.stages, 16) == mean_retention(three.stages, 16)


def test_the_published_budgets_of_vflowopt():
    # VFlowOpt: R1, R1 R2, R1 R2 R3 over 9, 9 and 10 layers.
    for r1, r2, r3, mean in (
        (0.7233, 0.7487, 0.487, 0.5008),
        (0.2651, 0.9833, 0.8773, 0.2507),
        (0.1166, 1.0, 0.6011, 0.1000),
    ):
        stages = config((0, r1), (9, r1 * r2), (18, r1 * r2 * r3), num_layers=28).stages
        assert mean_retention(stages, 28) == pytest.approx(mean, abs=1e-4)


def test_flops_of_a_layer_against_a_count_by_hand():
    # One layer, one token kept of two, no text: width 4, two heads of 2, one key head, MLP of 8.
    facts = ModelFacts("x", 1, 4, 8, 2, 1, 2, image_tokens=2, text_tokens=0)
    linear = 2 * (4 * 4 + 4 * 2 + 4 * 2 + 4 * 4 + 3 * 4 * 8)  # q, k, v, o, gate/up/down per token
    attention = {1: 2 * 2 * 4 * 1, 2: 2 * 2 * 4 * 3}  # causal pairs x (scores and values)
    expected = (linear + attention[1]) / (2 * linear + attention[2])
    assert flops_ratio(config((0, 0.5)).stages, facts) == pytest.approx(expected)


def test_flops_fall_faster_than_tokens_when_attention_counts_and_slower_with_text():
    stages = config((0, 0.1)).stages
    bare = flops_ratio(stages, replace(FACTS, text_tokens=0))
    assert bare < 0.1 < flops_ratio(stages, replace(FACTS, text_tokens=200))
    assert flops_ratio(config((0, 1.0)).stages, FACTS) == 1.0
    assert flops_ratio(stages, replace(FACTS, num_kv_heads=1)) != flops_ratio(stages, FACTS)


@st.composite
def schedules(draw):
    count = draw(st.integers(1, 3))
    layers = sorted(draw(st.sets(st.integers(0, 15), min_size=count, max_size=count)))
    retentions = sorted(
        draw(st.lists(st.floats(0.02, 1.0), min_size=count, max_size=count)), reverse=True
    )
    return config(*zip(layers, retentions))


@settings(max_examples=200, deadline=None)
@given(schedules(), st.floats(0.0101, 1.0))
def test_any_config_is_moved_onto_any_budget(original, keep):
    moved, note = rebudget(original, keep, 16)
    assert abs(mean_retention(moved.stages, 16) - keep) < 1e-9
    kept_layer = moved.stages[0].layer == original.stages[0].layer
    assert kept_layer != ("moved" in note)
    assert [s.layer for s in moved.stages[1:]] == [s.layer for s in original.stages[1:]]
    assert original.stages[0].layer <= latest_first_layer(keep, 16) or not kept_layer


def test_a_config_on_its_budget_stays_as_it_is():
    original = config((2, 0.5), (8, 0.3))
    moved, note = rebudget(original, mean_retention(original.stages, 16), 16)
    assert [s.retention for s in moved.stages] == [0.5, 0.3]
    assert note == ""


def test_a_schedule_keeps_its_shape():
    moved, _ = rebudget(config((0, 0.8), (8, 0.4)), 0.2, 16)
    high, low = (s.retention for s in moved.stages)
    assert math.log(low) / math.log(high) == pytest.approx(math.log(0.4) / math.log(0.8), rel=1e-2)


def test_a_first_layer_that_is_too_late_moves_to_the_latest_that_is_not():
    moved, note = rebudget(config((2, 0.5), scorer="last_query"), 0.1, 16)
    assert (moved.stages[0].layer, moved.stages[0].retention) == (1, 0.04)
    assert note == "moved from layer 2 to 1"
    stays, note = rebudget(config((2, 0.5), scorer="last_query"), 0.25, 16)
    assert (stays.stages[0].layer, note) == (2, "")
    late, note = rebudget(config((9, 0.5)), 0.3, 16)
    assert (late.stages[0].layer, note) == (4, "moved from layer 9 to 4")


@given(schedules(), st.integers(11, 15), st.floats(0.0101, 1.0))
def test_an_exit_stays_one_or_is_left_out(schedule, layer, keep):
    before = [(s.layer, s.retention) for s in schedule.stages if s.layer < layer] or [(0, 0.5)]
    moved, note = rebudget(config(*before, (layer, 0.0)), keep, 16)
    assert abs(mean_retention(moved.stages, 16) - keep) < 1e-9
    assert ("left out" in note) == (keep > layer / 16) == (moved.stages[-1].retention > 0)
    assert all(s.retention > 0 for s in moved.stages[:-1])


def test_an_exit_alone_moves_to_the_layer_that_meets_the_budget():
    moved, note = rebudget(config((12, 0.0)), 0.3, 16)
    assert [(s.layer, s.retention) for s in moved.stages] == [(4, 0.0)]
    assert note == "moved from layer 12 to 4"


def test_a_scorer_that_needs_a_layer_cannot_go_before_the_first():
    with pytest.raises(ConfigError) as error:
        rebudget(config((2, 0.5), scorer="last_query"), 0.05, 16)
    assert "last_query" in str(error.value)
    assert "0.0719" in str(error.value)
    moved, _ = rebudget(config((2, 0.5), scorer="coverage"), 0.05, 16)
    assert moved.stages[0].layer == 0


def test_a_restorer_leaves_half_of_what_is_kept_to_the_scores():
    recovery = {"name": "uniform_recovery", "every": 4}
    same, note = rebudget(config((0, 0.625), restorer=recovery), 0.5, 16)
    assert (same.stages[0].restorer.every, note) == (4, "")
    weak, note = rebudget(config((0, 0.625), restorer=recovery), 0.1, 16)
    assert (weak.stages[0].restorer.every, note) == (19, "uniform_recovery every 4 -> 19")


@pytest.mark.parametrize("keep", [0, -0.1, 1.01, math.nan, math.inf, 0.009, None, "1"])
def test_budgets_out_of_range(keep):
    with pytest.raises(ConfigError, match=r"0\.01 to 1"):
        check_keep(keep)
    with pytest.raises(ConfigError):
        rebudget(config((0, 0.5)), keep, 16)


@pytest.mark.parametrize("keep", [0.01, 0.5, 1, 1.0])
def test_budgets_in_range(keep):
    assert check_keep(keep) == keep
