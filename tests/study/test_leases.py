"""Exact counts, owners and heartbeats; trials of workers that have died."""

import subprocess
import sys
import time

import optuna
import pytest
from fakes import Fake, search, wait
from optuna.trial import TrialState

from prunetune.study.database import leases
from prunetune.study.database.storage import BatchedStorage
from prunetune.study.trials import loop

NAME = "fake/keep0.25/cosine"


def test_no_trial_starts_when_enough_run_or_have_finished(shared):
    study, _ = shared
    study.enqueue_trial({"x": 0.5})
    first, _, third = study.ask(), study.ask(), study.ask()
    study.tell(third, 1.0)
    study.enqueue_trial({"x": 0.7})
    for _ in range(2):  # neither the waiting one nor a new one
        with pytest.raises(leases.StudyFull):
            study.ask()
    assert [t.state.name for t in study.trials] == ["RUNNING", "RUNNING", "COMPLETE", "WAITING"]
    study.tell(first, state=TrialState.FAIL)
    assert study.ask().number == 3


def test_a_trial_has_an_owner_and_a_heartbeat_from_its_first_moment(shared):
    study, storage = shared
    trial = study.ask()
    with storage.engine.connect() as connection:
        assert leases.owners(connection, 1) == {trial._trial_id: leases.identity()}
        beats = connection.exec_driver_sql("select count(*) from trial_heartbeats").scalar()
    assert beats == 1


@pytest.mark.skipif(not hasattr(time, "tzset"), reason="the zone cannot be changed here")
@pytest.mark.parametrize("zone", ["Asia/Tokyo", "America/New_York"])
def test_a_queued_trial_starts_when_it_starts_wherever_the_machine_is(shared, monkeypatch, zone):
    study, _ = shared
    monkeypatch.setenv("TZ", zone)
    time.tzset()
    try:
        study.enqueue_trial({"x": 0.5})
        queued, drawn = study.ask(), study.ask()
        for trial in (queued, drawn):
            study.tell(trial, 1.0)
        spent = [trial.duration.total_seconds() for trial in study.trials]
    finally:
        monkeypatch.undo()
        time.tzset()
    assert all(0 <= seconds < 600 for seconds in spent), spent


def test_a_trial_of_a_dead_process_is_run_again_from_its_first_sample(shared):
    study, storage = shared
    trial = study.ask()
    x = trial.suggest_float("x", 0, 1)
    trial.report(0.5, 3)
    trial.set_user_attr("preset", "topv")
    storage.running = trial._trial_id
    storage.sweep(study._study_id)  # it runs here: nothing happens
    assert [t.state.name for t in study.trials] == ["RUNNING"]
    storage.running = None  # now it is one that this process has forgotten
    storage.sweep(study._study_id)
    assert [t.state.name for t in study.trials] == ["FAIL", "WAITING"]
    again = study.ask()
    assert again.suggest_float("x", 0, 1) == x
    # Reports of another run would be looked at as if this one had got so far.
    assert study.trials[1].intermediate_values == {}
    assert study.trials[1].user_attrs["preset"] == "topv"
    again.report(0.6, 3)
    again.report(0.7, 4)
    study.tell(again, 0.1)
    assert study.trials[1].intermediate_values == {3: 0.6, 4: 0.7}
    # The twin writes over what is there already.
    other = study.ask()
    for value in (0.1, 0.2):
        storage.set_trial_intermediate_value(other._trial_id, 0, value)
        storage.get_trial(other._trial_id)
    assert study.trials[2].intermediate_values == {0: 0.2}


def forgotten(study, storage):
    """Begin a trial that runs nowhere, though nobody has failed it."""
    study.ask()
    storage.running = None


@pytest.mark.parametrize(("died", "runs"), [(True, 3), (False, 6)])
def test_a_trial_that_takes_its_workers_down_is_given_up_an_interrupted_one_never(
    shared, monkeypatch, caplog, died, runs
):
    study, storage = shared
    study.enqueue_trial({"x": 0.25}, user_attrs={"preset": "topv"})
    for _ in range(6):
        if not study.get_trials(states=(TrialState.WAITING,)):
            break
        forgotten(study, storage)
        with monkeypatch.context() as patch:
            if died:
                patch.setattr(leases, "identity", lambda: "somebody:1:1")
                patch.setattr(leases, "is_dead", lambda owner: True)
            storage.sweep(study._study_id)
    begun = [t for t in study.trials if t.state is TrialState.FAIL]
    assert len(begun) == runs
    assert ("is not run again" in caplog.text) == died
    assert bool(study.get_trials(states=(TrialState.WAITING,))) != died
    for again in study.trials[1:]:
        assert again.user_attrs["preset"] == "topv"
        assert again.system_attrs["failed_trial"] == 0
        assert again.system_attrs["fixed_params"] == {"x": 0.25}


def test_failing_a_trial_and_queueing_it_again_are_one_step(shared, monkeypatch):
    study, storage = shared
    forgotten(study, storage)

    def interrupted(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(BatchedStorage, "_get_prepared_new_trial", interrupted)
        with pytest.raises(KeyboardInterrupt):
            storage.sweep(study._study_id)
    assert [t.state.name for t in study.trials] == ["RUNNING"]
    # Two workers that find it at the same time queue one copy.
    found = study.trials[0]
    for _ in range(2):
        storage._queue_again(study._study_id, found)
    assert [t.state.name for t in study.trials] == ["FAIL", "WAITING"]


def test_who_is_dead():
    assert not leases.is_dead(leases.identity())
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    home, _, _ = leases.identity().partition(":")
    owner = f"{home}:{child.pid}:{leases._started(child.pid)}"
    assert not leases.is_dead(owner)
    assert leases.is_dead(f"{home}:{child.pid}:0")  # the number went to another process
    child.kill()
    wait(lambda: leases.is_dead(owner))  # a zombie is dead
    child.wait()
    assert leases.is_dead(owner)
    assert not leases.is_dead(owner.replace(home, "elsewhere"))
    assert not leases.is_dead("nonsense")


def test_a_trial_taken_over_by_another_worker_is_dropped_and_the_search_goes_on(tmp_path, caplog):
    def take_over(call):
        if call == 3:
            other = optuna.load_study(study_name=NAME, storage=f"sqlite:///{tmp_path}/study.db")
            running = [t for t in other.trials if t.state is TrialState.RUNNING]
            other.tell(running[0].number, state=TrialState.FAIL)

    result = search(tmp_path, Fake(fail=take_over), trials=6)
    assert (result.trials["complete"], result.trials["failed"]) == (6, 1)
    assert "taken over by another worker" in caplog.text


def test_a_heartbeat_outlives_an_error(shared, monkeypatch):
    study, storage = shared
    storage.heartbeat_interval = 0.02
    storage.running = study.ask()._trial_id
    beats = []

    def record(trial):
        beats.append(trial)
        if len(beats) < 3:
            raise RuntimeError("the database is away")

    monkeypatch.setattr(storage, "record_heartbeat", record)
    with loop.Heartbeat(storage):
        wait(lambda: len(beats) >= 5)
