"""Databases that stall, vanish or are somebody else's, and commands that start in one second."""

import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import closing
from pathlib import Path

import optuna
import pytest
from cluster import FINISHED, Postgres, Team, binaries, check
from fakes import Fake, spec
from optuna.trial import TrialState

from prunetune.errors import StudyError
from prunetune.study.database import connect, postgres
from prunetune.study.database.connect import open_storage
from prunetune.study.database.urls import storage_url
from prunetune.study.find import find_study
from prunetune.study.study import run_trials

pytestmark = pytest.mark.chaos

NAME = "fake/keep0.25/cosine"
needs_postgres = pytest.mark.skipif(
    binaries() is None, reason="PostgreSQL's initdb and pg_ctl are not here (pg_config --bindir)"
)


def together(url, out, rounds):
    """Start four workers at once in a fresh folder, again and again; nobody is refused."""
    for k in range(rounds):
        folder = out / str(k)
        folder.mkdir()
        team = Team(4, url and f"{url}{k}", folder, trials=16, remote=False, seconds=0.0)
        try:
            deadline = time.monotonic() + 120
            while any(process.exitcode is None for process in team.processes):
                assert time.monotonic() < deadline, "workers are left hanging"
                time.sleep(0.02)
            said = "".join(log.read_text() for log in folder.glob("worker-*.log"))
            assert [process.exitcode for process in team.processes] == [0] * 4, said
        finally:
            team.end()
        opened = open_storage(storage_url(folder, url and f"{url}{k}"))
        check(optuna.load_study(study_name=NAME, storage=opened).get_trials(), 16)


@pytest.mark.slow
def test_commands_that_start_together_on_sqlite(tmp_path):
    together(None, tmp_path, int(os.environ.get("PRUNETUNE_ROUNDS", "1")))


@pytest.mark.slow
@needs_postgres
def test_commands_that_start_together_on_postgresql(tmp_path):
    rounds = int(os.environ.get("PRUNETUNE_ROUNDS", "1"))
    with Postgres() as server:
        for k in range(rounds):
            server.create(f"d{k}")
        together(server.url.removesuffix("postgres") + "d", tmp_path, rounds)


@pytest.fixture
def hurried(monkeypatch):
    monkeypatch.setattr(postgres, "CONNECT_SECONDS", 2)
    monkeypatch.setattr(postgres, "ANSWER_SECONDS", 1.0)
    monkeypatch.setattr(connect, "PATIENCE_SECONDS", 1.5)


class Stopping(Fake):
    """Stops a database at a sample."""

    def __init__(self, stop):
        super().__init__(count=24)
        self._stop, self.stopped = stop, None

    def evaluate(self, config, *, answers=True):
        for batch in super().evaluate(config, answers=answers):
            if self.stopped is None:
                self._stop()
                self.stopped = time.monotonic()
            yield batch


@needs_postgres
def test_a_database_that_answers_nothing_ends_a_search_in_words(tmp_path, hurried):
    with Postgres() as server:
        model = Stopping(server.freeze)
        try:
            with pytest.raises(StudyError, match=r"failed: .*; finished trials are kept") as told:
                run_trials(spec(trials=16), model, out=tmp_path, storage=server.url)
            assert time.monotonic() - model.stopped < 30
            assert "se@cret" not in str(told.value)
            assert "se%40cret" not in str(told.value)
            with pytest.raises(StudyError, match="cannot use the study database"):
                find_study(server.url)
        finally:
            server.freeze(signal.SIGCONT)
        # What was interrupted goes on, with the exact count.
        study = run_trials(spec(trials=16), Fake(), out=tmp_path, storage=server.url)
        check(study.get_trials(), 16)


@needs_postgres
def test_a_database_that_stalls_for_a_while_is_waited_for(tmp_path, hurried, monkeypatch):
    monkeypatch.setattr(connect, "PATIENCE_SECONDS", 60.0)
    with Postgres() as server:

        def stall():
            server.freeze()
            threading.Timer(2.5, server.freeze, [signal.SIGCONT]).start()

        study = run_trials(spec(trials=16), Stopping(stall), out=tmp_path, storage=server.url)
        check(study.get_trials(), 16)


@pytest.mark.slow
@needs_postgres
def test_every_worker_of_a_database_that_stalls_ends_in_words(tmp_path):
    """PRUNETUNE_STALL=240 stalls it for four minutes, against the limits that users meet."""
    stall = float(os.environ.get("PRUNETUNE_STALL", "8"))
    hurried = stall < 60
    promised = 30 if hurried else 160
    with Postgres() as server:
        team = Team(4, server.url, tmp_path, trials=4000, remote=False, hurried=hurried)
        try:
            while not list(tmp_path.glob("worker-*.log")) or _finished(server) < 8:
                time.sleep(0.1)
            begun = time.monotonic()
            server.freeze()
            ended = {}
            while time.monotonic() < begun + max(stall, promised) and len(ended) < 4:
                for process in team.processes:
                    if process.exitcode is not None:
                        ended.setdefault(process.pid, time.monotonic() - begun)
                time.sleep(0.05)
            rest = begun + stall - time.monotonic()
            time.sleep(max(0.0, rest))
            server.freeze(signal.SIGCONT)
            print("workers ended after", sorted(round(s, 1) for s in ended.values()), "s")
            assert len(ended) == 4
            assert max(ended.values()) < promised
            for process in team.processes:
                said = (tmp_path / f"worker-{process.pid}.log").read_text()
                assert process.exitcode == 1
                assert "finished trials are kept" in said
                assert "se%40cret" not in said
        finally:
            server.freeze(signal.SIGCONT)
            team.end()
        done = _finished(server)
        # What was interrupted goes on, with the exact count.
        study = run_trials(
            spec(trials=done + 8, trial_pruner="wilcoxon", seed=3), Fake(count=24), out=tmp_path,
            storage=server.url,
        )  # fmt: skip
        check(study.get_trials(), done + 8)


