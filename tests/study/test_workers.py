"""Workers that share a study: leases, exact counts, lost trials, seeds, and processes that end."""

import contextlib
import inspect
import json
import os
import re
import signal
import subprocess
import sys
import time

import optuna
import pytest
from cli_runner import call, write_set
from optuna.storages import RDBStorage
from optuna.trial import TrialState
from sqlalchemy.exc import OperationalError
from test_study import Fake, search, spec, trials_of

from prunetune import interrupts
from prunetune.errors import StudyError
from prunetune.space.space import Space
from prunetune.study.database import leases
from prunetune.study.database.connect import open_storage
from prunetune.study.database.persistent import PersistentStorage
from prunetune.study.database.storage import BatchedStorage, quiet
from prunetune.study.database.urls import redact, storage_url
from prunetune.study.study import run_trials
from prunetune.study.trials import loop
from prunetune.study.trials.estimates import _Estimated
from prunetune.study.trials.stopping import MeanWilcoxonPruner
from prunetune.study.trials.trials import Objective
from prunetune.study.workers.workers import Crew

NAME = "fake/keep0.25/cosine"


OVERRIDING = (
    (BatchedStorage, optuna.storages.RDBStorage),
    (PersistentStorage, optuna.storages.RDBStorage),
    (_Estimated, optuna.Study),
)


def private(ours, base):
    """Return the private methods of ``base`` that ``ours`` overrides."""
    names = {name for name in vars(ours) if name.startswith("_") and not name.startswith("__")}
    return {name for name in names if callable(getattr(base, name, None))}


@pytest.fixture
def shared(tmp_path):
    """A study with room for three trials, and its storage."""
    storage = open_storage(storage_url(tmp_path, None))
    storage.room = 3
    with quiet():
        yield optuna.create_study(storage=storage, study_name="shared"), storage


def wait(true, seconds=120.0):
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)


# Counts and leases.


@pytest.mark.parametrize(
    ("ours", "base", "name"),
    [(ours, base, name) for ours, base in OVERRIDING for name in sorted(private(ours, base))],
)
def test_an_optuna_without_what_is_overridden_is_refused(tmp_path, monkeypatch, ours, base, name):
    for owner in base.__mro__:
        if name in vars(owner):
            monkeypatch.delattr(owner, name)
    with pytest.raises(StudyError) as refused:
        open_storage(storage_url(tmp_path, None))
    said = str(refused.value)
    assert f"optuna {optuna.__version__} has no {base.__name__}.{name}" in said
    assert "pip install 'optuna==5.0.*'" in said
    assert "\n" not in said


def test_the_twin_what_is_not_overridden_may_go(tmp_path, monkeypatch):
    assert {name for ours, base in OVERRIDING for name in private(ours, base)} == {
        "_create_new_trial",
        "_get_best_trial_id",
        "_get_prepared_new_trial",
        "_get_stale_trial_ids",
        "_get_trials",
        "_set_trial_param",
    }
    monkeypatch.delattr(optuna.Study, "_should_skip_enqueue")
    open_storage(storage_url(tmp_path, None))


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


# Lost trials and databases that go away.


def test_a_trial_taken_over_by_another_worker_is_dropped_and_the_search_goes_on(tmp_path, caplog):
    def take_over(call):
        if call == 3:
            other = optuna.load_study(study_name=NAME, storage=f"sqlite:///{tmp_path}/study.db")
            running = [t for t in other.trials if t.state is TrialState.RUNNING]
            other.tell(running[0].number, state=TrialState.FAIL)

    result = search(tmp_path, Fake(fail=take_over), trials=6)
    assert (result.trials["complete"], result.trials["failed"]) == (6, 1)
    assert "taken over by another worker" in caplog.text


def test_calls_are_made_again_while_the_database_is_away(shared, monkeypatch):
    _, storage = shared
    calls = []

    def away(times, message="server closed the connection"):
        calls.clear()

        def call():
            calls.append(1)
            if len(calls) <= times:
                raise OperationalError("select 1", {}, Exception(message))
            return "answer"

        return call

    assert storage.persist(away(3)) == "answer"
    assert len(calls) == 4
    storage.patience = 0.0
    with pytest.raises(optuna.exceptions.StorageInternalError):
        storage.persist(away(1))
    assert len(calls) == 1


# What no search calls, and heartbeats, which have a loop of their own.
_ONCE = {"delete_study", "record_heartbeat"}
_NO_CALLS = {"get_heartbeat_interval", "get_heartbeat_stale_trial_callback"}


