"""Samplers learn from stopped trials."""

from statistics import fmean

import optuna
import pytest
from optuna.distributions import FloatDistribution
from optuna.trial import TrialState, create_trial

from prunetune.search.samplers import make_sampler

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