def _finished(server):
    try:
        return sum(t.state in FINISHED for t in find_study(server.url).study.trials)
    except StudyError:
        return 0


@needs_postgres
def test_sigterm_is_heeded_while_a_database_answers_nothing(tmp_path):
    code = (
        "import sys; sys.path[:0] = sys.argv[1:3]; from test_stalls import *; "
        "from prunetune.interrupts import heeded\n"
        # What is asked when all is over waits as long as this.
        "postgres.CONNECT_SECONDS, postgres.ANSWER_SECONDS = 2, 4.0\n"
        "def stop(): print('asks', flush=True); sys.stdin.readline()\n"
        "with heeded(signal.SIGTERM):\n"
        "    run_trials(spec(trials=16), Stopping(stop), out=Path(sys.argv[3]),"
        " storage=sys.argv[4])"
    )
    here = Path(__file__).parent
    with Postgres() as server:
        words = [str(here), str(here.parent), str(tmp_path), server.url]
        process = subprocess.Popen(
            [sys.executable, "-c", code, *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            assert process.stdout.readline() == "asks\n"
            server.freeze()
            process.stdin.write("\n")
            process.stdin.flush()
            time.sleep(1.0)
            begun = time.monotonic()
            process.send_signal(signal.SIGTERM)
            _, said = process.communicate(timeout=60)
            assert time.monotonic() - begun < 30
            assert process.returncode, said
            assert "KeyboardInterrupt" in said
        finally:
            process.kill()
            server.freeze(signal.SIGCONT)


def test_other_specs_at_once_in_one_folder(tmp_path):
    """The second one comes when the first has begun: it looked at the folder before that."""
    refused = []

    class Second(Fake):
        def evaluate(self, config, *, answers=True):
            if not refused:
                with pytest.raises(StudyError, match=r"holds a study with another spec: seed"):
                    run_trials(spec(trials=16, seed=9), Fake(), out=tmp_path)
                refused.append(True)
                run_trials(spec(trials=16, seed=9), Fake(), out=tmp_path / "other")
            yield from super().evaluate(config, answers=answers)

    study = run_trials(spec(trials=16, seed=1), Second(), out=tmp_path)
    assert refused
    assert [s.study_name for s in optuna.get_all_study_summaries(study._storage)] == [NAME]
    check(study.get_trials(), 16)


@pytest.mark.parametrize("replaced", [False, True])
def test_a_database_that_is_deleted_ends_a_search_in_words(tmp_path, replaced):
    class Deletes(Fake):
        def evaluate(self, config, *, answers=True):
            for path in tmp_path.glob("study.db*"):
                path.unlink()
            if replaced:
                (tmp_path / "study.db").touch()
            yield from super().evaluate(config, answers=answers)

    with pytest.raises(StudyError, match=r"study\.db was deleted or replaced"):
        run_trials(spec(trials=3), Deletes(), out=tmp_path)
    # The twin: nothing is said of one that stays.
    run_trials(spec(trials=3), Fake(), out=tmp_path / "kept")


def test_reading_leaves_other_databases_as_they_are(tmp_path):
    photos, empty, optunas = (tmp_path / name for name in ("photos.db", "empty.db", "optuna.db"))
    with closing(sqlite3.connect(photos)) as connection, connection:
        connection.execute("create table photos (name text)")
    empty.touch()
    optuna.create_study(storage=f"sqlite:///{optunas}", study_name="a")
    for file, why in (
        (photos, "is another program's database"),
        (empty, "holds no study yet"),
        (optunas, "was not made by prunetune"),
    ):
        before = file.read_bytes()
        for url in (f"sqlite:///{file}", f"sqlite+pysqlite:///{file}"):
            with pytest.raises(StudyError, match=why):
                find_study(url)
        assert file.read_bytes() == before
        assert not list(tmp_path.glob(f"{file.name}-*"))


@needs_postgres
def test_reading_leaves_another_servers_database_as_it_is(tmp_path):
    with Postgres() as server:
        with pytest.raises(StudyError, match="holds no study yet"):
            find_study(server.url)
        # The twin: a search makes tables there, and then it is read.
        run_trials(spec(trials=1), Fake(), out=tmp_path, storage=server.url)
        found = find_study(server.url).study
        assert [t.state for t in found.trials if t.state in FINISHED] == [TrialState.COMPLETE]
