"""Points near the best ones: other configs, close to what is known to be good."""

import optuna
import pytest
from fakes import Fake, search, trials_of

from prunetune.study.trials.near import NearBest
from prunetune.study.trials.samplers import Near, make_sampler

NAMES = [f"x{i}" for i in range(12)]
TARGET = 0.37


def digest(point):
    """x11 counts for nothing."""
    return repr([round(point[name], 6) for name in NAMES[:-1]])


def drawn(share, trials=60, seed=0, name="tpe", config_of=digest, space=NAMES):
    """A search whose first point is good already: what each trial was, and its value."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    near = Near(share, config_of)
    study = optuna.create_study(sampler=make_sampler(name, seed, 5, near=near))
    study.enqueue_trial(dict.fromkeys(space, TARGET + 0.12))

    def objective(trial):
        point = {name: trial.suggest_float(name, 0.0, 1.0) for name in space}
        trial.set_user_attr("config_digest", config_of(point))
        value = sum((point[name] - TARGET) ** 2 for name in NAMES[:-1])
        trial.report(value, 0)
        return value

    study.optimize(objective, n_trials=trials)
    return study


def changed(study, number):
    """How many values of a trial are no better trial's."""
    mine = study.trials[number]
    before = [t for t in study.trials[:number] if t.value is not None]
    return min(sum(mine.params[n] != t.params[n] for n in mine.params) for t in before)


def test_a_good_start_is_made_better_sooner_than_by_tpe_alone():
    alone, near = ([drawn(share, 40, seed).best_value for seed in range(4)] for share in (0.0, 0.5))
    start = 11 * 0.12**2
    assert max(near) < 0.8 * start
    assert sum(near) < 0.8 * sum(alone)


def test_the_share_is_what_is_asked_for_and_begins_after_the_startup():
    study = drawn(0.5)
    few = [changed(study, number) <= 6 for number in range(5, 60)]
    assert 0.3 < sum(few) / len(few) < 0.7
    assert not any(changed(study, number) <= 6 for number in range(1, 5))
    assert all(changed(drawn(1.0, 30), number) <= 6 for number in range(5, 30))


def test_no_config_is_tried_twice():
    digests = [t.user_attrs["config_digest"] for t in drawn(1.0).trials]
    assert len(set(digests)) == len(digests)
    # The twin: by another digest nothing is told apart, and the point is left to the sampler.
    study = drawn(1.0, config_of=lambda point: "one", trials=12)
    assert all(changed(study, number) > 6 for number in range(6, 12))


def test_points_stay_in_the_space_and_follow_from_the_seed():
    one, again, other = drawn(1.0), drawn(1.0), drawn(1.0, seed=1)
    assert [t.params for t in one.trials] == [t.params for t in again.trials]
    assert [t.params for t in one.trials] != [t.params for t in other.trials]
    assert all(0 <= value <= 1 for t in one.trials for value in t.params.values())


@pytest.mark.parametrize(("name", "wrapped"), [("tpe", True), ("random", False), ("qmc", False)])
def test_what_draws_blindly_stays_blind(name, wrapped):
    assert isinstance(make_sampler(name, 0, near=Near(0.5, digest)), NearBest) is wrapped
    assert not isinstance(make_sampler(name, 0), NearBest)
    assert not isinstance(make_sampler("nsga2", 0, objectives=2, near=Near(0.5, digest)), NearBest)


def test_a_study_uses_it(tmp_path):
    for share in (0.0, 1.0):
        search(tmp_path / str(share), Fake(), trials=24, refine=share)
    points = {s: [t.params for t in trials_of(tmp_path / str(s))] for s in (0.0, 1.0)}
    assert points[0.0][:10] == points[1.0][:10]
    assert points[0.0] != points[1.0]
