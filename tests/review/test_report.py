"""``report``: the page works for every kind of study, and what data says stays text."""

import json
import re
from collections import Counter

import optuna
import pytest
from fakes import spec
from hypothesis import given
from hypothesis import strategies as st
from made_studies import NASTY, NASTY_FILE, Asked, made_study
from pages import Page, nasty_page, page_of

from prunetune.review.facts import study_facts
from prunetune.review.report import report, report_charts, type_plots
from prunetune.review.report.report import Pictures, render
from prunetune.review.report.worst import worst_samples
from prunetune.review.words import verdict
from prunetune.study.find import find_study
from prunetune.study.outcome.promise import lost
from prunetune.study.study import run_search

SECTIONS = {"config", "held-out", "history-0", "front", "schedules", "importance", "parallel"}
SECTIONS |= {"types", "gaps", "worst", "trials", "provenance"}


# -- every kind of study ------------------------------------------------------------------------


def test_a_finished_search_shows_everything(searched):
    page = page_of(searched.study)
    assert set(page.ids) >= SECTIONS
    assert max(Counter(page.ids).values()) == 1
    assert len(page.figures) == 7
    record = study_facts(searched.study).record
    assert record["result"]["verdict"] in page.words
    assert "best baseline" in record["result"]["verdict"]
    for name in (*(r["name"] for r in record["result"]["baselines"]), "tuned", "unpruned"):
        assert name in page.words
    assert f"{record['result']['best']['held_out_gap']:.4f}" in page.words
    assert "prunetune search --spec study.toml" in page.words
    assert "[space]" in page.words
    # Eight samples, the largest gap first.
    gaps = [float(g) for g in re.findall(r"gap (\d\.\d{4}) KL", page.words)]
    every = sorted(record["configs"]["tuned"]["gap"], reverse=True)
    assert gaps == pytest.approx(every[:8], abs=1e-4)


