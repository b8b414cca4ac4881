"""Small things that a user meets on the first day."""

import json
import subprocess
import sys

import pytest
from cli_runner import call, picture, plain_set, refused, write_set
from fakes import search

from prunetune.cli import _output
from prunetune.cli.progress.bars import bars
from prunetune.cli.progress.lines import lines
from prunetune.presets import load_preset


def loaded_by(*argv):
    """Return the exit status of a verb in a fresh process, and the modules it imported."""
    code = (
        "import json, sys; from prunetune.cli import main; status = main(sys.argv[1:]); "
        "print(json.dumps([status, sorted({name.partition('.')[0] for name in sys.modules})]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, argv)], capture_output=True, text=True, check=True
    )
    status, names = json.loads(done.stdout.splitlines()[-1])
    return status, set(names)


HEAVY = {"torch", "optuna", "transformers", "sqlalchemy", "datasets", "numpy", "scipy"}


def test_what_is_no_study_is_said_before_anything_heavy_is_loaded(tmp_path):
    for words in (("status",), ("report",), ("export", "-o", "x.json"), ("dashboard",)):
        status, names = loaded_by(*words, tmp_path / "nope")
        assert status == 2
        assert not names & HEAVY, words
    # The twin: a study is read by them.
    search(tmp_path / "yes", trials=1)
    status, names = loaded_by("status", tmp_path / "yes")
    assert status == 0
    assert {"optuna", "sqlalchemy"} <= names


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shells_can_complete(shell):
    run = [sys.executable, "-m", "prunetune"]
    asked = {
        "bash": {"COMP_WORDS": "prunetune sel", "COMP_CWORD": "1"},
        "zsh": {"_TYPER_COMPLETE_ARGS": "prunetune sel"},
        "fish": {
            "_TYPER_COMPLETE_ARGS": "prunetune sel",
            "_TYPER_COMPLETE_FISH_ACTION": "get-args",
        },
    }[shell]
    import os

    env = {**os.environ, **asked, "_PRUNETUNE_COMPLETE": f"complete_{shell}"}
    done = subprocess.run(run, env=env, capture_output=True, text=True, check=False)
    assert "selectors" in done.stdout, done.stderr
    assert "presets" not in done.stdout
    env["_PRUNETUNE_COMPLETE"] = f"source_{shell}"
    script = subprocess.run(run, env=env, capture_output=True, text=True, check=False).stdout
    assert "_PRUNETUNE_COMPLETE" in script
    assert "prunetune" in script


@pytest.mark.parametrize(
    ("verb", "name", "near"),
    [
        ("presets", "topv", "tovp"),
        ("scorers", "coverage", "covrage"),
        ("selectors", "cover", "covre"),
        ("models", "tiny", "tny"),
    ],
)
def test_one_of_a_list_is_shown(verb, name, near):
    assert [row["name"] for row in call(verb, name, "--json").json[verb]] == [name]
    assert len(call(verb, "--json").json[verb]) > 1
    refused(verb, near, has=(f"received '{near}'", f"did you mean {name!r}"))
    for text in (call(verb).out, call(verb, name).out):
        assert max(map(len, text.splitlines())) <= 100


def test_tables_wrap_and_lose_nothing():
    rows = [("a-name", "words " * 40, "1"), ("b", "short", "23")]
    found = _output.plain_table(("name", "text", ">n"), rows, wrap="text")
    assert max(map(len, found)) <= 100
    assert " ".join(found).count("words") == 40
    assert found[1].startswith("a-name")
    # The twin: what fits is one line a row.
    assert len(_output.plain_table(("name", "n"), [("a", "1"), ("b", "2")])) == 3


