"""``dashboard``: Optuna dashboard with notes, pictures and files, for this machine only."""

import io
import json
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request

import pytest
from boards import NAME, SCRIPT, add_trial, make_study, serving
from cli_runner import refused
from cluster import Postgres, binaries
from fakes import Fake, spec
from hypothesis import example, given
from hypothesis import strategies as st
from optuna.artifacts.exceptions import ArtifactNotFound
from optuna.trial import TrialState
from optuna_dashboard import get_note, save_note

from prunetune.cli import dashboard
from prunetune.models import load_model
from prunetune.models.fingerprint import weights_digest
from prunetune.review.dashboard.artifacts import ArtifactFolder, attach
from prunetune.review.dashboard.notes import MARK, kept_below, markdown
from prunetune.review.dashboard.publish import Publisher
from prunetune.review.facts import study_facts
from prunetune.study.find import find_study
from prunetune.study.study import run_search


@pytest.fixture(scope="module")
def tiny():
    return load_model("tiny")


@pytest.fixture(scope="module")
def served(tmp_path_factory, tiny):
    """A dashboard over a study with hostile names, its notes and pictures written."""
    out = tmp_path_factory.mktemp("run")
    study = make_study(out)
    with serving(study, out, tiny) as board:
        yield board, study, out


def get(board, path, **headers):
    url = board.url.removesuffix("/dashboard") + path
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers)) as answer:
        return answer.status, dict(answer.headers), answer.read()


def status(board, path, **headers):
    try:
        return get(board, path, **headers)[0]
    except urllib.error.HTTPError as error:
        return error.code


def test_the_best_trial_has_note_picture_and_table_and_the_study_its_figures(served):
    board, study, _ = served
    detail = json.loads(get(board, f"/api/studies/{study._study_id}")[2])
    assert {figure["id"] for figure in detail["plotly_graph_objects"]} == {
        "schedules",
        "gap-against-cost",
    }
    assert detail["objective_names"] == ["cosine"]
    assert "### Best: trial 5" in detail["note"]["body"]
    best = detail["trials"][5]
    assert "| before the language model |" not in best["note"]["body"]
    assert "| layer 2 |" in best["note"]["body"]
    assert "### What is kept" in best["note"]["body"]
    attrs = {attr["key"] for attr in best["user_attrs"]}
    assert {"schedule", "weights", "mean_retention"} <= attrs
    files = {file["filename"]: file for file in best["artifacts"]}
    assert set(files) == {"trial-5-kept.png", "trial-5-samples.csv"}
    place = f"/artifacts/{study._study_id}/{best['trial_id']}/"
    _, headers, picture = get(board, place + files["trial-5-kept.png"]["artifact_id"])
    assert picture.startswith(b"\x89PNG")
    assert headers["Content-Type"] == "image/png"
    assert headers["Content-Security-Policy"].startswith("sandbox")
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert "Access-Control-Allow-Origin" not in headers
    table = get(board, place + files["trial-5-samples.csv"]["artifact_id"])[2].decode()
    assert SCRIPT in table
    assert "'=1+1" in table  # no formula for a spreadsheet
    worst = [float(line.rpartition(",")[2]) for line in table.splitlines()[1:]]
    assert worst == sorted(worst, reverse=True)
    assert sum(bool(trial["artifacts"]) for trial in detail["trials"]) == 5


def test_a_new_best_is_noted_and_what_people_wrote_stays(served):
    board, study, _ = served
    before = get_note(study)
    save_note(study, before + "\nShip it after Monday.\n")
    add_trial(study, 0.05, layer=1, weight=-0.3)
    board.refresh()
    after = get_note(study)
    number = len(study.get_trials(deepcopy=False)) - 1
    assert f"### Best: trial {number}" in after
    assert "Ship it after Monday." in after
    assert after.index(MARK) < after.index("Ship it")
    written = study._storage.get_study_system_attrs(study._study_id)
    board.refresh()
    # Nothing changed, nothing written.
    assert study._storage.get_study_system_attrs(study._study_id) == written
    trial = study.get_trials(deepcopy=False)[number]
    prefix = f"dashboard:artifacts:{trial._trial_id}:"
    files = [json.loads(v)["filename"] for k, v in written.items() if k.startswith(prefix)]
    assert sorted(files) == [f"trial-{number}-kept.png", f"trial-{number}-samples.csv"]