KINDS = {
    "running": ({"trials": 12, "running": 2}, "still running (12 of 40", 5),
    "interrupted": ({"trials": 5, "stopped": 0.0}, "was stopped (5 of 40", 5),
    "all done": ({"trials": 5, "wanted": 5}, "has run its trials (5 of 5", 5),
    "one trial": ({"trials": 1}, "trial 0 (preset topv) is best so far", 4),
    "one running trial": ({"trials": 0, "running": 1}, "No trial has finished yet", 0),
    "nothing": ({"trials": 0}, "No trial has been run yet", 0),
    "all failed": (
        {"trials": 0, "failed": 3},
        "All 3 trials failed, the last with",
        0,
    ),
    "one failed": ({"trials": 0, "failed": 1}, "The only trial failed", 0),
    "some failed": ({"trials": 20, "failed": 2}, "trials finished", 6),
    "no baselines": ({"trials": 25, "presets": 0}, "There are no baselines among the trials", 6),
    "two objectives": (
        {"trials": 25, "directions": ["minimize"] * 2, "metric_names": ["gap", "retention"]},
        "on the front of gap and retention",
        5,
    ),
    "one objective of two grows": (
        {"trials": 25, "directions": ["minimize", "maximize"]},
        "objective 1",
        5,
    ),
    "another metric": ({"trials": 8, "metric": "kl", "metric_names": ["kl"]}, "KL of the next", 5),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_study_has_a_page(kind):
    made, said, figures = KINDS[kind]
    page = page_of(made_study(**made))
    assert said in page.words, page.words[:600]
    assert len(page.figures) >= figures
    assert set(page.ids) >= SECTIONS
    assert "None" not in page.words.replace("None at", "")
    assert "nan" not in page.words.lower().split()
    # What is not drawn is explained.
    drawn, wanted = len(page.figures), 7
    reasons = ("No trial has been measured", "This needs", "Held-out data has not been measured")
    assert drawn + sum(page.words.count(reason) for reason in reasons) >= wanted


def test_a_resumed_study_says_that_its_result_is_of_before(tmp_path):
    run_search(spec(trials=6), Asked(), Asked(seed=1), out=tmp_path)
    facts = study_facts(find_study(str(tmp_path)).study)
    assert facts.settled
    more = find_study(str(tmp_path)).study
    more.add_trial(optuna.trial.create_trial(state=optuna.trial.TrialState.FAIL))
    page = page_of(find_study(str(tmp_path)).study)
    assert "1 more trial has ended since this result" in page.words
    assert not study_facts(more).settled
    run_search(spec(trials=9), Asked(), Asked(seed=1), out=tmp_path)
    page = page_of(find_study(str(tmp_path)).study)
    assert "since this result" not in page.words
    assert "ended since" not in page.words


def test_a_search_for_a_front_shows_its_points(tmp_path):
    wanted = spec(trials=12, objective="pareto", keep=0.1, up_to=0.5, trial_pruner="none")
    result = run_search(wanted, Asked(), Asked(seed=1), out=tmp_path)
    page = page_of(find_study(str(tmp_path)).study)
    assert result.verdict in page.words
    assert "mean retention 10% to 50% over all decoder layers" in page.words
    for point in result.points:
        assert f"trial {point.trial}" in page.words
        assert f"{point.held_out.gap:.4f}" in page.words
    assert len(page.figures) >= 4
    assert facts_of(tmp_path).detail["trial"] == result.knee
    assert "The 8 held-out samples with the largest gap" in page.words
    assert "fell from" not in page.words


def facts_of(folder):
    return study_facts(find_study(str(folder)).study)


def test_questions_without_types_or_answers(tmp_path):
    kind = {"types": (), "answers": False}
    run_search(spec(trials=4), Asked(**kind), Asked(seed=1, **kind), out=tmp_path)
    page = page_of(find_study(str(tmp_path)).study)
    assert "The held-out data names no kinds of questions" in page.words
    typed = tmp_path / "typed"
    kind = {"types": ("a", "b"), "answers": False}
    run_search(spec(trials=4), Asked(**kind), Asked(seed=1, **kind), out=typed)
    facts = study_facts(find_study(str(typed)).study)
    name, rows = type_plots.by_type(facts)
    assert name == "agreement"
    assert {row.name for row in rows} == {"a", "b"}
    assert sum(row.count for row in rows) == 48
    # Four questions about each picture: they are drawn together.
    assert facts.record["samples"]["picture"] == [i // 4 * 4 for i in range(48)]
    lost_there = [1.0 - x for x in facts.record["configs"]["tuned"]["agrees"][::2]]
    pictures = [str(i // 2) for i in range(24)]
    found = {row.name: row.losses["tuned"] for row in rows}["a"]
    assert (found.mean, found.low) == pytest.approx(
        (lost(lost_there, pictures).mean, lost(lost_there, pictures).low)
    )
    del facts.record["samples"]["picture"]
    alone = {row.name: row.losses["tuned"] for row in type_plots.by_type(facts)[1]}["a"]
    assert alone.pictures == 24 == 2 * found.pictures


def test_a_config_of_a_scorer_that_is_not_installed_is_left_out():
    study = made_study(trials=6, stopped=0.0)
    broken = study.get_trials(deepcopy=False)[3].user_attrs["config"]
    broken["stages"][0]["scorers"][0]["name"] = "not_installed"
    facts = study_facts(study)
    assert facts.trials[3].config is None
    assert facts.trials[3].measured
    assert len(page_of(study).figures) >= 5


# -- text from data stays text ------------------------------------------------------------------


def scripts_and_handlers(text):
    page = Page(text)
    return page.elements["script"] - len(page.figures), page.handlers


def test_text_from_data_stays_text(searched):
    text = nasty_page(searched)
    assert scripts_and_handlers(text) == (2, [])
    page = Page(text)
    assert page.words.count(NASTY) > 10
    assert NASTY_FILE in page.words
    labels = json.dumps(page.figures["plot-types"])
    assert "&lt;script&gt;" in labels
    assert NASTY not in labels


def test_a_page_without_escaping_would_be_noticed(searched, monkeypatch):
    given = report.Environment
    monkeypatch.setattr(report, "Environment", lambda **kw: given(**{**kw, "autoescape": False}))
    scripts, _ = scripts_and_handlers(nasty_page(searched))
    assert scripts > 2


@given(st.text())
def test_json_in_a_page_ends_no_script(text):
    data = report_charts._for_script({"text": f"</script>{text}<!--"})
    assert not set("<>&\u2028\u2029") & set(data)
    assert json.loads(data) == {"text": f"</script>{text}<!--"}


def test_the_page_loads_nothing_and_holds_plotly_once(searched):
    text = nasty_page(searched)
    page = Page(text)
    assert all(link.startswith(("#", "data:")) for link in page.links), page.links
    assert "default-src 'none'" in text
    assert text.count("plotly.js v") == 1
    assert len(text.encode()) < 8 << 20


def test_plotly_is_held_without_its_wrapper_where_it_is_known(monkeypatch):
    whole = report.get_plotlyjs()
    bare = report.plotly_script()
    assert 0 < len(whole) - len(bare) < 500
    assert "module.exports = factory()" not in bare[:2000]
    assert "* Licensed under the MIT license" in bare[:200]
    assert bare.rstrip().endswith("window.Plotly = Plotly;")
    # Of another form: unchanged.
    unclosed = whole.replace("return Plotly;\n", "return Plotly\n")
    for other in (unclosed, f"{whole}more();", "plain();"):
        monkeypatch.setattr(report, "get_plotlyjs", lambda other=other: other)
        assert report.plotly_script() == other


def test_a_study_of_500_trials_is_one_small_file():
    study = made_study(trials=500, wanted=500)
    facts = study_facts(study)
    text = render(facts, "here", Pictures(worst_samples(facts), "none"))
    assert len(text.encode()) < 8 << 20
    page = Page(text)
    assert len(page.figures) == 6
    assert "All 500 trials" in page.words
    said, _ = verdict(facts)
    assert "500 of 500" in said


def test_a_check_mark_needs_a_result_beyond_noise(searched):
    facts = study_facts(searched.study)
    result = facts.record["result"]
    for tick, tone in ((True, "good"), (False, "unsure")):
        result["tick"] = tick
        assert verdict(facts) == (result["verdict"], tone)
    for problem in ("answers_nothing", "unpruned_answers_nothing"):
        result["judged"]["problem"] = problem
        assert verdict(facts)[1] == "bad"
    # What a release of before says is no proof.
    del result["judged"], result["tick"]
    result["verdict"] = "The tuned config beats every baseline; within noise"
    assert verdict(facts) == (result["verdict"], "unsure")
