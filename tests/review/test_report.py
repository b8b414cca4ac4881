"""``report``: the page works for every kind of study, and what data says stays text."""

import json
import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import optuna
import plotly.graph_objects as go
import pytest
from cli_runner import call, picture, refused, write_rows, write_set
from hypothesis import given
from hypothesis import strategies as st
from made_studies import NASTY, NASTY_FILE, SAMPLES, Asked, made_study
from test_study import Fake, spec

from prunetune import models
from prunetune.review import plots, theme
from prunetune.review.decoded import decoded, importances
from prunetune.review.facts import study_facts
from prunetune.review.report import report, report_charts, sample_plots
from prunetune.review.report.report import Pictures, render
from prunetune.review.report.worst import Panel, Worst, worst_samples
from prunetune.review.words import config_sentences, verdict
from prunetune.study.find import find_study
from prunetune.study.outcome.intervals import bootstrap_ci
from prunetune.study.outcome.verdict import TOO_FEW
from prunetune.study.study import run_search

FAST = ("--threads", "1")
SECTIONS = {"config", "held-out", "history-0", "front", "schedules", "importance", "parallel"}
SECTIONS |= {"types", "gaps", "worst", "trials", "provenance"}


class Page(HTMLParser):
    """What a browser makes of a page: elements, ids, attributes, text outside scripts."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.ids, self.links, self.figures = Counter(), [], [], {}
        self.text, self._inside, self.handlers = [], "", []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements[tag] += 1
        given = dict(attrs)
        self.ids += [given["id"]] if "id" in given else []
        self.links += [given[k] for k in ("src", "href") if given.get(k)]
        self.handlers += [name for name in given if name.startswith("on")]
        self._inside = given.get("data-figure", tag) if tag in ("script", "style") else ""

    def handle_endtag(self, tag):
        self._inside = ""

    def handle_data(self, data):
        if self._inside.startswith("plot-"):
            self.figures[self._inside] = json.loads(data)
        elif not self._inside:
            self.text.append(data)

    @property
    def words(self):
        return " ".join(" ".join(self.text).split())


def page_of(study, pictures=None, shown="here"):
    facts = study_facts(study)
    return Page(render(facts, shown, pictures or Pictures(worst_samples(facts), "none asked for.")))


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    """A finished search without a model, whose data is nasty."""
    out = tmp_path_factory.mktemp("searched")
    run_search(spec(trials=24, presets=["uniform"]), Asked(), Asked(seed=1), out=out)
    return find_study(str(out))


# -- every kind of study ------------------------------------------------------------------------


def test_a_finished_search_shows_everything(searched):
    page = page_of(searched.study)
    assert set(page.ids) >= SECTIONS
    assert max(Counter(page.ids).values()) == 1
    assert len(page.figures) == 7
    assert "beat" in page.words
    record = study_facts(searched.study).record
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
        6,
    ),
    "one objective of two grows": (
        {"trials": 25, "directions": ["minimize", "maximize"]},
        "objective 1",
        6,
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
    drawn, wanted = len(page.figures), 7 + ("objective" in kind)
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
    assert "keep no figures of single samples" in page.words


def test_questions_without_types_or_answers(tmp_path):
    kind = {"types": (), "answers": False}
    run_search(spec(trials=4), Asked(**kind), Asked(seed=1, **kind), out=tmp_path)
    page = page_of(find_study(str(tmp_path)).study)
    assert "The held-out data has no types of questions" in page.words
    typed = tmp_path / "typed"
    kind = {"types": ("a", "b"), "answers": False}
    run_search(spec(trials=4), Asked(**kind), Asked(seed=1, **kind), out=typed)
    facts = study_facts(find_study(str(typed)).study)
    name, rows = sample_plots.by_type(facts)
    assert name == "top-1 agreement"
    assert [row.name for row in rows] == ["a", "b"]
    assert sum(row.count for row in rows) == 48
    # Four questions about each picture: they are drawn together.
    assert facts.record["samples"]["picture"] == [i // 4 * 4 for i in range(48)]
    agrees = facts.record["configs"]["tuned"]["agrees"][::2]
    pictures = [str(i // 2) for i in range(24)]
    assert rows[0].shares["tuned"][1:] == bootstrap_ci(agrees, pictures)
    del facts.record["samples"]["picture"]
    assert sample_plots.by_type(facts)[1][0].shares["tuned"][1:] == bootstrap_ci(agrees)


def test_a_config_of_a_scorer_that_is_not_installed_is_left_out():
    study = made_study(trials=6, stopped=0.0)
    broken = study.get_trials(deepcopy=False)[3].user_attrs["config"]
    broken["stages"][0]["scorers"][0]["name"] = "not_installed"
    facts = study_facts(study)
    assert facts.trials[3].config is None
    assert facts.trials[3].measured
    assert len(page_of(study).figures) >= 5


# -- what figures show --------------------------------------------------------------------------


def figures_of(study):
    facts = study_facts(study)
    found = {
        "front": plots.front(facts),
        "schedules": plots.schedules(facts),
        "importance": plots.importance(facts, importances(facts)),
        "parallel": report_charts.parallel(facts),
        "types": sample_plots.types_figure(facts),
        "gaps": sample_plots.gap_distribution(facts),
    }
    found |= {f"history {k}": plots.history(facts, k) for k in range(len(facts.metrics))}
    return {name: figure for name, figure in found.items() if figure is not None}


OKABE_ITO = {"#0072b2", "#d55e00", "#009e73", "#e69f00", "#56b4e9", "#cc79a7", "#f0e442"}
GREYS = {"#8c8c8c"}


def test_every_figure_has_axes_a_title_and_colours_for_all(searched):
    made = made_study(trials=30, directions=["minimize", "maximize"])
    every = [*figures_of(searched.study).values(), *figures_of(made).values()]
    assert len(every) == 13
    for figure in every:
        assert len(theme.title_of(figure)) > 20
        for axis in (figure.layout.xaxis, figure.layout.yaxis):
            assert axis.title.text, theme.title_of(figure)
        names = [trace.name for trace in figure.data if trace.showlegend is not False]
        assert len(set(names)) == len(names)
        assert {c.lower() for c in colours(figure)} <= OKABE_ITO | GREYS


def colours(figure):
    for trace in figure.data:
        for part in (trace.marker, getattr(trace, "line", None)):
            if part is not None and isinstance(part.color, str):
                yield part.color


def test_another_palette_would_be_noticed():
    odd = go.Figure(go.Scatter(x=[1], y=[1], marker={"color": "red"}))
    assert not {c.lower() for c in colours(odd)} <= OKABE_ITO | GREYS


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=12))
def test_the_front_is_what_nothing_beats(points):
    study = optuna.create_study(directions=["minimize", "maximize"])
    study.set_user_attr("spec", spec().model_dump(mode="json"))
    for point in points:
        study.add_trial(optuna.trial.create_trial(values=[float(v) for v in point]))
    facts = study_facts(study)
    expected = {tuple(t.values) for t in study.best_trials}
    found = {facts.trials[n].values for n in facts.front}
    assert found == expected


def test_the_importance_is_of_what_decides():
    facts = study_facts(made_study(trials=120, stopped=0.0, presets=0))
    shares = importances(facts)
    assert sum(shares.values()) == pytest.approx(1.0)
    # See Fake.badness: coverage and topv by 1 each, the first layer by 0.1 a layer.
    assert set(list(shares)[:4]) & {"weight of coverage", "weight of topv", "first layer"}
    assert all(value >= 0 for value in shares.values())
    few = study_facts(made_study(trials=10))
    assert importances(few) == {}


def test_schedules_are_those_of_the_best_five():
    facts = study_facts(made_study(trials=30, stopped=0.0))
    shown = plots.shown_schedules(facts)
    assert [t.values[0] for t in shown] == sorted(t.values[0] for t in facts.trials)[:5]
    figure = plots.schedules(facts)
    for trial, trace in zip(shown, figure.data, strict=True):
        # Retention by layer: the mean is the budget.
        assert sum(trace.y[:-1]) / facts.num_layers == pytest.approx(0.25, abs=1e-6)
        assert f"trial {trial.number}" in trace.name


def test_decoded_parameters_name_what_a_config_decides():
    trial = study_facts(made_study(trials=1)).trials[0]
    found = decoded(trial.config)
    assert found["first layer"] == trial.config.stages[0].layer
    assert found["number of stages"] == len(trial.config.stages)
    said = " ".join(config_sentences(trial.config))
    for stage in trial.config.stages:
        assert f"{100 * stage.retention:.3g}% of the image tokens stay" in said
    assert trial.config.separators == found["separators"]


# -- text from data stays text ------------------------------------------------------------------


def nasty_pictures():
    panel = Panel(NASTY, "data:image/webp;base64,AAAA", 8, 8)
    sample = Worst(
        0, "held-out", (("gap", NASTY),), NASTY_FILE, NASTY, NASTY, NASTY, NASTY, NASTY, (panel,),
        NASTY,
    )  # fmt: skip
    return Pictures([sample], NASTY)


def nasty_page(searched):
    study = made_study(trials=25, failed=1, name=f"study {NASTY} {NASTY_FILE}")
    study.set_user_attr("record", searched.study.user_attrs["record"])
    return render(study_facts(study), f"/tmp/{NASTY_FILE}", nasty_pictures())


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


# -- the verb -----------------------------------------------------------------------------------


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


def test_a_check_mark_needs_enough_pictures(searched):
    facts = study_facts(searched.study)
    result = facts.record["result"]
    result["best"] |= {"held_out_gap": 0.0, "accuracy": 1.0}
    assert verdict(facts) == (result["verdict"], "good")
    result["verdict"] = f"1 held-out picture is {TOO_FEW}."
    assert verdict(facts) == (result["verdict"], "unsure")