def test_only_requests_that_name_this_machine_are_answered(served):
    board, _, _ = served
    assert status(board, "/dashboard") == 200
    assert status(board, "/dashboard", Host="localhost:1") == 200
    assert status(board, "/dashboard", Host="evil.example") == 403
    assert status(board, "/api/studies", Host="127.0.0.1.evil.example") == 403


def test_no_request_leads_out_of_the_folder(served):
    board, study, out = served
    (out / "secret").write_text("secret")
    trial = study.get_trials(deepcopy=False)[0]
    for name in ("..%2fsecret", "%2e%2e/secret", "../secret", "%2fetc%2fpasswd", "aaaa"):
        for place in (f"{study._study_id}", f"{study._study_id}/{trial._trial_id}"):
            assert status(board, f"/artifacts/{place}/{name}") in (404, 405)


NAMES = st.text(st.sampled_from("./\\ab-_\0~%"), max_size=8)


@given(NAMES)
@example("../secret")
@example("/etc/passwd")
@example(".")
@example("..")
@example("a/../../secret")
def test_an_artifact_never_leaves_its_folder(tmp_path_factory, name):
    root = tmp_path_factory.mktemp("store")
    (root / "secret").write_text("secret")
    store = ArtifactFolder(root / "artifacts")
    try:
        store.write(name, io.BytesIO(b"x"))
    except ArtifactNotFound:
        assert not (root / "artifacts").exists()
        for use in (store.open_reader, store.remove):
            with pytest.raises(ArtifactNotFound):
                use(name)
    else:
        assert [path.name for path in (root / "artifacts").iterdir()] == [name]
        with store.open_reader(name) as file:
            assert file.read() == b"x"
    assert (root / "secret").read_text() == "secret"
    assert sorted(path.name for path in root.iterdir() if path.name != "artifacts") == ["secret"]


def test_links_are_not_followed(tmp_path):
    (tmp_path / "secret").write_text("secret")
    store = ArtifactFolder(tmp_path / "artifacts")
    store.write("real", io.BytesIO(b"x"))
    (store.folder / "link").symlink_to(tmp_path / "secret")
    (store.folder / "dir").symlink_to(tmp_path)
    for name in ("link", "dir", "dir/secret"):
        with pytest.raises(ArtifactNotFound):
            store.open_reader(name)
    store.write("link", io.BytesIO(b"new"))  # replaces the link, not what it leads to
    assert (tmp_path / "secret").read_text() == "secret"
    store.remove("link")
    assert (tmp_path / "secret").exists()


def test_a_full_disk_or_a_missing_model_ends_nothing(tmp_path, caplog):
    study = make_study(tmp_path, trials=2)
    (tmp_path / "file").write_text("")
    publisher = Publisher(study, ArtifactFolder(tmp_path / "file"))
    assert publisher.refresh() is False
    assert publisher.refresh() is False
    assert caplog.text.count("not written") == 1  # told once, tried again
    publisher.store = ArtifactFolder(tmp_path / "artifacts")
    assert publisher.refresh()
    trial = study.get_trials(deepcopy=False)[0]
    store = publisher.store
    assert attach(study, trial, store, "a.csv", b"1")
    assert not attach(study, trial, store, "a.csv", b"2")


@pytest.mark.parametrize("kind", ["empty", "failed", "two objectives"])
def test_studies_of_every_kind_get_a_note(tmp_path, kind):
    directions = 2 if kind == "two objectives" else 1
    study = make_study(tmp_path, trials=3 if directions == 2 else 0, directions=directions)
    if kind == "failed":
        add_trial(study, 0.1, state=TrialState.FAIL)
    publisher = Publisher(study, ArtifactFolder(tmp_path / "artifacts"))
    assert publisher.refresh()
    note = get_note(study)
    if directions == 2:
        assert "### The front's knee: trial" in note
        assert "### The front" in note
        assert f"| {markdown(study_facts(study).axis(1))} |" in note
    else:
        assert "No trial has finished yet" in note
    assert not publisher.refresh()


