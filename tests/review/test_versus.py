"""Two studies in one page, what a config saves, and one importance for page and dashboard."""

import json
from types import SimpleNamespace

import pytest
from cli_runner import call, refused
from fakes import Fake, spec
from made_studies import Asked, made_study
from pages import Page

from prunetune.config import PruningConfig
from prunetune.provenance import Pair, Saving
from prunetune.review.dashboard.importance import OneImportance
from prunetune.review.dashboard.notes import study_note
from prunetune.review.decoded import importances
from prunetune.review.facts import study_facts
from prunetune.review.report.cards import _saved
from prunetune.review.report.versus import Side, apart
from prunetune.review.report.versus_page import render_versus
from prunetune.review.saved import saved_rows, saved_words
from prunetune.study.find import files_of, find_study
from prunetune.study.outcome.savings import keep_saving, saving_of
from prunetune.study.study import run_search


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """Two folders whose studies were measured on the same held-out samples."""
    folders = []
    for keep in (0.25, 0.1):
        folders.append(tmp_path_factory.mktemp("pair") / str(keep))
        wanted = spec(trials=8, keep=keep)
        run_search(wanted, Asked(), Asked(96, seed=1), out=folders[-1])
    return folders


def side(name, folder):
    found = find_study(str(folder))
    return Side(name, study_facts(found.study, found.spec), found.shown)


def test_two_studies_stand_in_one_page(pair, tmp_path):
    target = tmp_path / "both.html"
    ran = call("report", *pair, "-o", target, "--json")
    assert ran.status == 0, ran.err
    page = Page(target.read_text("utf-8"))
    assert ran.json["verdict"] in page.words
    assert len(page.figures) == 3
    assert {"figures", "front", "types", "schedules", "spec"} <= set(page.ids)
    for folder in pair:
        facts = study_facts(find_study(str(folder)).study)
        assert facts.name in page.words
        assert facts.record["result"]["verdict"] in page.words
    assert "keep 0.25 0.1" in page.words
    assert not page.handlers


def test_the_difference_is_paired_where_samples_are_the_same(pair):
    one, other = (side(name, folder) for name, folder in zip("AB", pair, strict=True))
    found = apart(one.facts, other.facts)
    right = [s.facts.record["configs"]["tuned"]["correct"] for s in (one, other)]
    assert found.mean == pytest.approx((sum(right[1]) - sum(right[0])) / 96)
    assert found.low < found.mean < found.high
    same = Side("B", one.facts, "here")
    assert "A and B tie" in render_versus(one, same)
    # The twin: other samples are not paired.
    other.facts.record["samples"]["id"][0] = "another"
    assert apart(one.facts, other.facts) is None
    assert "cannot be paired" in render_versus(one, other)
    unfinished = Side("B", study_facts(made_study(trials=8)), "here")
    assert "B has no result on held-out data yet" in render_versus(one, unfinished)


def test_a_comparison_takes_two_studies(pair, tmp_path):
    refused("report", pair[0], pair[1], "--bench", has=("a comparison times nothing",))
    refused("report", pair[0], tmp_path / "none", has=("none",))


SAVING = Saving(
    device="cpu, 1 thread", dtype="float32", requests=3, rounds=5, image_tokens=64, text_tokens=9,
    new_tokens=2, prefill_ms=Pair(unpruned=30, pruned=10), first_ms=Pair(unpruned=40, pruned=20),
    total_ms=Pair(unpruned=50, pruned=25), kv_mib=Pair(unpruned=2, pruned=0.5), faster=2.0,
    faster_interval=(1.9, 2.1), price_per_hour=2.5,
    million_requests=Pair(unpruned=34.7, pruned=17.4),
)  # fmt: skip


def test_what_is_saved_stands_in_page_notes_and_config(tmp_path):
    result = run_search(spec(trials=6), Fake(), Asked(seed=1), out=tmp_path)
    found = find_study(str(tmp_path))
    keep_saving(found.study, result.trial, SAVING, files_of(found, result.trial))
    found = find_study(str(tmp_path))
    assert saving_of(found.study.user_attrs, result.trial) == SAVING
    assert saving_of(found.study.user_attrs, result.trial + 1) is None
    assert PruningConfig.load(tmp_path / "config.json").provenance.saving == SAVING
    made = call("export", tmp_path, "-o", tmp_path / "x.json", "--json")
    assert made.json["saving"] == {**json.loads(SAVING.model_dump_json()), "told": SAVING.told}
    note = study_note(study_facts(found.study))
    assert "### What it saves" in note
    ran = call("report", tmp_path, "--no-pictures")
    assert ran.status == 0, ran.err
    page = Page((tmp_path / "report.html").read_text("utf-8"))
    assert saved_words(SAVING) in page.words
    assert "a million requests 17.4" in page.words
    # The twin: without a measurement nothing is claimed.
    keep_saving(found.study, result.trial + 1, SAVING, files_of(found, result.trial + 1))
    found.study.set_user_attr("savings", {})
    assert "What it saves" not in study_note(study_facts(find_study(str(tmp_path)).study))


@pytest.mark.parametrize(
    ("interval", "said"),
    [((1.9, 2.1), "faster"), ((0.5, 0.9), "does not pay"), ((0.9, 1.1), "no difference")],
)
def test_it_pays_only_beyond_the_spread(interval, said):
    total = Pair(unpruned=50, pruned=80 if interval[1] < 1 else 25)
    saving = SAVING.model_copy(update={"faster_interval": interval, "total_ms": total})
    assert said in saved_words(saving)
    # The twin: where the medians are on the other side, nothing is claimed, of money neither.
    other = Pair(unpruned=total.pruned, pruned=total.unpruned)
    words = saved_words(saving.model_copy(update={"total_ms": other}))
    assert "no difference" in words
    assert "within noise" in words


def test_money_is_claimed_as_the_time_is():
    assert "save 17.4 of 34.7 (16.4 to 18.2)" in saved_words(SAVING)
    assert saved_rows(SAVING)[-1][2] == "17.4"
    noisy = SAVING.model_copy(update={"faster_interval": (0.98, 2.1)})
    assert "a million requests cost 34.7, and the difference is within noise" in saved_words(noisy)
    assert saved_rows(noisy)[-1][1:] == ("34.7", "within noise")
    assert [card.value for card in _saved(noisy)][-1] == "within noise"


def test_the_dashboard_has_the_reports_importance():
    study = made_study(trials=40, stopped=0.0)
    answered = []

    def inner(environ, start):
        start("200 OK", [])
        return [b"optuna's"]

    def ask(storage, path):
        app = OneImportance(inner, storage)
        return b"".join(app({"PATH_INFO": path}, lambda *given: answered.append(given[0])))

    path = f"/api/studies/{study._study_id}/param_importances"
    (rows,) = json.loads(ask(study._storage, path))["param_importances"]
    facts = study_facts(study)
    assert {row["name"]: row["importance"] for row in rows} == importances(facts)
    assert ask(study._storage, "/api/studies") == b"optuna's"
    # The twin: a study of others has Optuna's.
    others = SimpleNamespace(get_study_user_attrs=lambda study_id: {})
    assert ask(others, path) == b"optuna's"
