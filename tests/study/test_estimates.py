"""Samplers learn from stopped trials."""

from statistics import fmean

import optuna
import pytest
from optuna.distributions import FloatDistribution
from optuna.trial import TrialState, create_trial

from prunetune.study.trials.samplers import make_sampler

UNIT = FloatDistribution(0.0, 1.0)


def study_of(sampler):
    """Twelve bad trials are complete; those that were stopped came closer to x = 0.2."""
    study = optuna.create_study(sampler=sampler)
    for k in range(12):
        x = 0.75 + k / 60
        study.add_trial(create_trial(params={"x": x}, distributions={"x": UNIT}, value=1 + x))
    for k in range(40):
        x = k / 40
        reports = {0: 9.0, 1: 0.0, 160: abs(x - 0.2)}
        trial = create_trial(
            state=TrialState.PRUNED,
            params={"x": x},
            distributions={"x": UNIT},
            intermediate_values=reports,
        )
        study.add_trial(trial)
    return study


def drawn(study):
    return fmean(abs(study.ask({"x": UNIT}).params["x"] - 0.2) for _ in range(6))


@pytest.mark.parametrize("name", ["tpe", "tpe-uni"])
def test_stopped_trials_count_with_their_estimates(name):
    sampler = make_sampler(name, 0)
    study = study_of(sampler)
    assert drawn(study) < 0.15
    states = [trial.state for trial in study.get_trials(deepcopy=False)]
    assert states.count(TrialState.PRUNED) == 40, "the study itself stays as it is"


@pytest.mark.parametrize("name", ["tpe", "tpe-uni"])
def test_optuna_alone_would_rank_them_behind_every_complete_one(name):
    """The pair of the test above."""
    assert drawn(study_of(make_sampler(name, 0).inner)) > 0.3


def reads(sampler, monkeypatch):
    """Return how often drawing eight parameters of one trial, one by one, reads all trials."""
    study, names = study_of(sampler), [f"x{k}" for k in range(8)]
    for k in range(12):
        study.add_trial(
            create_trial(
                params=dict.fromkeys(names, k / 12),
                distributions=dict.fromkeys(names, UNIT),
                value=float(k),
            )
        )
    count, original = 0, study._storage.get_all_trials

    def counting(*args, **options):
        nonlocal count
        count += 1
        return original(*args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(study._storage, "get_all_trials", counting)
        trial = study.ask()
        for name in names:
            trial.suggest_float(name, 0.0, 1.0)
    return count


def test_a_trial_is_drawn_from_as_many_reads_as_by_optuna_alone(monkeypatch):
    """The study is shown once a trial, with its cache, not once a parameter."""
    sampler = make_sampler("tpe-uni", 0)
    assert reads(sampler, monkeypatch) == reads(make_sampler("tpe-uni", 0).inner, monkeypatch) > 1


def test_a_stopped_trial_is_seen_from_the_next_trial_on():
    sampler = make_sampler("tpe-uni", 0)
    study = study_of(sampler)
    drawn(study)
    near = {"x": 0.9}, {"x": UNIT}
    for _ in range(60):
        study.add_trial(
            create_trial(
                state=TrialState.PRUNED,
                params=near[0], distributions=near[1], intermediate_values={160: -1.0},
            )
        )  # fmt: skip
    assert fmean(study.ask({"x": UNIT}).params["x"] for _ in range(6)) > 0.6
