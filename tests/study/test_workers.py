"""Workers that share a study: seeds, answers of others, and processes that end."""

import contextlib
import json
import os
import signal
import subprocess
import sys

import optuna
import pytest
from cli_runner import call, write_set
from fakes import SUMS, Fake, search, spec, trials_of, wait

from prunetune.errors import StudyError
from prunetune.secrets import redact
from prunetune.space.space import Space
from prunetune.spec import SpaceSpec
from prunetune.study import opening
from prunetune.study.database import leases
from prunetune.study.database.connect import open_storage
from prunetune.study.database.storage import quiet
from prunetune.study.database.urls import storage_url
from prunetune.study.study import run_trials
from prunetune.study.trials import loop
from prunetune.study.trials.trials import Objective
from prunetune.study.workers.workers import Crew

SPACE = SpaceSpec(**SUMS)

NAME = "fake/keep0.25/cosine"


# Seeds.


def test_each_worker_draws_its_own_points_and_one_worker_the_same(tmp_path):
    def draw(name, worker):
        run_trials(spec(trials=12, presets=()), Fake(), out=tmp_path / name, worker=worker)
        return [t.params for t in trials_of(tmp_path / name)]

    first = draw("a", 0)
    assert draw("b", 0) == first
    assert draw("c", 1) != first


QUEUED = 10
"""More trials than a study on the fake begins with."""


def drawn(folder):
    points = [t for t in trials_of(folder) if not {"preset", "start"} & t.user_attrs.keys()]
    return [json.dumps(t.params, sort_keys=True) for t in points if t.state.is_finished()]


def run(folder, total, **how):
    asked = spec(trials=total, presets=(), sampler="random", space=SPACE)
    run_trials(asked, Fake(count=8), out=folder, **how)


@contextlib.contextmanager
def elsewhere(monkeypatch, name="another:1:1"):
    with monkeypatch.context() as patch:
        for room in (opening, leases):
            patch.setattr(room, "identity", lambda: name)
        yield


@pytest.mark.parametrize("worker", [0, 1])
def test_commands_that_start_together_draw_their_own_points(tmp_path, monkeypatch, worker):
    """The second comes in before the first has begun a trial: nothing runs that it could see."""

    @contextlib.contextmanager
    def second(folder, number):
        with elsewhere(monkeypatch):
            run(folder, QUEUED, worker=number)
        yield

    run(tmp_path / "alone", QUEUED)
    alone = drawn(tmp_path / "alone")
    assert len(alone) >= 4
    found = []
    for name in ("a", "b"):
        run(tmp_path / name, QUEUED + len(alone), others=second(tmp_path / name, worker))
        found.append(drawn(tmp_path / name))
        # The first has the seed of a worker on its own all the same.
        assert found[-1][len(alone) :] == alone
        assert not set(found[-1][: len(alone)]) & set(alone)
    assert found[0] == found[1]


def test_a_command_that_has_ended_holds_no_seed(tmp_path, monkeypatch):
    run(tmp_path / "once", QUEUED)
    run(tmp_path / "resumed", 2)
    with elsewhere(monkeypatch):
        run(tmp_path / "resumed", QUEUED)
    assert drawn(tmp_path / "resumed") == drawn(tmp_path / "once")
    # The twin: of one that was killed nobody elsewhere can tell.
    with monkeypatch.context() as patch:
        patch.setattr(opening.Seat, "leave", lambda *_: None)
        run(tmp_path / "killed", 2)
    with elsewhere(monkeypatch):
        run(tmp_path / "killed", QUEUED)
    assert not set(drawn(tmp_path / "killed")) & set(drawn(tmp_path / "once"))


def test_workers_that_join_a_database_draw_fresh_points(tmp_path):
    url = f"sqlite:///{tmp_path}/shared.db"
    for total in (3, 6, 9):
        run_trials(spec(trials=total, presets=(), space=SPACE), Fake(), out=tmp_path, storage=url)
    trials = optuna.load_study(study_name=NAME, storage=url).trials
    assert len({json.dumps(t.params, sort_keys=True) for t in trials}) == 9


def test_a_config_that_another_worker_measured_is_answered_from_memory(tmp_path):
    evaluator = Fake()
    storage = open_storage(storage_url(tmp_path, None))
    with quiet():
        search(tmp_path, trials=9, presets=(), space=SPACE)
        study = optuna.load_study(study_name=NAME, storage=storage)
        space = Space(SPACE, 0.25, evaluator.facts())
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


@pytest.mark.chaos
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_stopped_search_leaves_no_orphan_and_can_be_resumed(tmp_path, number):
    data, tmp_path = write_set(tmp_path / "data"), tmp_path / "run"
    argv = ["search", "--model", "tiny", "--data", str(data), "--out", str(tmp_path)]
    argv += ["--threads", "1"]
    process = subprocess.Popen(
        [sys.executable, "-m", "prunetune", *argv, "--workers", "2", "--trials", "100000"],
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
