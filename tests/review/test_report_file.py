"""A search writes its report, and so does the verb; what is gone costs pictures only."""

import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
from cli_runner import call, picture, refused, write_rows, write_set
from fakes import Fake, spec
from made_studies import NASTY, SAMPLES, Asked
from pages import Page

from prunetune import models
from prunetune.calibration import CalibrationSet, Sample
from prunetune.review.report.worst import measured_part
from prunetune.study.study import run_search

FAST = ("--threads", "1")


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """A search of the embedded model on data with nasty names and prompts."""
    folder = tmp_path_factory.mktemp("real")
    data = write_set(folder / 'it\'s "a" <b> & set', calibration=2, held_out=2)
    name = "q\"uo'te <b>&.png"
    picture(3).save(data / "held_out" / name)
    row = {"file_name": name, "question": f"what {NASTY} ?", "answer": NASTY, "type": NASTY}
    held_out = [json.loads(line) for line in (data / "held_out" / "metadata.jsonl").open()]
    write_rows(data / "held_out", [*held_out, row])
    out = folder / 'it\'s/a "run" <b>'
    words = ("search", "--data", data, "--trials", "2", "--out", out, "--preset", "uniform")
    ran = call(*words, "--no-cache", "--json", *FAST)
    assert ran.status == 0, ran.err
    return out, data, ran


def test_search_writes_the_report_at_its_end(real):
    out, _, ran = real
    assert ran.json["report"] == str(out / "report.html")
    page = Page((out / "report.html").read_text())
    assert page.elements["img"] >= 3 * 2
    assert page.words.count("with pruning") == 3
    assert NASTY in page.words
    assert "no-pictures" not in page.ids
    assert "other-weights" not in page.ids
    assert "q\"uo'te <b>&.png" in page.words


def test_the_verb_writes_the_same_page(real, tmp_path):
    out, _, _ = real
    ran = call("report", out, "-o", tmp_path / "a.html", "--json", *FAST)
    assert ran.status == 0, ran.err
    assert ran.json["pictures"] is True
    assert ran.json["bytes"] == (tmp_path / "a.html").stat().st_size < 8 << 20
    made = re.compile(r"Made \S+ by|20\d\d-\d\d-\d\dT[\d:+]+")
    pages = [made.sub("", p.read_text()) for p in (out / "report.html", tmp_path / "a.html")]
    assert pages[0] == pages[1]
    people = call("report", out, "-o", tmp_path / "b.html", "--no-pictures", *FAST)
    assert "report: " in people.out
    page = Page((tmp_path / "b.html").read_text())
    assert page.elements["img"] == 0
    assert "left out as asked" in page.words


def test_data_that_is_gone_costs_the_pictures_only(real, tmp_path):
    out, data, _ = real
    moved = data.rename(data.parent / "elsewhere")
    try:
        ran = call("report", out, "-o", tmp_path / "a.html", "--json", *FAST)
    finally:
        moved.rename(data)
    assert ran.status == 0, ran.err
    assert ran.json["pictures"] is False
    assert "does not exist" in ran.json["missing"]
    page = Page((tmp_path / "a.html").read_text())
    assert "Without pictures and answers: " in page.words
    assert NASTY in page.words
    assert page.elements["img"] == 0


def test_data_that_changed_is_noticed(real, tmp_path):
    out, data, _ = real
    rows = (data / "held_out" / "metadata.jsonl").read_text()
    (data / "held_out" / "metadata.jsonl").write_text(rows.replace("circle", "square"))
    try:
        ran = call("report", out, "-o", tmp_path / "a.html", "--json", *FAST)
    finally:
        (data / "held_out" / "metadata.jsonl").write_text(rows)
    assert "no longer those that the study measured" in ran.json["missing"]


def test_weights_that_changed_are_noticed(real, tmp_path, monkeypatch):
    out, *_ = real
    load = models.load_model

    def tuned(*args, **kwargs):
        loaded = load(*args, **kwargs)
        loaded.model.model.language_model.norm.weight.data *= 1.05
        return loaded

    monkeypatch.setattr(models, "load_model", tuned)
    ran = call("report", out, "-o", tmp_path / "a.html", "--json", *FAST)
    assert ran.status == 0, ran.err
    page = Page((tmp_path / "a.html").read_text())
    assert "other-weights" in page.ids
    assert page.elements["img"] > 0
    assert "weights are not those of the study" in ran.err


