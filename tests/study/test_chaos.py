"""Workers are killed, the database restarts: no trial too many, too few, or measured twice."""

import os
import time

import optuna
import pytest
import sqlalchemy
from cluster import FINISHED, Postgres, Team, binaries, check

from prunetune.study.database.connect import open_storage
from prunetune.study.database.urls import storage_url

pytestmark = [pytest.mark.slow, pytest.mark.chaos, pytest.mark.timeout(600)]

NAME = "fake/keep0.25/cosine"
# PRUNETUNE_KILLS asks for more: a kill at every place takes hundreds.
_KILLS, _BETWEEN = int(os.environ.get("PRUNETUNE_KILLS", "2")), 8
_TRIALS = 24 * _KILLS
needs_postgres = pytest.mark.skipif(
    binaries() is None, reason="PostgreSQL's initdb and pg_ctl are not here (pg_config --bindir)"
)


def drive(team, study, trials, *, restart=None, patience=120.0):
    """Kill a worker after every few trials until enough are finished; then wait for the end.

    Trials, not seconds: on a busy machine a worker would be killed before it has come to work, for
    ever, and on a fast one none. Whoever makes no progress for ``patience`` seconds hangs.
    """
    progressed, done, at_kill = time.monotonic(), 0, 0
    while not team.ended:
        assert time.monotonic() - progressed < patience, "workers are left hanging"
        time.sleep(0.1)
        before, done = done, count(study)
        if done > before:
            progressed = time.monotonic()
        team.replace_crashed()
        if at_kill + _BETWEEN <= done < trials:
            team.kill_one()
            at_kill = done
        if restart is not None and done > trials // 3:
            restart()
            restart, progressed = None, time.monotonic()
    assert restart is None, "the database was not restarted"


def count(study):
    return len(study().get_trials(deepcopy=False, states=FINISHED))


def loader(url):
    """Return what loads the study, once it exists."""
    opened = open_storage(url)
    empty = optuna.create_study()
    found = []

    def load():
        if not found and NAME in optuna.get_all_study_names(opened):
            found.append(optuna.load_study(study_name=NAME, storage=opened))
        return found[0] if found else empty

    return load


@needs_postgres
def test_times_are_kept_in_utc_whatever_zone_a_session_has(tmp_path, monkeypatch):
    monkeypatch.setenv("PGTZ", "Asia/Tokyo")
    with Postgres() as postgres:
        url = storage_url(tmp_path, postgres.url)
        ours = zone_of(open_storage(url).engine)
        # The twin: a plain connection has the session's own.
        assert (ours, zone_of(sqlalchemy.create_engine(url))) == ("UTC", "Asia/Tokyo")


def zone_of(engine):
    with engine.connect() as connection:
        return connection.execute(sqlalchemy.text("SHOW TIME ZONE")).scalar()


@needs_postgres
def test_eight_workers_on_postgresql_killed_and_the_database_restarted(tmp_path):
    with Postgres() as postgres:
        study = loader(storage_url(tmp_path, postgres.url))
        team = Team(8, postgres.url, tmp_path, trials=_TRIALS, remote=True)
        try:
            drive(team, study, _TRIALS, restart=lambda: postgres.restart(2.0))
            states = check(study().get_trials(), _TRIALS)
        finally:
            team.end()
        assert team.killed >= _KILLS, "too few were killed to prove anything"
        assert not team.crashed, "a worker did not outlive the database's restart"
        print(f"\n{team.killed} killed, {team.refused} refused, {dict(states)}")


def test_two_workers_on_sqlite_killed(tmp_path):
    study = loader(storage_url(tmp_path, None))
    team = Team(2, None, tmp_path, trials=_TRIALS, remote=False)
    try:
        drive(team, study, _TRIALS)
        states = check(study().get_trials(), _TRIALS)
    finally:
        team.end()
    assert team.killed >= _KILLS, "too few were killed to prove anything"
    assert (team.refused, team.crashed) == (0, 0)
    print(f"\n{team.killed} killed, {team.refused} refused, {dict(states)}")
