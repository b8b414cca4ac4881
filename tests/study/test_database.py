"""Databases, their URLs and their passwords; what is written when."""

import sqlite3
from contextlib import closing

import optuna
import pytest
from fakes import Fake, search, spec, trials_of

from prunetune.errors import ConfigError, StudyError
from prunetune.secrets import redact
from prunetune.spec import SpaceSpec
from prunetune.study.database.connect import _unusable as unusable_text
from prunetune.study.database.connect import open_storage
from prunetune.study.database.urls import storage_url
from prunetune.study.find import find_study
from prunetune.study.study import run_trials


def test_reports_are_written_many_at_a_time_and_never_lost(tmp_path, monkeypatch):
    storage = open_storage(storage_url(tmp_path, None))
    study = optuna.create_study(storage=storage)
    trial = study.ask()

    def stored():
        with sqlite3.connect(tmp_path / "study.db") as connection:
            return connection.execute("select count(*) from trial_intermediate_values").fetchone()[
                0
            ]

    for step in range(10):
        trial.report(step / 7, step)
    assert stored() == 0
    monkeypatch.setattr("prunetune.study.database.storage._REPORT_SECONDS", -1)
    trial.report(0.5, 10)
    assert stored() == 11
    monkeypatch.undo()
    trial.report(0.1, 11)
    study.tell(trial, 0.3)
    expected = {step: step / 7 for step in range(10)} | {10: 0.5, 11: 0.1}
    assert trials_of(tmp_path)[0].intermediate_values == expected


def test_unusable_databases_and_folders(tmp_path):
    bad = tmp_path / "bad"
    bad.mkdir()
    (bad / "study.db").write_bytes(b"not a database at all" * 100)
    file = tmp_path / "file"
    file.write_text("")
    other = tmp_path / "other"
    other.mkdir()
    with sqlite3.connect(other / "study.db") as connection:
        connection.execute("create table studies (name text)")
    for out in (bad, file / "deep", other):
        with pytest.raises(StudyError) as error:
            search(out)
        assert "\n" not in str(error.value)
        assert len(str(error.value)) < 500
    with pytest.raises(ConfigError, match=r"0\.0719"):
        search(tmp_path / "low", keep=0.05, space=SpaceSpec(scorers=("topv",)))
    assert not (tmp_path / "low").exists()


def test_a_database_of_another_program_is_left_as_it_is(tmp_path):
    file = tmp_path / "photos.db"
    with closing(sqlite3.connect(file)) as connection, connection:
        connection.execute("create table photos (name text)")
    namesake = tmp_path / "students.db"
    with closing(sqlite3.connect(namesake)) as connection, connection:
        connection.execute("create table studies (student text)")
    for path in (file, namesake):
        before = path.read_bytes()
        for target in (str(path), f"sqlite:///{path}"):
            with pytest.raises(StudyError, match="another program's database"):
                find_study(target)
        assert path.read_bytes() == before
    with pytest.raises(StudyError, match=r"another program's database: .* 'studies' of its own"):
        open_storage(f"sqlite:///{namesake}")
    assert namesake.read_bytes() == before
    # The twin: an empty file is what a killed search leaves, and a study is found.
    (tmp_path / "study.db").touch()
    with pytest.raises(StudyError, match="holds no study yet"):
        find_study(str(tmp_path))


@pytest.mark.parametrize("name", ["a?b", "c%20d", "e#f", "g & h", "ü"])
def test_a_run_lies_in_its_folder_whatever_that_is_called(tmp_path, name):
    out = tmp_path / name
    run_trials(spec(trials=1), Fake(), out=out)
    assert (out / "study.db").is_file()
    assert len(find_study(str(out)).study.trials) >= 1
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_storage_urls_and_their_passwords(tmp_path):
    assert storage_url(tmp_path, None) == f"sqlite:///{tmp_path}/study.db"
    url = storage_url(tmp_path, "postgresql://me:se:cret@host/db?password=hidden")
    assert url.startswith("postgresql+psycopg://")
    assert redact(url) == "postgresql+psycopg://me:***@host/db?password=***"
    assert redact(f"cannot reach {url}!").count("***") == 2
    assert redact("sqlite:////tmp/study.db") == "sqlite:////tmp/study.db"
    for bad, why in (
        ("no url", "allowed: sqlite:///FILE or postgresql://"),
        ("mysql+pymysql://me:secret@127.0.0.1:1/db", "allowed: sqlite:///FILE or postgresql://"),
        ("postgresql://me:secret@127.0.0.1:1/db", "check the URL, the server"),
        (f"sqlite:///{tmp_path}/none/study.db", "check that its folder exists"),
    ):
        with pytest.raises(StudyError, match=why) as error:
            open_storage(storage_url(tmp_path, bad))
        assert "secret" not in str(error.value)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("reason", "advice"),
    [
        ("database or disk is full", "check the disk's space"),
        ("disk I/O error", "check the disk's space"),
        ("database disk image is malformed", "move it away"),
    ],
)
def test_a_full_disk_is_no_reason_to_move_a_study_away(reason, advice):
    assert advice in unusable_text("sqlite:///a.db", sqlite3.OperationalError(reason))