def not_repeated(ours):
    """Return what Optuna's cache asks a storage for, and the storage asks the database once."""
    source = inspect.getsource(optuna.storages._cached_storage._CachedStorage)
    called = set(re.findall(r"self\._backend\.(\w+)\(", source)) - _ONCE - _NO_CALLS
    assert len(called) > 12
    names = {name for kind in ours for name in vars(kind)}
    return called - names


def test_every_call_is_made_again_while_the_database_is_away():
    assert not not_repeated((BatchedStorage, PersistentStorage))
    # The twin: Optuna's own would be found.
    assert "_get_best_trial_id" in not_repeated((BatchedStorage,))


def test_the_trial_pruner_outlives_a_database_restart(shared, monkeypatch):
    study, _ = shared
    study.pruner = MeanWilcoxonPruner(p_threshold=0.1, n_startup_steps=2)
    for value in (0.1, 0.9):
        trial = study.ask()
        for step in range(8):
            trial.report(value + 0.01 * step, step)
        away, asked = [1, 1], RDBStorage._get_best_trial_id

        def restarting(*args, away=away, asked=asked):
            if away:
                away.pop()
                raise OperationalError("select 1", {}, Exception("server closed the connection"))
            return asked(*args)

        monkeypatch.setattr(RDBStorage, "_get_best_trial_id", restarting)
        assert trial.should_prune() == (value > 0.5)
        assert not away
        monkeypatch.setattr(RDBStorage, "_get_best_trial_id", asked)
        study.tell(trial, value)


def test_braces_in_a_database_are_no_format(tmp_path):
    url = f"sqlite:///{tmp_path}/a{{b}}.db"
    open_storage(url)
    assert (tmp_path / "a{b}.db").exists()
    # The twin: what cannot be reached is said in one line, with no part of the password.
    with pytest.raises(StudyError) as refused:
        open_storage("postgresql+psycopg://me:p{word}@localhost:1/db")
    assert "word" not in str(refused.value)
    assert "***" in str(refused.value)


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


# Seeds.


def test_each_worker_draws_its_own_points_and_one_worker_the_same(tmp_path):
    def draw(name, worker):
        run_trials(spec(trials=8, presets=()), Fake(), out=tmp_path / name, worker=worker)
        return [t.params for t in trials_of(tmp_path / name)]

    first = draw("a", 0)
    assert draw("b", 0) == first
    assert draw("c", 1) != first


def test_workers_that_join_a_database_draw_fresh_points(tmp_path):
    url = f"sqlite:///{tmp_path}/shared.db"
    for total in (3, 6, 9):
        run_trials(spec(trials=total, presets=()), Fake(), out=tmp_path, storage=url)
    trials = optuna.load_study(study_name=NAME, storage=url).trials
    assert len({json.dumps(t.params, sort_keys=True) for t in trials}) == 9


def test_a_config_that_another_worker_measured_is_answered_from_memory(tmp_path):
    evaluator = Fake()
    storage = open_storage(storage_url(tmp_path, None))
    with quiet():
        search(tmp_path, trials=9, presets=())
        study = optuna.load_study(study_name=NAME, storage=storage)
        space = Space(spec().space, 0.25, evaluator.facts())
        objective = Objective(space, evaluator, "cosine", study)
        study.enqueue_trial(study.trials[8].params)
        trial = study.ask()
        study.tell(trial, objective(trial))
    assert study.trials[9].user_attrs["repeats"] == 8
    assert evaluator.configs == []


# Processes.


def order(tmp_path, **fields):
    spec = {"model": "tiny", "trials": 4, "data": "tiny", "samples": 8, **fields}
    return {
        "spec": spec,
        "prepare": {"out": str(tmp_path), "storage": None, "study_name": None},
        "batch_size": 8,
        "cache": {},
    }


def test_a_worker_that_cannot_start_is_one_line_and_no_more(tmp_path, caplog):
    with Crew(1, order(tmp_path, keep=7), 1) as crew:
        crew.processes[0].process.wait(120)
        crew.processes[0]._listener.join(120)
    lines = [r.getMessage() for r in caplog.records if "worker 1 ended early" in r.getMessage()]
    assert len(lines) == 1
    assert "keep" in lines[0]
    assert "\n" not in lines[0]


def test_a_crew_ends_with_whoever_started_it(tmp_path):
    with pytest.raises(KeyboardInterrupt), Crew(2, order(tmp_path), 1) as crew:
        raise KeyboardInterrupt
    assert all(p.process.poll() is not None for p in crew.processes)


def swallowed(at):
    """Return what raises SIGINT at a call, where its exception goes nowhere."""

    def fail(call):
        if call == at:
            with contextlib.suppress(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)

    return fail


