"""What figures show."""

import optuna
import plotly.graph_objects as go
import pytest
from fakes import spec
from hypothesis import given
from hypothesis import strategies as st
from made_studies import made_study

from prunetune.review import plots, theme
from prunetune.review.decoded import decoded, importances
from prunetune.review.facts import study_facts
from prunetune.review.fronts import dominated
from prunetune.review.report import report_charts, sample_plots, type_plots
from prunetune.review.report.cards import columns
from prunetune.review.words import stage_words

OKABE_ITO = {"#0072b2", "#d55e00", "#009e73", "#e69f00", "#56b4e9", "#cc79a7", "#f0e442"}


GREYS = {"#8c8c8c"}


def figures_of(study):
    facts = study_facts(study)
    found = {
        "front": plots.front(facts),
        "schedules": plots.schedules(facts),
        "importance": plots.importance(facts, importances(facts)),
        "parallel": report_charts.parallel(facts),
        "types": type_plots.types_figure(facts),
        "growth": plots.growth(facts),
        "gaps": sample_plots.gap_distribution(facts),
    }
    found |= {f"history {k}": plots.history(facts, k) for k in range(len(facts.metrics))}
    return {name: figure for name, figure in found.items() if figure is not None}


def test_every_figure_has_axes_a_title_and_colours_for_all(searched):
    made = made_study(trials=30, directions=["minimize", "maximize"])
    every = [*figures_of(searched.study).values(), *figures_of(made).values()]
    assert len(every) == 14
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


def test_no_card_stands_alone_in_a_row():
    for count in range(1, 30):
        wide = columns(count)
        assert 1 <= wide <= 6
        assert count <= wide or count % wide != 1
    # The twin: six in a row would leave the seventh alone.
    assert 7 % 6 == 1
    assert columns(7) == 4


def test_a_fronts_figures_speak_about_the_front():
    made = made_study(
        trials=30, directions=["minimize"] * 2, metric_names=["cosine", "mean_retention"]
    )
    facts = study_facts(made)
    assert [t.values[1] for t in facts.along] == sorted(t.values[1] for t in facts.along)
    assert facts.best is facts.knee is not None
    drawn = plots.front(facts)
    title = theme.title_of(drawn)
    assert f"The knee is {facts.knee.name}" in title
    assert f"{len(facts.along)} trials go from" in title
    assert drawn.layout.xaxis.title.text.startswith("cost: ")
    named = [trace.name for trace in drawn.data]
    assert f"knee: {facts.knee.name}" in named
    assert not any(name.startswith("ships") for name in named)
    assert plots.shown_schedules(facts)[0] is facts.knee
    assert {t.number for t in plots.shown_schedules(facts)} <= facts.front | {facts.knee.number}
    area = plots.growth(facts).data[0].y
    assert list(area) == sorted(area)
    assert area[-1] == 1


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=9))
def test_the_area_of_a_front_is_what_its_points_cover(points):
    corner = max(c for c, _ in points), max(m for _, m in points)
    covered = {
        (x, y)
        for x in range(corner[0])
        for y in range(corner[1])
        if any(c <= x and m <= y for c, m in points)
    }
    assert dominated(points, corner) == len(covered)


def test_losses_by_kind_are_against_unpruned(searched):
    facts = study_facts(searched.study)
    name, rows = type_plots.by_type(facts)
    assert name == "accuracy"
    samples, tuned = facts.record["samples"], facts.record["configs"]["tuned"]["correct"]
    for row in rows:
        places = [i for i, kind in enumerate(samples["type"]) if kind == row.name]
        lost = sum(samples["unpruned"][i] - tuned[i] for i in places) / len(places)
        assert row.losses["tuned"].mean == pytest.approx(lost)
    assert [r.losses["tuned"].mean for r in rows] == sorted(
        (r.losses["tuned"].mean for r in rows), reverse=True
    )
    # The title names the largest one; nothing is named where nothing is lost.
    tuned[:] = [int(kind != rows[-1].name) for kind in samples["type"]]
    samples["unpruned"][:] = [True] * len(tuned)
    title = theme.title_of(type_plots.types_figure(facts))
    assert title.startswith("The largest loss of accuracy is on")
    assert "100.0 (" in title
    tuned[:] = [1] * len(tuned)
    title = theme.title_of(type_plots.types_figure(facts))
    assert title == "No kind of question loses accuracy against the unpruned model"


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
    for stage, said in zip(trial.config.stages, stage_words(trial.config), strict=True):
        assert f"{100 * stage.retention:.3g}% of the image tokens stay" in said.keeps
    assert trial.config.separators == found["separators"]
