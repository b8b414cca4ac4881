"""Startup points from a Sobol sequence."""

import optuna
import pytest
from fakes import Fake, search, trials_of

from prunetune.study.trials.samplers import make_sampler


def drawn(name, start, trials=12, seed=3):
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(sampler=make_sampler(name, seed, 8, start=start))

    def objective(trial):
        return sum(trial.suggest_float(f"x{i}", 0.0, 1.0) for i in range(3))

    study.optimize(objective, n_trials=trials)
    return [list(trial.params.values()) for trial in study.trials]


@pytest.mark.parametrize("name", ["tpe", "cmaes"])
def test_the_first_points_fill_the_space_and_then_the_sampler_goes_on(name):
    plain, spread = drawn(name, "random"), drawn(name, "qmc")
    assert spread[1:8] == drawn("qmc", "random")[1:8]
    assert plain[1:8] != spread[1:8]
    assert spread[8:] != drawn("qmc", "random")[8:]
    assert spread == drawn(name, "qmc")


def test_a_study_can_start_so(tmp_path):
    result = search(tmp_path, Fake(), trials=18, start="qmc", startup=16, sampler="tpe")
    assert result.trials["complete"] == 18
    assert len(trials_of(tmp_path)) == 18
