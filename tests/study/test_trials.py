"""One trial after the other: answered from memory, failed, stopped early, sampled."""

import json
import math
import sys

import optuna
import pytest
from fakes import SUMS, Fake, search, trials_of
from optuna.trial import TrialState

from prunetune.errors import StudyError
from prunetune.spec import SpaceSpec
from prunetune.study.database.connect import open_storage
from prunetune.study.database.urls import storage_url
from prunetune.study.trials.counts import count_evaluations
from prunetune.study.trials.samplers import make_sampler


def test_a_config_that_comes_again_is_answered_from_memory(tmp_path):
    # One layer and one scorer leave a handful of configs.
    small = SpaceSpec(
        max_stages=1,
        scorers=("coverage",),
        layers=(0, 1),
        restorers=("none",),
        separators=("drop",),
        **SUMS,
    )
    evaluator = Fake()
    result = search(tmp_path, evaluator, space=small, trials=12, presets=())
    assert result.trials["complete"] == 12
    trials = trials_of(tmp_path)
    different = {t.user_attrs["config_digest"] for t in trials}
    assert len(different) <= 4
    repeats = [t for t in trials if "repeats" in t.user_attrs]
    assert len(repeats) == 12 - len(different)
    for trial in repeats:
        original = trials[trial.user_attrs["repeats"]]
        assert trial.value == original.value
        assert trial.intermediate_values == original.intermediate_values
    # Searched configs, the winner once more, nothing else.
    assert len(evaluator.configs) == len(different) + 1
    assert result.sample_evaluations == evaluator.measured


def test_what_failed_halfway_and_twins_were_measured_too(tmp_path):
    class Breaks(Fake):
        def evaluate(self, config, *, answers=True):
            for k, batch in enumerate(super().evaluate(config, answers=answers)):
                if k == 2 and len(self.configs) == 2:
                    raise RuntimeError("out of memory")
                if k == 5 and len(self.configs) == 3:
                    self.twin(config)
                yield batch

        def twin(self, config):
            study = optuna.load_study(study_name=None, storage=open_storage(storage_url(out, None)))
            attrs = {"config_digest": config.digest(), "samples_used": 48, "evaluations": 48}
            attrs["config"] = config.model_dump(mode="json")
            made = {"value": 1.0, "user_attrs": attrs, "intermediate_values": {0: 1.0}}
            study.add_trial(optuna.trial.create_trial(**made))
            self.measured += 48

    out, evaluator = tmp_path, Breaks()
    result = search(tmp_path, evaluator, trials=6)
    trials = trials_of(tmp_path)
    assert result.trials["failed"] == 1
    assert [t.user_attrs["evaluations"] for t in trials if t.state is TrialState.FAIL] == [16]
    assert [t.user_attrs["evaluations"] for t in trials if "repeats" in t.user_attrs] == [48]
    assert result.sample_evaluations == evaluator.measured - 8
    # The twin: studies of old, which do not say it, are counted as they were.
    old = [
        optuna.trial.create_trial(value=1.0, user_attrs=a)
        for a in ({"samples_used": 16}, {"samples_used": 48, "repeats": 0})
    ]
    assert count_evaluations(old) == 16


def test_a_failing_trial_is_logged_and_the_search_goes_on(tmp_path, caplog):
    def fail(call):
        if call in (2, 3):
            raise RuntimeError("out of memory\nsecond line")

    result = search(tmp_path, Fake(fail=fail), trials=6)
    assert (result.trials["complete"], result.trials["failed"]) == (6, 2)
    assert "out of memory second line" in caplog.text
    failed = [json.loads(x) for x in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [x["failure"] for x in failed if x["state"] == "FAIL"] == [
        "RuntimeError: out of memory second line"
    ] * 2


def test_five_failures_in_a_row_end_the_search_with_the_reason(tmp_path):
    def fail(call):
        if call > 3:
            raise RuntimeError("no such kernel")

    evaluator = Fake(fail=fail)
    with pytest.raises(StudyError, match="RuntimeError: no such kernel") as error:
        search(tmp_path, evaluator, trials=50)
    assert "\n" not in str(error.value)
    assert len(evaluator.configs) == 8


def test_a_gap_that_is_no_number_fails_the_trial(tmp_path):
    class Broken(Fake):
        def badness(self, config):
            return math.nan if len(self.configs) == 2 else super().badness(config)

    result = search(tmp_path, Broken(), trials=4)
    assert (result.trials["complete"], result.trials["failed"]) == (4, 1)


@pytest.mark.parametrize("name", ["tpe", "tpe-uni", "gp", "cmaes", "nsga2", "qmc", "random"])
def test_every_sampler_searches_the_space(tmp_path, name):
    trials = 11 if name in ("gp", "tpe", "cmaes") else 3
    assert search(tmp_path, sampler=name, trials=trials, presets=()).trials["complete"] == trials


def test_a_sampler_without_its_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "cmaes", None)
    with pytest.raises(StudyError, match=r"cmaes: pip install 'prunetune\[search\]'"):
        make_sampler("cmaes", 0)


def test_a_pruned_trial_is_ranked_by_its_estimated_mean_not_by_one_sample():
    from optuna.trial import TrialState, create_trial

    from prunetune.study.trials.best import estimated_mean

    def complete(values):
        mean = sum(values) / len(values)
        return create_trial(
            state=TrialState.COMPLETE, value=mean, intermediate_values=dict(enumerate(values))
        )

    best = complete([0.1, 0.1, 0.9, 0.9])
    # 0.05 worse on the two samples seen, both easy: 0.05 worse than the best mean, 0.5.
    assert estimated_mean({0: 0.15, 1: 0.15}, best) == pytest.approx(0.55)
    # The twin: without a best trial the easy samples do flatter.
    assert estimated_mean({0: 0.15, 1: 0.15}, None) == pytest.approx(0.15)


def test_a_trial_is_stopped_only_if_its_mean_is_worse_too():
    from optuna.pruners import WilcoxonPruner

    from prunetune.study.trials.stopping import MeanWilcoxonPruner

    def stops(kind, values):
        study = optuna.create_study(pruner=kind(p_threshold=0.1, n_startup_steps=8))
        best = study.ask()
        for step, value in enumerate([0.01] * 14 + [1.0] * 2):
            best.report(value, step)
        study.tell(best, 2.14 / 16)
        trial = study.ask()
        for step, value in enumerate(values):
            trial.report(value, step)
        return trial.should_prune()

    # A little worse on most samples; the mean hangs on two, far better and far worse.
    open_still = [0.02] * 14 + [0.5, 1.6]
    assert not stops(MeanWilcoxonPruner, open_still)
    # The twin: ranks alone would stop it; and what is worse in the mean is stopped.
    assert stops(WilcoxonPruner, open_still)
    assert stops(MeanWilcoxonPruner, [0.3] * 14 + [1.0] * 2)
