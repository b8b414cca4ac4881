"""A promise about what may be lost is kept by the cheapest config that a fixed sequence finds."""

import math
import random
from types import SimpleNamespace

import pytest

from prunetune.errors import StudyError
from prunetune.promise import Promise
from prunetune.study.outcome.promise import Loses, in_sequence, knee, losses, lost


def loses(bound, mean=0.0):
    return Loses(mean, mean, bound, bound, 100, 0.01)


def test_the_last_that_passes_before_the_first_failure_is_kept():
    bounds = {1: 0.01, 2: 0.02, 3: 0.03, 4: 0.0}
    asked = []

    def measured(trial):
        asked.append(trial)
        return loses(bounds[trial])

    found = in_sequence(
        Promise(loss="accuracy", most=0.02), [(t, 1.0 / t) for t in bounds], measured
    )
    assert [(t.trial, t.passed) for t in found] == [(1, True), (2, True), (3, False)]
    # The cheapest one would have passed: it was never looked at.
    assert asked == [1, 2, 3]


def test_a_config_that_gives_no_number_ends_the_sequence():
    found = in_sequence(Promise(loss="gap", most=0.1), [(1, 1.0), (2, 0.5)], lambda t: None)
    assert found == []


def test_no_loss_at_all_is_no_proof_on_a_few_samples():
    few = lost([0.0] * 20, [str(i) for i in range(20)])
    many = lost([0.0] * 2000, [str(i) for i in range(2000)])
    assert few.mean == many.mean == 0.0
    assert few.bound > 0.1 > 0.005 > many.bound
    assert few.needed(0.02) > 20
    assert many.needed(0.02) <= 2000


def test_questions_about_one_picture_count_as_one():
    values = [float(i % 2) for i in range(40)]
    alone = lost(values, [str(i) for i in range(40)])
    together = lost(sorted(values), [str(i // 10) for i in range(40)])
    assert alone.mean == together.mean == 0.5
    assert together.error > 2 * alone.error
    assert together.pictures == 4


def test_nothing_passes_where_the_mean_itself_is_too_much():
    found = lost([0.0, 1.0] * 50, [str(i) for i in range(100)])
    assert found.needed(0.4) is None
    assert found.needed(0.6) < 400


@pytest.mark.parametrize("rate", [0.02, 0.05])
def test_the_bound_holds_in_19_of_20_sets(rate):
    """What is promised is broken in at most one set of twenty (400 sets, a loss of `rate`)."""
    draw = random.Random(0)
    broken = 0
    for _ in range(400):
        values = []
        for _ in range(400):
            u = draw.random()
            values.append(1.0 if u < rate + 0.03 else -1.0 if u < rate + 0.06 else 0.0)
        broken += lost(values, [str(i // 4) for i in range(400)]).bound < rate
    assert broken <= 400 * 0.05 + 2 * math.sqrt(400 * 0.05 * 0.95)


def test_a_bound_without_error_would_be_broken_in_half_of_the_sets():
    """The twin: what the test before would say of a mean that is taken for a bound."""
    draw = random.Random(0)
    sets = [[float(draw.random() < 0.05) for _ in range(400)] for _ in range(400)]
    assert sum(sum(values) / 400 < 0.05 for values in sets) > 120


def result(gap=0.1, agrees=True, correct=True):
    return SimpleNamespace(gap=gap, kl=0.0, kl_answer=None, agrees=agrees, correct=correct)


def test_what_is_lost_of_each_kind():
    results = [result(), result(gap=0.3, agrees=False, correct=False), result(correct=None)]
    assert losses(Promise(loss="gap", most=0.1), results, [True] * 3) == [0.1, 0.3, 0.1]
    assert losses(Promise(loss="agreement", most=0.1), results, [None] * 3) == [0.0, 1.0, 0.0]
    accuracy = Promise(loss="accuracy", most=0.02)
    assert losses(accuracy, results[:2], [True, True]) == [0.0, 1.0]
    assert losses(accuracy, results[:2], [False, False]) == [-1.0, 0.0]
    with pytest.raises(StudyError, match="have no answers"):
        losses(accuracy, results, [None] * 3)
    some = losses(accuracy, results, [True, True, None])
    assert some[:2] == [0.0, 1.0]
    assert math.isnan(some[2])
    assert lost(some, ["a", "b", "c"]).pictures == 2


def test_the_knee_is_where_the_front_bends():
    front = [(0.05, 0.4), (0.1, 0.1), (0.2, 0.08), (0.5, 0.05), (0.75, 0.01)]
    assert knee(front) == 1
    assert knee(front[:2]) == 0
    assert knee([(0.1, 0.5), (0.1, 0.5), (0.1, 0.5)]) in range(3)


def test_an_interval_ends_where_there_is_nothing_left_to_lose():
    loses = lost([1.0, 0.0, 0.0, 0.0], list("abcd"))
    assert loses.high > 0.5
    assert loses.within(0.5).interval == (max(loses.low, -0.5), 0.5)
    assert loses.within(None).interval == (loses.low, loses.high)