def test_the_note_of_an_ended_search_begins_with_its_verdict(tmp_path):
    result = run_search(spec(trials=3), Fake(count=16), Fake(count=16, seed=1), out=tmp_path)
    study = find_study(str(tmp_path)).study
    publisher = Publisher(study, ArtifactFolder(tmp_path / "artifacts"))
    assert publisher.refresh()
    assert f"**{markdown(result.verdict)}**" in get_note(study)
    assert f"### Best: trial {result.trial} " in get_note(study).replace("\n", " ")


@given(st.text(max_size=40))
def test_markdown_of_data_is_text(text):
    import re

    shown = markdown(text)
    assert "\n" not in shown
    bare = re.sub(r"\\.", "", shown)
    assert not set(bare) & set("<>[]()`*_|&!#\\")
    assert re.sub(r"\\(.)", r"\1", shown) == " ".join(
        "".join(c if c.isprintable() else " " for c in text).split()
    )


def test_notes_of_people_are_kept():
    once = kept_below("ours", "theirs")
    assert once.index("ours") < once.index(MARK) < once.index("theirs")
    assert kept_below("new", once) == once.replace("ours", "new")
    assert kept_below("ours", "") == f"ours\n\n{MARK}\n"


def test_pictures_of_other_weights_are_not_drawn(tmp_path, tiny, capsys):
    study = make_study(tmp_path, trials=1)
    publisher = Publisher(study)
    study.set_user_attr("weights_digest", "of a fine-tune")
    dashboard._load(publisher, True, None, {"revision": None})
    assert publisher.loaded is None
    assert "weights are not those" in capsys.readouterr().err
    study.set_user_attr("weights_digest", weights_digest(tiny.model))
    dashboard._load(publisher, True, None, {"revision": None})
    assert publisher.loaded is not None
    assert capsys.readouterr().err == ""


def start(*argv):
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "prunetune", "dashboard", *map(str, argv), "--json"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    # With a handler of its own: whoever started the tests may have had Ctrl-C ignored.
    return subprocess.Popen(command, env=environment, restore_signals=True, **pipes)


def ended(process, number):
    process.send_signal(number)
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


def test_the_verb_prints_its_address_and_ends_cleanly_on_ctrl_c(tmp_path):
    make_study(tmp_path, trials=2)
    process = start(tmp_path, "--no-pictures")
    try:
        line = json.loads(process.stdout.readline())
        assert line["url"].startswith("http://127.0.0.1:")
        assert line["artifacts"] == str(tmp_path / "artifacts")
        with urllib.request.urlopen(line["url"]) as answer:
            assert answer.status == 200
        status, out, err = ended(process, signal.SIGINT)
    finally:
        process.kill()
    assert status == 130, err
    assert out == ""
    assert "Traceback" not in err


def test_a_database_with_several_studies_never_shows_its_password(tmp_path):
    if binaries() is None:
        pytest.skip("PostgreSQL is missing")
    with Postgres() as server:
        for name in (NAME, "other/keep0.5/kl"):
            make_study(tmp_path, server.url, name, trials=2)
        line = refused("dashboard", server.url, has=("--artifacts",))
        assert "se%40cret" not in line
        process = start(server.url, "--artifacts", tmp_path / "files", "--no-pictures", "-v")
        try:
            first = process.stdout.readline()
            base = json.loads(first)["url"].removesuffix("/dashboard")
            with urllib.request.urlopen(f"{base}/api/studies") as answer:
                names = {s["study_name"] for s in json.load(answer)["study_summaries"]}
            assert names == {NAME, "other/keep0.5/kl"}
            status, out, err = ended(process, signal.SIGTERM)
        finally:
            process.kill()
    assert status == 0, err
    for text in (first, out, err):
        assert "se%40cret" not in text
        assert "se@cret" not in text


def test_bad_input_is_one_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refused("dashboard", has=("STUDY", "studies/"))
    refused("dashboard", "no", has=("no", "does not exist"))
    refused("dashboard", "postgresql://me:secret@127.0.0.1:1/db", "--artifacts", "a", has=("***",))
    make_study(tmp_path, trials=1)
    refused("dashboard", tmp_path, "--port", -1, has=("--port",))
    refused("dashboard", tmp_path, "--port", 99999, has=("99999", "--port"))
    refused("dashboard", tmp_path, "--host", "203.0.113.1", has=("203.0.113.1",))
    (tmp_path / "file").write_text("")
    refused("dashboard", tmp_path, "--artifacts", "file", has=("--artifacts", "file"))
