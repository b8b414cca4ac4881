"""A search with a promise ships the cheapest config that keeps it, or says why there is none."""

import json
import shlex

import pytest
from cli_runner import call
from fakes import SUMS, Fake, search, trials_of
from optuna.trial import FrozenTrial, TrialState
from test_pareto import Cheap

from prunetune.budget import mean_retention
from prunetune.config import PruningConfig
from prunetune.errors import StudyError
from prunetune.promise import Promise
from prunetune.spec import SpaceSpec, StudySpec
from prunetune.study.find import chosen_trial, find_study
from prunetune.study.outcome.decision import by_cost, check_promise

SPACE = SpaceSpec(**SUMS)


def promised(out, promise, held_out=None, trials=40, **more):
    held_out = held_out or Cheap(count=480, seed=1)
    return search(out, Cheap(), held_out, trials=trials, promise=promise, space=SPACE, **more)


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    out = tmp_path_factory.mktemp("kept")
    return out, promised(out, {"loss": "gap", "most": 0.55})


def test_the_config_that_ships_is_the_last_that_passed(kept):
    out, result = kept
    decision = result.decision
    assert [one.cost for one in decision.tested] == sorted(
        (one.cost for one in decision.tested), reverse=True
    )
    assert all(one.passed for one in decision.tested[:-1])
    ship = decision.shipped()
    assert ship.passed
    assert ship.loses.bound <= 0.55
    assert ship == [one for one in decision.tested if one.passed][-1]
    config = PruningConfig.load(out / "config.json")
    assert config.provenance.trial == ship.trial
    (point,) = result.points
    assert point.trial == ship.trial
    assert point.held_out.gap == pytest.approx(ship.loses.mean)
    # Pruned, the stand-in answers nothing right, and a promise about the gap does not ask.
    assert f"Trial {ship.trial} (mean retention" in result.verdict
    assert result.verdict.startswith("Do not ship it")
    data = json.loads(json.dumps(result.to_dict()))["decision"]
    assert (data["kept"], data["trial"]) == (True, ship.trial)
    assert data["room"] == pytest.approx(0.55 - ship.loses.bound)


def test_milliseconds_order_the_candidates(tmp_path):
    front = [trial(n, metric, cost) for n, metric, cost in
             ((0, 0.4, 0.1), (1, 0.3, 0.2), (2, 0.2, 0.3), (3, 0.1, 0.4))]  # fmt: skip
    promise = Promise(loss="gap", most=0.5, cheapest="ms")
    # The third is slower than the fourth, which is safer, too.
    found = by_cost(front, promise, lambda trials: [5.0, 7.0, 30.0, 20.0])
    assert [(t.number, ms) for t, ms in found] == [(3, 20.0), (1, 7.0), (0, 5.0)]
    plain = Promise(loss="gap", most=0.5)
    assert [t.number for t, _ in by_cost(front, plain, None)] == [3, 2, 1, 0]
    assert "cheapest" not in plain.model_dump()
    with pytest.raises(StudyError, match="nothing here measures them"):
        by_cost(front, promise, None)

    def clock(configs):
        return [100 * mean_retention(config.stages, 16) for config in configs]

    by_ms = {"loss": "gap", "most": 0.55, "cheapest": "ms"}
    result = promised(tmp_path, by_ms, timer=clock)
    decision = result.decision
    assert decision.to_dict()["cheapest"] == "ms"
    costs = {number: cost for number, _, cost in result.front}
    assert decision.shipped().cost == pytest.approx(100 * costs[decision.trial])
    assert "(ms to the first token " in result.verdict


def trial(number, metric, cost):
    return FrozenTrial(
        number=number, state=TrialState.COMPLETE, value=None, values=[metric, cost],
        datetime_start=None, datetime_complete=None, params={}, distributions={}, user_attrs={},
        system_attrs={}, intermediate_values={}, trial_id=number,
    )  # fmt: skip


def test_export_takes_what_ships(kept, tmp_path):
    out, result = kept
    found = find_study(str(out))
    assert chosen_trial(found, None, {}) == result.decision.trial
    other = next(t for t, _, _ in result.front if t != result.decision.trial)
    assert chosen_trial(found, other, {}) == other
    ran = call("export", str(out), "-o", str(tmp_path / "x.json"))
    assert ran.status == 0, ran.err
    assert PruningConfig.load(tmp_path / "x.json").provenance.trial == result.decision.trial


def test_a_promise_that_nothing_keeps_ships_nothing(tmp_path):
    result = promised(tmp_path, {"loss": "gap", "most": 0.01})
    assert result.decision.trial is None
    assert result.points == ()
    assert not (tmp_path / "config.json").exists()
    assert result.verdict.startswith("Nothing to ship")
    assert "more pictures would not help" in result.verdict
    with pytest.raises(StudyError, match="Nothing to ship"):
        chosen_trial(find_study(str(tmp_path)), None, {})


def test_it_resumes_with_the_same_promise_only(kept):
    out, _ = kept
    with pytest.raises(StudyError, match="promise"):
        promised(out, {"loss": "gap", "most": 0.5})


@pytest.mark.parametrize(
    ("promise", "held_out", "said"),
    [
        ({"loss": "accuracy", "most": 0.02}, Fake(answers=False), "have no answers"),
        ({"loss": "accuracy", "most": 0.02}, Fake(count=48), "give 127 or more"),
        ({"loss": "agreement", "most": 0.01}, Fake(count=80), "give 245 or more"),
    ],
)
def test_what_cannot_be_told_is_said_before_the_search(tmp_path, promise, held_out, said):
    with pytest.raises(StudyError, match=said):
        promised(tmp_path, promise, held_out)
    assert held_out.configs == []
    assert not (tmp_path / "study.db").exists() or not trials_of(tmp_path)


def test_a_model_that_answers_nothing_right_cannot_be_promised_about():
    held_out = Fake(count=480)
    held_out.unpruned_correct = [False] * 480
    with pytest.raises(StudyError, match="gives none of 480 expected answers"):
        check_promise(Promise(loss="accuracy", most=0.02), held_out)
    held_out.unpruned_correct[0] = True
    check_promise(Promise(loss="accuracy", most=0.02), held_out)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--max-drop 2 --max-gap 0.1", "received --max-drop and --max-gap"),
        ("--max-drop -1", "--max-drop: received -1"),
        ("--max-drop nan", "--max-drop: received nan"),
        ("--min-agreement 95", "--min-agreement: received 95"),
        ("--cheapest kv", "--cheapest goes with"),
        ("--max-drop 2 --cheapest money", "--cheapest: received 'money'"),
        ("--max-drop 2 --objective metric", "objective pareto"),
    ],
)
def test_a_bad_promise_is_one_line(flags, said):
    ran = call("search", "--model", "tiny", *shlex.split(flags))
    assert ran.status == 2
    assert said in ran.err
    assert len(ran.err.strip().splitlines()) == 1


def test_a_promise_searches_a_front_by_itself():
    spec = StudySpec(promise={"loss": "accuracy", "most": 0.02})
    assert (spec.pareto, spec.keep, spec.up_to) == (True, 0.03, 0.75)
    assert StudySpec.parse(spec.model_dump(mode="json")) == spec
    assert "promise" not in StudySpec().model_dump()
