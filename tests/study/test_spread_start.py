"""Startup points from a Sobol sequence."""

import optuna
import pytest
from fakes import Fake, search, trials_of

from prunetune.study.database.connect import open_storage
from prunetune.study.database.storage import BatchedStorage, quiet
from prunetune.study.database.urls import storage_url
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


# Several workers.


def shared_points(folder, name, seeds, sequence=None):
    """What workers draw in turn, each with a connection of its own, after one queued trial."""
    folder.mkdir()
    with quiet():
        workers = [
            optuna.create_study(
                study_name="shared",
                storage=open_storage(storage_url(folder, None)),
                load_if_exists=True,
                sampler=make_sampler(name, seed, 99, start="qmc", sequence=sequence),
            )
            for seed in seeds
        ]
        workers[0].enqueue_trial({f"x{i}": 0.5 for i in range(3)})
        for turn in [workers[:1]] + [workers] * (12 // len(workers)):
            # All of them begin a trial before any ends one.
            for study, trial in [(study, study.ask()) for study in turn]:
                study.tell(trial, sum(trial.suggest_float(f"x{i}", 0.0, 1.0) for i in range(3)))
    return {tuple(trial.params.values()) for trial in workers[0].trials[1:]}


@pytest.mark.parametrize("name", ["qmc", "tpe"])
def test_workers_draw_together_from_one_sequence(tmp_path, name, monkeypatch):
    """Whatever Optuna's own count says: two may read it before either writes."""
    monkeypatch.setattr(BatchedStorage, "get_study_system_attrs", lambda *_: {})
    three = shared_points(tmp_path / "three", name, (1, 2, 3), sequence=7)
    assert len(three) == 12
    assert three == shared_points(tmp_path / "one", name, (1,), sequence=7)
    # The twin: scrambled by each of them they are other points.
    assert not three & shared_points(tmp_path / "own", name, (1, 2, 3))


def test_a_resumed_study_goes_on_with_its_sequence(tmp_path):
    for folder, totals in (("resumed", (20, 24, 28)), ("once", (28,))):
        for total in totals:
            search(tmp_path / folder, trials=total, presets=(), sampler="qmc")
    resumed, once = (
        [t.params for t in trials_of(tmp_path / folder)] for folder in ("resumed", "once")
    )
    assert resumed == once
