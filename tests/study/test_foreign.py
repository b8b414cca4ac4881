"""Trials that another program put into the study: left out, and nobody waits for them."""

from datetime import datetime, timedelta

import optuna
import pytest
from optuna.trial import TrialState, create_trial
from sqlalchemy import create_engine, text

from prunetune.study.database import foreign, leases
from prunetune.study.database.connect import open_storage
from prunetune.study.database.storage import quiet
from prunetune.study.trials.best import best_complete
from prunetune.study.trials.loop import finished

UNIT = {"x": optuna.distributions.FloatDistribution(0, 1)}
OWN = {"config": {}, "config_digest": "a"}


@pytest.fixture
def url(tmp_path):
    return f"sqlite:///{tmp_path / 'study.db'}"


@pytest.fixture
def study(url):
    with quiet():
        found = optuna.create_study(study_name="s", storage=open_storage(url))
        for k, value in enumerate((0.5, 0.4)):
            found.add_trial(
                create_trial(
                    value=value,
                    params={"x": 0.1 * k},
                    distributions=UNIT,
                    user_attrs=OWN,
                    intermediate_values={0: value},
                )
            )
        yield found


def notebook(url):
    return optuna.load_study(study_name="s", storage=url)


def test_a_value_of_another_program_is_no_best_trial(study, url):
    with quiet():
        notebook(url).add_trial(create_trial(state=TrialState.COMPLETE, value=0.0))
        notebook(url).add_trial(create_trial(state=TrialState.PRUNED))
    assert best_complete(study).number == 1
    assert study.best_trial.number == 1
    assert finished(study) == 2
    shown = study.get_trials()
    assert [t.state.name for t in shown] == ["COMPLETE", "COMPLETE", "FAIL", "FAIL"]
    assert shown[2].user_attrs["failure"] == foreign.REASON
    # The twin: Optuna itself takes it for the best.
    assert notebook(url).best_trial.number == 2


def test_a_study_of_other_trials_only_has_no_best(url):
    with quiet():
        study = optuna.create_study(study_name="s", storage=open_storage(url))
        notebook(url).add_trial(create_trial(state=TrialState.COMPLETE, value=0.0))
    with pytest.raises(ValueError, match="No trials are completed"):
        study.best_trial  # noqa: B018


def test_room_is_for_the_searchs_own_trials(study, url):
    storage = study._storage._backend
    with quiet():
        notebook(url).add_trial(create_trial(state=TrialState.COMPLETE, value=0.0))
        notebook(url).ask()
        storage.room = 3
        mine = study.ask()
        with pytest.raises(leases.StudyFull):
            study.ask()
    assert mine.number == 4


def test_a_running_trial_of_nobody_is_failed_after_five_minutes(study, url):
    storage = study._storage._backend
    with quiet():
        notebook(url).ask()
        notebook(url).enqueue_trial({"x": 0.3}, user_attrs={"preset": "topv"})
        notebook(url).ask()
        storage.sweep(study._study_id)
        running = [t.state for t in study.get_trials(deepcopy=False)[2:]]
        assert running == [TrialState.RUNNING] * 2, "a notebook may be at it"
        engine = create_engine(url)
        with engine.begin() as connection:
            before = datetime.now() - timedelta(hours=24)
            connection.execute(
                text("UPDATE trials SET datetime_start = :t WHERE state = 'RUNNING'"),
                {"t": before},
            )
        mine = study.ask()
        storage.running = mine._trial_id
        storage.sweep(study._study_id)
    states = [t.state.name for t in study.get_trials(deepcopy=False)]
    # The second was the search's, queued: it is queued again. Its own trial goes on.
    assert states[2:] == ["FAIL", "FAIL", "RUNNING", "WAITING"]