@pytest.mark.parametrize("given", ["25", "25%"])
@pytest.mark.parametrize(
    "words",
    [
        ("search", "--model", "tiny", "--keep"),
        ("search", "--model", "tiny", "--flops"),
        ("search", "--model", "tiny", "--pixels"),
        ("presets", "--keep"),
        ("bench", "--preset", "topv", "--shape", "mid", "--keep"),
        ("verify", "--preset", "topv", "--model", "tiny", "--keep"),
        ("export", "nowhere", "-o", "x.json", "--keep"),
    ],
)
def test_a_percentage_is_told_as_a_share(words, given, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if words[0] == "export":
        search(tmp_path / "nowhere", trials=1)
    refused(*words, given, has=(f"received {given}", "for 25% write 0.25"))
    assert "%" not in refused("presets", "--keep", "x")


def test_an_error_is_json_too(tmp_path):
    for words, parts in {
        ("presets", "--keep", "25"): {
            "what": "--keep", "received": "25", "allowed": "a share from 0 to 1",
            "do": "for 25% write 0.25", "status": 2,
        },
        ("status", str(tmp_path / "no")): {"received": None, "status": 2},
        ("search", "--trials", "x"): {"status": 2},
    }.items():  # fmt: skip
        ran = call(*words, "--json")
        assert ran.status == 2
        assert len(ran.out.splitlines()) == 1
        assert ran.err == f"error: {ran.json['error']}\n"
        assert set(ran.json) == {"error", "what", "received", "allowed", "do", "status"}
        assert {key: ran.json[key] for key in parts} == parts
        assert ran.json["what"] in ran.json["error"]
    # The twin: nobody asked for JSON.
    assert call("presets", "--keep", "25").out == ""


def test_export_replaces_no_file_of_somebody_else(tmp_path):
    search(tmp_path / "run", trials=3)
    mine = tmp_path / "mine.json"
    for text in ('{"format": "other"}', "notes", "[]"):
        mine.write_text(text)
        refused("export", tmp_path / "run", "-o", mine, has=("no config of prunetune", "--force"))
        assert mine.read_text() == text
    assert call("export", tmp_path / "run", "-o", mine, "--force").status == 0
    # A config, an empty file and a new one may all be written.
    for place in (mine, tmp_path / "empty.json", tmp_path / "new.json"):
        if "empty" in place.name:
            place.touch()
        assert call("export", tmp_path / "run", "-o", place).status == 0, place


def test_a_start_that_fails_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refused("search", "--model", "tiny", "--data", "nowhere", has=("does not exist",))
    refused("search", "--model", "nope-model", "--out", "a/b/c")
    data = write_set(tmp_path / "data")
    wrong = ("search", "--data", data, "--out", "d", "--threads", 1)
    refused(*wrong, "--keep", 0.011, "--layers", "3-3")
    ran = call(*wrong, "--max-drop", 2)
    assert ran.status == 2
    assert "held-out samples" in ran.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data"]
    # The twin: a folder that was there stays.
    (tmp_path / "d").mkdir()
    assert call(*wrong, "--max-drop", 2).status == 2
    assert (tmp_path / "d").is_dir()


def test_places_are_found_from_any_folder(tmp_path, monkeypatch):
    from prunetune.spec import StudySpec

    plain_set(tmp_path / "here" / "data", range(6))
    (tmp_path / "away").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    fast = ("--threads", 1, "--preset", "none", "--no-report")
    words = ("search", "--data", "data", "--trials", 1, "--out", "../run", *fast)
    assert call(*words).status == 0
    stored = StudySpec.load(tmp_path / "run" / "spec.toml")
    assert stored.data == str(tmp_path / "here" / "data")
    assert stored.model == "tiny"
    monkeypatch.chdir(tmp_path / "away")
    # From elsewhere, by a verb that needs the data, and by its other name.
    assert call("export", "../run", "--trial", 0, "-o", "x.json").status == 0
    again = call("search", "--data", "../here/data", "--trials", 2, "--out", "../run", *fast)
    assert again.status == 0, again.err
    refused("search", "--data", "../run", "--trials", 2, "--out", "../run", *fast, has=("data (",))


def test_presets_are_verified_and_shown(tmp_path):
    preset = ("--preset", "uniform", "--keep", "0.5", "--model", "tiny", "--threads", 1)
    data = ("--data", write_set(tmp_path / "set"), "--self-test", 0)
    found = call("verify", *preset, *data, "--json").json
    assert (found["preset"], found["config"]) == ("uniform", None)
    assert found["mean_retention"] == pytest.approx(0.5, abs=0.02)
    picture(1).save(tmp_path / "one.png")
    shown = call("show", *preset, tmp_path / "one.png", "-o", tmp_path / "kept.png", "--json")
    assert shown.status == 0, shown.err
    assert shown.json["configs"] == ["uniform"]
    one = tmp_path / "one.png"
    refused("show", *preset, one, "-o", one, has=("which is a picture to show",))
    refused("verify", "--preset", "uniform", has=("--model",))
    refused("verify", has=("received neither",))
    refused("show", tmp_path / "one.png", has=("IMAGE: received 0",))


def test_diff_says_how_it_judges(tmp_path):
    for keep in (0.3, 0.5):
        config, _ = load_preset("uniform", model_type="llava_next", num_layers=16, keep=keep)
        config.save(tmp_path / f"{keep}.json")
    pair = (tmp_path / "0.3.json", tmp_path / "0.5.json")
    data = ("--data", write_set(tmp_path / "set"), "--model", "tiny", "--threads", 1)
    ran = call("diff", *pair, "--measure", 4, "--match", "exact", *data)
    assert "answers are judged by --match exact" in ran.out, ran.err
    refused("diff", *pair, "--match", "exact", has=("--match: only of use with --measure",))


def test_data_is_checked_with_options_of_the_processor(tmp_path):
    data = write_set(tmp_path / "set")
    refused("data", "check", data, "--processor", "max_pixels=9", has=("--model",))
    refused("data", "check", data, "--model", "tiny", "--processor", "no", has=("KEY=VALUE",))
    refused("data", "check", data, "--model", "tiny", "--processor", "nothing=1", has=("nothing",))


def test_a_log_says_which_phase_runs_and_that_it_does(capsys):
    with lines(True, 0.01) as show:
        show("loading", 0)
        show("trials", 0, 5)
        show("trials", 3, 5, "best 0.1")
        wait_for(capsys, "trials: 3/5, best 0.1 (0 s)")
    shown = said(capsys)
    assert shown.index("loading: (0 s)") < shown.index("trials: 0/5 (0 s)")
    # The twin: verbs without phases say nothing unless it takes long.
    with lines(False, 60.0) as show:
        show("samples", 1, 2)
    assert not capsys.readouterr().err


_SAID = []


def said(capsys):
    found, _SAID[:] = [*_SAID, *capsys.readouterr().err.splitlines()], []
    return found


def wait_for(capsys, line):
    import time

    deadline = time.monotonic() + 60
    while line not in _SAID and time.monotonic() < deadline:
        _SAID.extend(capsys.readouterr().err.splitlines())
    assert line in _SAID


def test_the_bar_shows_the_phase_that_runs(monkeypatch):
    import io
    from unittest.mock import patch

    terminal = io.StringIO()
    terminal.isatty = lambda: True
    with patch("sys.stderr", terminal), bars() as show:
        show("loading", 0)
        show("trials", 2, 5)
    assert "trials" in terminal.getvalue()


@pytest.mark.parametrize(
    ("words", "has"),
    [
        (("--stages", "0-4"), ("--stages: received '0-4', allowed 1 to 3",)),
        (("--stages", "3-1"), ("--stages: received '3-1'", "the lower first")),
        (("--max-drop", "2", "--keep", "0.25"), ("a promise (--max-drop) needs a range",)),
        (("--layers", "5"), ("with no stage before layer 5 (--layers, --scorers) keep: received",)),
        (("--spec", "nope.toml"), ("'nope.toml': No such file or directory; name one",)),
    ],
)
def test_what_was_typed_is_what_is_refused(tmp_path, words, has):
    refused("search", "--model", "tiny", *words, "--out", tmp_path / "out", has=has)
    assert not (tmp_path / "out").exists()