# In a trial, in the last one, in the winner's proof.
@pytest.mark.parametrize("at", [2, 6, 7])
def test_an_interrupt_whose_exception_is_swallowed_ends_the_search_all_the_same(tmp_path, at):
    with pytest.raises(KeyboardInterrupt), interrupts.heeded(signal.SIGINT):
        search(tmp_path, Fake(fail=swallowed(at)), trials=6)
    states = [t.state for t in trials_of(tmp_path)]
    assert TrialState.RUNNING not in states
    assert states.count(TrialState.COMPLETE) == min(at - 1, 6)
    interrupts.check()  # The mark is gone with the block:
    assert search(tmp_path, trials=6).trials["complete"] == 6


def test_an_interrupt_is_heeded_in_the_held_out_table(tmp_path):
    with pytest.raises(KeyboardInterrupt), interrupts.heeded(signal.SIGINT):
        search(tmp_path, held_out=Fake(fail=swallowed(3)), trials=2)


def test_an_interrupt_that_became_another_exception_is_an_interrupt():
    @interrupts.heeded(signal.SIGINT)
    def convert():
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt as error:
            raise RuntimeError("made of it by somebody") from error

    with pytest.raises(KeyboardInterrupt):
        convert()


def test_an_interrupt_that_disappears_in_a_finaliser_prints_no_traceback(monkeypatch):
    told = []
    monkeypatch.setattr(sys, "unraisablehook", lambda lost: told.append(lost.exc_type))

    class Dying:
        def __init__(self, last):
            self.last = last

        def __del__(self):
            self.last()

    with pytest.raises(KeyboardInterrupt), interrupts.heeded(signal.SIGINT):
        Dying(lambda: signal.raise_signal(signal.SIGINT))
    assert told == []
    # The twins: what else is lost is told, and so is an interrupt that nobody heeds.
    with interrupts.heeded(signal.SIGINT):
        Dying(lambda: 1 / 0)
    Dying(lambda: signal.raise_signal(signal.SIGINT))
    assert told == [ZeroDivisionError, KeyboardInterrupt]


def test_the_twin_without_a_mark_the_search_goes_on_to_its_end(tmp_path):
    result = search(tmp_path, Fake(fail=swallowed(2)), trials=6)
    assert result.trials["complete"] == 6


def test_handlers_are_left_as_they_were(monkeypatch):
    before = signal.getsignal(signal.SIGINT)
    with interrupts.heeded(signal.SIGINT):
        ours = signal.getsignal(signal.SIGINT)
        with interrupts.heeded(signal.SIGINT):  # its own, so it stays
            assert signal.getsignal(signal.SIGINT) is ours
    assert signal.getsignal(signal.SIGINT) is before is not ours
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with interrupts.heeded(signal.SIGINT):
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
        with interrupts.heeded(signal.SIGINT, ignored_too=True):
            assert signal.getsignal(signal.SIGINT) is ours
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_stopped_search_leaves_no_orphan_and_can_be_resumed(tmp_path, number):
    data, tmp_path = write_set(tmp_path / "data"), tmp_path / "run"
    argv = ["search", "--model", "tiny", "--data", str(data), "--out", str(tmp_path)]
    argv += ["--workers", "2", "--threads", "1"]
    process = subprocess.Popen(
        [sys.executable, "-m", "prunetune", *argv, "--trials", "100000"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    folder = f"/proc/{process.pid}/task/{process.pid}/children"
    wait((tmp_path / "log.jsonl").exists, 120)
    children = [int(pid) for pid in open(folder).read().split()]  # noqa: SIM115
    assert len(children) == 1
    process.send_signal(number)
    _, said = process.communicate(timeout=90)
    assert process.returncode == (-9 if number == signal.SIGKILL else 130)
    assert "Traceback" not in said
    wait(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in children), 60)
    before = sum(t.state in loop.FINISHED for t in trials_of(tmp_path))
    total = before + 2
    ran = call(*argv, "--trials", total, "--json")
    assert ran.status == 0, ran.err
    counts = ran.json["trials"]
    assert counts["complete"] + counts["pruned"] == total


# Passwords.


def test_passwords_are_nowhere(tmp_path):
    for url in ("postgresql://me:p@ss/w:rd@host/db", "postgresql://me:secret@host:5432/db"):
        assert redact(f"cannot reach {url} now") == (
            f"cannot reach postgresql://me:***@{url.rpartition('@')[2]} now"
        )
    url = "postgresql://me:hidden@127.0.0.1:1/db"
    argv = ("search", "--model", "tiny", "--out", tmp_path, "--storage", url, "--debug")
    ran = call(*argv)
    assert ran.status == 2
    assert "hidden" not in ran.err + ran.out
    with pytest.raises(StudyError) as error:
        run_trials(spec(), Fake(), out=tmp_path, storage=url)
    assert "hidden" not in str(error.value)
