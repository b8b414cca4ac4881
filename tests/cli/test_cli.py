"""The command line: what it prints, its exit statuses, one line for everything that is wrong."""

import json
import os
import shlex
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
import tomllib
from contextlib import closing

import huggingface_hub
import pytest
from cli_runner import call, picture, plain_set, refused, truncate, write_rows, write_set
from huggingface_hub import constants

from prunetune.cli._app import VERBS
from prunetune.config import PruningConfig
from prunetune.models.aliases import ALIASES
from prunetune.models.embedded import EDITION
from prunetune.presets import load_preset

FAST = ("--threads", "1", "--batch-size", "4")


def started(*argv, **options):
    command = [sys.executable, "-m", "prunetune", *[str(arg) for arg in argv]]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, **pipes, **options)


def executed(code):
    command = [sys.executable, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Calibration data of five pictures, one of them broken, and two held out."""
    folder = write_set(tmp_path_factory.mktemp("data") / "set", calibration=5)
    truncate(folder / "calibration" / "calibration-4.png")
    return folder


@pytest.fixture(scope="module")
def searched(source, tmp_path_factory):
    """One small search: its folder and what it printed."""
    out = tmp_path_factory.mktemp("run") / "study"
    words = ("search", "--data", source, "--skip-bad", "--trials", "3", "--out", out, *FAST)
    ran = call(*words, "--json")
    assert ran.status == 0, ran.err
    return out, ran, words


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """A config of another depth than tiny."""
    found, _ = load_preset("uniform", model_type="llava_next", num_layers=32)
    return found.save(tmp_path_factory.mktemp("config") / "deep.json")


def data_of(config, **changes):
    return json.loads(config.read_text()) | changes


# -- help ------------------------------------------------------------------------------------


def test_help_lists_every_verb_and_needs_no_heavy_package():
    code = (
        "import sys; from prunetune.cli import main; main(['search', '--help']); "
        "heavy = 'torch', 'transformers', 'optuna', 'numpy', 'rich'; "
        "print([m for m in heavy if m in sys.modules])"
    )
    assert executed(code).stdout.splitlines()[-1] == "[]"
    assert all(f"  {verb} " in call("--help").out for verb in VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_with_an_example_it_can_parse(verb):
    ran = call(verb, "--help")
    assert ran.status == 0
    examples = [line.strip() for line in ran.out.splitlines() if f"  prunetune {verb}" in line]
    assert examples
    for example in examples:
        words = shlex.split(example)[1:]
        # Options are parsed before --help is acted on, so an unknown one would be an error.
        assert call(*words, "--help").status == 0
        assert call(*words, "--nonsense").status == 2


def test_no_arguments_show_the_help_and_version_is_known():
    assert "Commands:" in call().out
    assert call("--version").out.startswith("prunetune 0.")


def test_a_reader_that_goes_away_is_no_error():
    process = started("search", "--help")
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait() == 141


# -- listings --------------------------------------------------------------------------------


def test_models_scorers_and_presets_are_listed():
    names = {row["name"]: row for row in call("models", "--json").json["models"]}
    assert names["tiny"]["here"]
    assert names["tiny"]["supported"]
    scorers = {row["name"]: row for row in call("scorers", "--json").json["scorers"]}
    topv = {field["name"]: field for field in scorers["topv"]["hyperparameters"]}
    assert topv["weight"]["searched"] == [-1, 1]
    assert topv["epsilon"]["log"]
    assert "layer_states" in scorers["topv"]["needs"]
    assert not scorers["topv"]["layer_0"]
    selectors = {row["name"]: row for row in call("selectors", "--json").json["selectors"]}
    cover = {field["name"]: field for field in selectors["cover"]["hyperparameters"]}
    assert cover["tau"]["levels"] == 8
    assert cover["scope"]["searched"] == ["image", "view"]
    assert not selectors["cover"]["scores"]
    assert selectors["dpp"]["scores"]
    presets = call("presets", "--keep", "0.2", "--num-layers", "12", "--json").json["presets"]
    assert {"topv", "uniform", "random"} <= {row["name"] for row in presets}
    assert all(abs(row["mean_retention"] - 0.2) < 1e-6 for row in presets)
    for verb in ("models", "scorers", "selectors", "presets"):
        assert "{" not in call(verb).out


def test_models_fit_a_screen_and_details_are_by_name():
    lines = call("models").out.splitlines()
    assert len(lines) <= len(ALIASES) + 2
    assert max(map(len, lines)) <= 80
    one = call("models", "qwen2.5-vl").out
    assert "Qwen/Qwen2.5-VL-7B-Instruct" in one
    assert "proven by" in one
    assert "proven by" not in lines[0]


def test_data_is_described(source):
    found = call("data", "check", source, "--skip-bad", "--json").json
    assert found["calibration"]["samples"] == 4
    assert found["calibration"]["sizes"] == {"128x64": 4}
    assert found["skipped"] == 1
    assert "calibration-4.png" in found["skipped_names"][0]
    shown = call("data", "show", source, "--skip-bad", "--json").json
    assert len(shown["samples"]) == 6
    assert "yellow" in call("data", "show", source, "--skip-bad").out


# -- a search and what comes after it -----------------------------------------------------------


def test_search_ends_with_one_json_object(searched):
    out, ran, _ = searched
    assert len(ran.out.splitlines()) == 1
    found = ran.json
    best = found["best"]
    assert sum(found["trials"].values()) == 3
    assert found["skipped"] == 1
    assert "calibration-4.png" in ran.err
    assert best["held_out_ci"][0] <= best["held_out_gap"] <= best["held_out_ci"][1]
    assert best["mean_retention"] == pytest.approx(0.25, abs=1e-9)
    assert {"topv", "random", "uniform"} <= {row["name"] for row in found["baselines"]}
    assert found["verdict"]
    assert found["config"] == str(out / "config.json")
    assert set(found) >= {"study", "seconds", "sample_evaluations", "unpruned", "report"}
    assert {"study.db", "spec.toml", "config.json", "log.jsonl"} <= set(os.listdir(out))


def test_the_same_command_resumes_and_prints_for_people(searched):
    out, ran, words = searched
    before = (out / "log.jsonl").read_text()
    again = call(*words)
    assert again.status == 0, again.err
    assert "trials: " in again.out
    assert "uniform" in again.out
    assert ran.json["verdict"] in again.out
    assert f"next: prunetune export {out} -o tiny.prune.json" in again.out
    assert (out / "log.jsonl").read_text() == before


def test_status_tells_how_to_resume(searched):
    out, *_ = searched
    found = call("status", out, "--json").json
    assert found["finished"] == 3 == found["wanted"]
    assert found["best"]["schedule"]
    words = shlex.split(found["resume"])
    assert words[:2] == ["prunetune", "search"]
    assert str(out / "spec.toml") in words
    # As it was it would end at once: it has all its trials.
    assert words[-2:] == ["--trials", "6"]
    shown = call("status", out).out
    assert found["resume"] in shown
    counted = next(line for line in shown.splitlines() if line.startswith("trials: "))
    assert counted.startswith("trials: 3 of 3 finished (")
    assert "waiting" not in counted.partition(")")[0]


def test_a_search_that_was_killed_over_its_table_needs_no_more_trials(searched, tmp_path):
    out, *_ = searched
    shutil.copytree(out, folder := tmp_path / "killed")
    with closing(sqlite3.connect(folder / "study.db")) as database, database:
        gone = database.execute("DELETE FROM study_user_attributes WHERE key LIKE 'record%'")
    assert gone.rowcount
    found = call("status", folder, "--json").json
    assert (found["finished"], found["verdict"]) == (3, None)
    assert "--trials" not in found["resume"]
    assert "result: none yet" in call("status", folder).out
    # The twin: with its result the same command would have nothing to do.
    assert "result: none yet" not in call("status", out).out


def test_todays_model_by_its_number_is_todays_model():
    assert call("models", f"tiny-{EDITION}").out == call("models", "tiny").out
    assert call("models", "tiny", "--json").json["models"][0]["hub_id"] is None


def test_what_is_no_study_is_refused_in_its_own_words(searched, tmp_path):
    out, *_ = searched
    for verb in ("status", "report"):
        refused(verb, f"{out}:1", has=(f"give '{out}'", "--trial 1 in export"))
        refused(verb, out / "config.json", has=("config.json is not a database",))
    refused("verify", out, has=("Is a directory", "`prunetune export`"))
    (tmp_path / "study.db").touch()  # a search that was killed before its first write
    refused("status", tmp_path, has=("holds no study yet",))


@pytest.mark.parametrize(
    ("words", "has"),
    [
        (("presets", "--model-type", "llava_nxt"), ("--model-type: received 'llava_nxt'",)),
        (("data", "check", "tiny", "--seed", "-1"), ("--seed: received -1, allowed 0",)),
        (("data", "check", "tiny", "--samples", "0"), ("--samples: received 0, allowed 1",)),
    ],
)
def test_flags_of_lists_and_data_are_checked(words, has):
    refused(*words, has=has)


def test_export_takes_what_the_search_wrote(searched, tmp_path):
    out, ran, _ = searched
    ended = call("export", out / "study.db", "-o", tmp_path / "a.json", "--json")
    assert ended.status == 0, ended.err
    assert (tmp_path / "a.json").read_bytes() == (out / "config.json").read_bytes()
    assert ended.json["trial"] == ran.json["best"]["trial"]
    assert PruningConfig.load(tmp_path / "a.json").provenance.gap == ran.json["best"]["gap"]


def test_export_of_another_trial_is_measured(searched, tmp_path):
    out, ran, _ = searched
    other = next(n for n in range(3) if n != ran.json["best"]["trial"])
    url = f"sqlite:///{out / 'study.db'}"
    ended = call("export", url, "--trial", other, "-o", tmp_path / "b.json", "--skip-bad")
    assert ended.status == 0, ended.err
    made = PruningConfig.load(tmp_path / "b.json").provenance
    assert made.trial == other
    assert made.seed == 0
    for field in ("gap", "gap_ci", "held_out_gap", "mean_retention", "flops_ratio", "created"):
        assert getattr(made, field) is not None
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    logged = next(line for line in lines if line["trial"] == other)
    if logged["state"] == "COMPLETE":
        assert made.gap == pytest.approx(logged["gap"], abs=1e-7)


def test_the_command_that_export_names_measures_what_the_study_did(tmp_path):
    data, other = plain_set(tmp_path / "a", range(6)), plain_set(tmp_path / "b", range(6, 9))
    out = tmp_path / "out"
    words = ("--data", data, "--held-out", other, "--trials", 2, "--preset", "none", "--out", out)
    assert call("search", *words, "--json", *FAST).status == 0
    exported = call("export", out, "-o", tmp_path / "c.json")
    assert "\nruns in: transformers" in exported.out
    line = next(line for line in exported.out.splitlines() if line.startswith("next: prunetune"))
    verified = call(*shlex.split(line)[2:], "--json", *FAST)
    assert verified.json["reproduced"] is True
    assert verified.json["calibration"]["samples"] == 6
    assert verified.json["held_out"]["samples"] == 3
    # The twin: without --held-out a part of the data is another set.
    again = call("verify", tmp_path / "c.json", "--data", data, "--json", *FAST).json
    assert again["reproduced"] is None
    assert again["calibration"]["samples"] < 6


def test_an_interrupted_search_says_what_resumes_it(source, tmp_path):
    out = tmp_path / "run"
    words = ("search", "--data", source, "--skip-bad", "--out", out, *FAST)
    process = started(*words, "--trials", "500")
    deadline = time.time() + 200
    while not (out / "log.jsonl").exists() and time.time() < deadline:
        time.sleep(0.1)
    assert (out / "log.jsonl").exists(), "no trial has ended"
    process.send_signal(signal.SIGINT)
    shown, err = process.communicate(timeout=100)
    assert process.returncode == 130, err
    assert shown == ""
    line = err.splitlines()[-1]
    assert line.startswith("interrupted; the same command resumes: prunetune search --data")
    assert "Traceback" not in err
    finished = call("status", out, "--json").json["finished"]
    assert finished >= 1
    again = call(*words, "--trials", finished + 1, "--json")
    assert again.status == 0, again.err
    assert again.json["trials"]["complete"] + again.json["trials"]["pruned"] == finished + 1


def test_another_spec_in_the_same_folder_is_refused(searched, source):
    out, *_ = searched
    common = ("search", "--data", source, "--skip-bad", "--out", out)
    refused(*common, "--keep", "0.3", has=("keep (0.25 -> 0.3)", "--out"))
    refused(*common, "--seed", "3", "--metric", "kl", has=("metric", "seed"))


def test_flags_override_the_spec_file(tmp_path, source):
    spec = tmp_path / "s.toml"
    spec.write_text('model = "tiny"\nkeep = 7.0\n[space]\nmax_stages = 2\nscorers = ["coverage"]\n')
    refused("search", "--spec", spec, has=("keep", "7"))
    out = tmp_path / "run"
    words = ("--keep", "0.4", "--stages", "1-1", "--trials", "1", "--samples", "2", "--out", out)
    ran = call("search", "--spec", spec, *words, "--data", source, "--skip-bad", *FAST, "--json")
    assert ran.status == 0, ran.err
    stored = tomllib.loads((out / "spec.toml").read_text())
    assert stored["keep"] == 0.4
    assert stored["samples"] == 2
    assert stored["space"]["max_stages"] == 1
    assert stored["space"]["scorers"] == ["coverage"]


def test_a_range_that_would_do_nothing_is_refused(tmp_path, source):
    spec, out = tmp_path / "s.toml", tmp_path / "run"
    text = 'model = "tiny"\nkeep = 0.4\n[space]\nselectors = ["top"]\n[space.ranges]\n'
    spec.write_text(text + '"mmr.relevance" = [0.1, 0.2]\n')
    words = ("search", "--spec", spec, "--data", source, "--skip-bad", "--out", out)
    refused(*words, has=("received mmr.relevance, which would do nothing", "leave the range out"))
    assert not out.exists()


# -- bad input -------------------------------------------------------------------------------


@pytest.mark.parametrize("keep", ["0", "1.5", "nan", "-1", "0.001", "x"])
def test_a_budget_that_is_none(keep):
    refused("search", "--keep", keep, has=("keep", keep))


def test_a_budget_too_small_for_the_first_layer(tmp_path):
    line = refused("search", "--keep", "0.05", "--layers", "4-8", "--out", tmp_path / "o")
    assert "keep: received 0.05" in line
    assert "smallest" in line


@pytest.mark.parametrize(
    ("flags", "has"),
    [
        (("--sampler", "tpee"), ("'tpee'", "did you mean 'tpe'")),
        (("--metric", "cosin"), ("'cosin'", "did you mean 'cosine'")),
        (("--scorers", "topw"), ("'topw'", "did you mean 'topv'")),
        (("--selectors", "cove"), ("'cove'", "did you mean 'cover'")),
        (("--selectors", ","), ("--selectors", "commas")),
        (("--mass", "much"), ("--mass", "'much'", "0 to 1")),
        (("--mass", "0,2"), ("mass", "0 to 1")),
        (("--trial-pruner", "median"), ("'median'", "wilcoxon, none")),
        (("--stages", "a"), ("--stages", "'a'")),
        (("--layers", "5-2"), ("layers",)),
        (("--trials", "0"), ("trials", "0")),
        (("--samples", "1.5"), ("--samples", "'1.5'")),
        (("--threads", "0", "--model", "nope"), ("--threads", "0")),
        (("--batch-size", "0"), ("--batch-size",)),
        (("--spec", "nowhere.toml"), ("nowhere.toml",)),
        (("--modle", "tiny"), ("--modle", "--model", "prunetune search --help")),
        (("--keep",), ("--keep", "requires an argument")),
        (("--study", ""), ("--study: received ''", "leave it out")),
        (("--storage", "nonsense"), ("nonsense", "sqlite:///")),
        (("--model", "nope"), ("unknown model 'nope'",)),
        (("--model", "llava-nxt"), ("did you mean 'llava-next'",)),
    ],
)
def test_a_flag_that_is_wrong(flags, has, tmp_path):
    refused("search", "--out", tmp_path / "out", *flags, has=has)


def test_a_verb_that_is_none():
    refused("serch", has=("'serch'", "'search'"))


def test_weights_that_are_not_here_are_named(tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise ConnectionError("no network\nat all")

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", fail)
    command = "hf download llava-hf/llava-v1.6-mistral-7b-hf"
    refused(
        *("search", "--model", "llava-next", "--out", tmp_path / "out"),
        has=("not on this machine", command, "--model tiny"),
    )


def test_data_that_cannot_be_used(tmp_path):
    (tmp_path / "empty").mkdir()
    search = ("search", "--out", tmp_path / "out", "--data")
    refused(*search, tmp_path / "empty", has=("empty", "no pictures"))
    refused("data", "check", tmp_path / "empty", has=("no pictures",))
    refused(*search, tmp_path / "nowhere", has=("nowhere", "does not exist"))
    row = {"file_name": "gone.png", "question": "what ?"}
    refused(*search, write_rows(tmp_path / "a", [row]), has=("line 1", "'gone.png'"))
    bare = write_rows(tmp_path / "b", [{"question": "what ?"}])
    refused(*search, bare, has=("line 1", "no picture", "file_name"))
    for k in range(3):
        picture(k).save(tmp_path / "b" / f"{k}.jpg")
    (tmp_path / "b" / "metadata.jsonl").unlink()
    truncate(tmp_path / "b" / "1.jpg")
    refused(*search, tmp_path / "b", has=("1.jpg", "truncated", "--skip-bad"))
    refused("data", "chekc", tmp_path / "b", has=("'chekc'", "check or show"))


def test_a_config_that_is_none(config, tmp_path):
    path = tmp_path / "c.json"
    refused("verify", path, has=("c.json", "No such file"))
    for text, part in (("", "empty"), ("{", "not JSON"), ("[1]", "list"), ("{}", "format")):
        path.write_text(text)
        refused("verify", path, has=("c.json", part))
    stage = data_of(config)["stages"][0]
    for changes, part in (
        ({"colour": "red"}, "colour: unknown key"),
        ({"version": 99}, "99"),
        ({"stages": [stage, stage | {"layer": 3, "retention": 0.9}]}, "retentions never rise"),
        ({"stages": [stage, stage]}, "layers strictly rise"),
    ):
        path.write_text(json.dumps(data_of(config, **changes)))
        refused("verify", path, has=("c.json", part))
    refused("verify", config, "--max-gap", "nan", has=("--max-gap", "nan"))
    refused("verify", config, has=("model.name", "--model"))
    depth = ("32 decoder layers", "the model has")
    refused("verify", config, "--model", "tiny", "--samples", "1", *FAST[:2], has=depth)


def test_a_study_that_cannot_be_read(tmp_path, searched):
    folder = tmp_path / "run"
    folder.mkdir()
    refused("status", folder, has=("study.db does not exist",))
    refused("export", folder, "-o", tmp_path / "c.json", has=("study.db",))
    refused("export", folder, has=("--output",))
    (folder / "study.db").write_bytes(b"no database at all" * 400)
    for words in (
        ("status", folder),
        ("export", folder, "-o", tmp_path / "c.json"),
        ("search", "--out", folder),
    ):
        refused(*words, has=("study.db", "not a database"))
    out, *_ = searched
    refused("export", out, "--trial", "99", "-o", tmp_path / "c.json", has=("99", "allowed 0 to"))
    refused("status", out, "--study", "other", has=("'other'", "tiny/keep0.25/cosine"))
    secret = refused("status", "postgresql://me:hunter2@127.0.0.1:1/db", has=("127.0.0.1",))
    assert "hunter2" not in secret


def test_a_place_that_cannot_be_written(tmp_path, searched):
    file = tmp_path / "file"
    file.write_text("")
    refused("search", "--out", file / "run", has=(str(file), "--out"))
    out, *_ = searched
    refused("export", out, "-o", file / "c.json", has=("c.json",))


def test_what_is_not_installed_is_named():
    for missing, words in (("typer", ["models"]), ("optuna", ["search"])):
        code = (
            f"import sys; sys.modules[{missing!r}] = None; from prunetune.cli import main; "
            f"sys.exit(main({words!r}))"
        )
        ran = executed(code)
        assert ran.returncode == 2, ran.stderr
        assert ran.stderr.count("\n") == 1
        assert missing in ran.stderr
        assert "pip install 'prunetune[search]'" in ran.stderr


def test_a_bug_is_one_line_unless_asked(monkeypatch):
    def broken(*args):
        raise KeyError("oh\nno")

    monkeypatch.setattr("prunetune.presets.preset_names", broken)
    line = refused("presets", status=3, has=("KeyError", "bug", "--debug"))
    assert "oh" in line
    shown = call("presets", "--debug")
    assert shown.status == 3
    assert "Traceback" in shown.err


@pytest.mark.parametrize(
    ("given", "verb", "found"),
    [(None, "scorers", "PASSIVE"), ("ACTIVE", "scorers", "ACTIVE"), (None, "bench", None)],
)
def test_waiting_threads_sleep_but_where_a_deployment_is_timed(monkeypatch, given, verb, found):
    monkeypatch.setenv("OMP_WAIT_POLICY", given or "")
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    if given is None:
        monkeypatch.delenv("OMP_WAIT_POLICY")
    call(*([verb] if verb == "scorers" else [verb, "no-such-file.json"]))
    assert os.environ.get("OMP_WAIT_POLICY") == found