def test_a_study_that_had_time_for_a_part_shows_that_part():
    held_out = CalibrationSet(tuple(Sample((), "?", id=f"s{k}") for k in range(4)))
    facts = SimpleNamespace(record={"samples": {"id": ["s2", "s0"]}})
    assert [sample.id for sample in measured_part(facts, held_out)] == ["s2", "s0"]
    assert measured_part(SimpleNamespace(record=None), held_out) is held_out


def test_a_model_that_is_gone_costs_the_pictures_only(tmp_path):
    run_search(spec(trials=3), Asked(), Asked(seed=1), out=tmp_path)
    ran = call("report", tmp_path, "--json", *FAST)
    assert ran.status == 0, ran.err
    assert ran.json["report"] == str(tmp_path / "report.html")
    assert ran.json["pictures"] is False
    page = Page((tmp_path / "report.html").read_text())
    assert "Without pictures and answers" in page.words
    assert f"what {NASTY}" in page.words


def test_a_study_without_a_result_shows_calibration_samples(tmp_path):
    from prunetune.study.study import run_trials

    run_trials(spec(trials=3), Fake(count=SAMPLES), out=tmp_path)
    ran = call("report", tmp_path, "--no-pictures", "--json", *FAST)
    assert ran.status == 0, ran.err
    page = Page((tmp_path / "report.html").read_text())
    assert "nothing is known yet about held-out data" in page.words
    assert "The 8 calibration samples with the largest gap" in page.words


def test_bad_input_is_one_line(real, tmp_path):
    out, *_ = real
    refused("report", has=("STUDY", "received none"))
    refused("report", out, "--storage", "sqlite:///x.db", has=("STUDY and --storage",))
    refused("report", tmp_path / "no", has=("no study at",))
    refused("report", "--storage", "sqlite:///no.db", has=("no.db",))
    refused("report", out, "--study", "other", has=("holds no study 'other'",))
    refused("report", out, "-o", tmp_path, has=(".html",))
    refused("report", out, "-o", "a.png", has=("a.png", ".html"))
    (tmp_path / "file").write_text("")
    line = ("report", out, "--no-pictures", "-o", tmp_path / "file" / "a.html")
    refused(*line, has=("cannot write",))


def test_a_report_that_fails_does_not_fail_the_search(tmp_path, monkeypatch, real):
    def broken(*args, **kwargs):
        raise RuntimeError("no page")

    monkeypatch.setattr("prunetune.review.report.report_file.render", broken)
    _, data, _ = real
    words = ("search", "--data", data, "--trials", "1", "--preset", "none", "--out", tmp_path / "r")
    ran = call(*words, "--no-cache", "--json", *FAST)
    assert ran.status == 0, ran.err
    assert ran.json["report"] is None
    assert "no report: RuntimeError: no page" in ran.err
    assert (tmp_path / "r" / "config.json").exists()


def test_a_study_in_postgresql_has_a_report_without_its_password(tmp_path, monkeypatch):
    from cluster import Postgres, binaries

    if binaries() is None:
        pytest.skip("PostgreSQL is not installed (pg_config, initdb, pg_ctl)")
    monkeypatch.chdir(tmp_path)
    with Postgres() as postgres:
        for name in ("one", "two"):
            run_search(
                spec(trials=4), Asked(), Asked(seed=1), out=tmp_path / name,
                storage=postgres.url, study_name=name,
            )  # fmt: skip
        words = ("report", "--storage", postgres.url, "--study", "two")
        ran = call(*words, "--no-pictures", "--json", *FAST)
        assert ran.status == 0, ran.err
        refused("report", postgres.url, has=("'one', 'two'",))
    assert ran.json["report"] == "two-report.html"
    text = Path("two-report.html").read_text()
    assert "se@cret" not in text
    assert "se%40cret" not in text
    assert "postgres:***@127.0.0.1" in text
