"""Databases that go away for a while, and Optunas that are not the one this was written for."""

import inspect
import re

import optuna
import pytest
from optuna.storages import RDBStorage
from sqlalchemy.exc import OperationalError

from prunetune.errors import StudyError
from prunetune.study.database.connect import open_storage
from prunetune.study.database.persistent import PersistentStorage
from prunetune.study.database.storage import BatchedStorage
from prunetune.study.database.urls import storage_url
from prunetune.study.trials.estimates import _Estimated
from prunetune.study.trials.stopping import MeanWilcoxonPruner

# What no search calls, and heartbeats, which have a loop of their own.
_ONCE = {"delete_study", "record_heartbeat"}


_NO_CALLS = {"get_heartbeat_interval", "get_heartbeat_stale_trial_callback"}


OVERRIDING = (
    (BatchedStorage, optuna.storages.RDBStorage),
    (PersistentStorage, optuna.storages.RDBStorage),
    (_Estimated, optuna.Study),
)


def private(ours, base):
    """Return the private methods of ``base`` that ``ours`` overrides."""
    names = {name for name in vars(ours) if name.startswith("_") and not name.startswith("__")}
    return {name for name in names if callable(getattr(base, name, None))}


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
    assert "get_all_studies" in not_repeated((BatchedStorage,))


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
