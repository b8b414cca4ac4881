"""Two objectives: the front of metric and cost, from the first trial to the exported file."""

import json

import optuna
import pytest
from cli_runner import call, refused, write_set
from fakes import SUMS, Fake, search, spec, trials_of
from hypothesis import given
from hypothesis import strategies as st
from optuna.trial import TrialState, create_trial

from prunetune.budget import mean_retention
from prunetune.config import PruningConfig
from prunetune.errors import StudyError
from prunetune.presets import preset_names
from prunetune.review.facts import study_facts
from prunetune.review.report.tables import held_out_table
from prunetune.space.space import Space
from prunetune.space.starts import first_starts
from prunetune.spec import SpaceSpec, StudySpec
from prunetune.study.find import find_study
from prunetune.study.outcome.pareto import choose_point
from prunetune.study.study import run_trials
from prunetune.study.trials.best import cost_of, front, metric_of, since_better, spread

STARTS = 8 + len(first_starts(Space.of(spec(), Fake().facts())))
"""Queued first: covering sets, four presets, four blends."""
WIDE = {
    "objective": "pareto",
    "keep": 0.05,
    "up_to": 0.5,
    "trial_pruner": "none",
    "space": SpaceSpec(**SUMS),
}


class Cheap(Fake):
    """What is kept helps: the front of this model has many points."""

    def badness(self, config):
        kept = mean_retention(config.stages, 16)
        return super().badness(config) + 0.3 * (1 - kept)


def study_of(*values):
    study = optuna.create_study(directions=["minimize"] * len(values[0]))
    study.add_trials([create_trial(state=TrialState.COMPLETE, values=v) for v in values])
    return study


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=12))
def test_the_front_is_optunas(values):
    study = study_of(*values)
    ours = {tuple(t.values) for t in front(study)}
    assert ours == {tuple(t.values) for t in study.best_trials}
    assert [cost_of(t) for t in front(study)] == sorted({cost_of(t) for t in front(study)})


def test_how_long_nothing_was_better():
    study = study_of((0.5, 0.5), (0.6, 0.6), (0.4, 0.6), (0.7, 0.7), (0.4, 0.6), (0.5, 0.9))
    assert since_better(study) == 3  # an equal of the third is no better
    assert since_better(study_of((0.5,), (0.6,), (0.5,), (0.7,))) == 3
    assert since_better(study_of((0.5,), (0.6,), (0.4,))) == 0
    pruned = study_of((0.5,))
    pruned.add_trial(create_trial(state=TrialState.PRUNED, value=0.1, intermediate_values={0: 0.1}))
    pruned.add_trial(create_trial(state=TrialState.FAIL))
    assert since_better(pruned) == 1
    assert since_better(optuna.create_study()) == 0


def test_what_a_search_starts_from_is_no_plateau():
    study = study_of((0.5,), (0.6,), (0.7,))
    assert since_better(study) == 2
    for attr in ("preset", "start"):
        study.enqueue_trial({}, user_attrs={attr: "some"})
        assert since_better(study) == 0  # waiting; so are those that a killed worker left
    study.add_trial(create_trial(state=TrialState.COMPLETE, values=(0.6,)))
    assert since_better(study) == 1


def test_a_start_that_is_run_again_is_no_reason_for_patience():
    study = study_of((0.5,), (0.6,), (0.7,))
    again = {"system_attrs": {"failed_trial": 0, "retry_history": [0]}}
    for attr in ("preset", "start"):
        made = {"values": (0.6,), "user_attrs": {attr: "some"}}
        study.add_trial(create_trial(state=TrialState.COMPLETE, **made, **again))
        assert since_better(study) == 2
    # The twin: what was queued there is a start of the search.
    study.add_trial(create_trial(state=TrialState.COMPLETE, **made))
    assert since_better(study) == 0


def test_points_are_spread_over_the_front():
    trials = front(study_of(*[(9 - k, k) for k in range(9)]))
    assert [t.number for t in spread(trials, 5)] == [0, 2, 4, 6, 8]
    assert spread(trials, 20) == trials
    assert len(spread(trials, 1)) == 1


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    out = tmp_path_factory.mktemp("front")
    return out, search(out, Cheap(), Cheap(seed=1), trials=45, **WIDE)


def test_a_search_for_a_front(searched):
    out, result = searched
    trials = trials_of(out)
    assert result.trials == {"complete": 45, "pruned": 0, "failed": 0}
    assert result.study == "fake/keep0.05-0.5/cosine"
    for trial in trials:
        if trial.state is TrialState.COMPLETE:
            config = PruningConfig.parse(trial.user_attrs["config"])
            assert cost_of(trial) == pytest.approx(mean_retention(config.stages, 16), abs=1e-9)
            assert 0.05 - 1e-9 <= cost_of(trial) <= 0.5 + 1e-9
    # Presets at both ends and between.
    costs = [cost_of(t) for t in trials if t.user_attrs.get("preset") == "uniform"]
    assert costs == pytest.approx([0.05, 0.1581, 0.5], abs=1e-6)
    assert len(result.front) > 5
    assert len(result.points) == 5
    assert [p.trial for p in (result.points[0], result.points[-1])] == [
        result.front[0][0],
        result.front[-1][0],
    ]
    metrics = [metric for _, metric, _ in result.front]
    assert metrics == sorted(metrics, reverse=True)


def test_points_are_compared_at_their_own_cost_and_written(searched):
    out, result = searched
    for point in result.points:
        assert {row.name for row in point.baselines} == {*preset_names(), "resize"}
        for row in point.baselines:
            if row.scores is not None:
                assert row.mean_retention == pytest.approx(point.cost, abs=1e-8)
        config = PruningConfig.load(out / "front" / f"trial-{point.trial}.json")
        assert config == point.config
        assert config.provenance.trial == point.trial
        assert config.provenance.budget["keep"] == pytest.approx(point.cost)
        assert config.provenance.gap == pytest.approx(point.calibration.gap)
    assert result.knee in {p.trial for p in result.points}
    (bend,) = (p for p in result.points if p.trial == result.knee)
    assert result.shown is bend
    assert result.verdict.startswith(f"The front's knee is trial {bend.trial} (mean retention")
    better = sum(p.judged.outcome == "better" for p in result.points)
    said = "5 points of the front were compared with the best baseline of their cost: "
    assert said in result.verdict
    assert (f"{said}{better} better than it" in result.verdict) == (better > 0)
    assert result.tick == (better == 5)
    data = json.loads(json.dumps(result.to_dict()))
    assert list(data) == [
        "study", "budget", "trials", "stopped", "seconds", "sample_evaluations", "objectives",
        "front", "points", "knee", "unpruned", "judged", "tick", "verdict", "saving",
        "report",
    ]  # fmt: skip
    assert data["objectives"] == ["cosine", "mean_retention"]
    assert set(data["front"][0]) == {"trial", "cosine", "mean_retention"}
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert {"value", "cost"} <= set(lines[0])
    # The report tells how far each rival is behind, as it does for one budget.
    table = held_out_table(study_facts(find_study(str(out)).study))
    apart = {row[0]: row[3:5] for row in table.rows if row[0] in {"uniform", "divprune"}}
    assert all(" to " in interval and p != "-" for interval, p in apart.values())
    assert len(apart) == 2


def test_the_best_point_up_to_a_bound_is_chosen(searched):
    out, result = searched
    study = optuna.load_study(study_name=None, storage=f"sqlite:///{out}/study.db")
    wide = StudySpec(model="fake", **WIDE)
    for bound in (0.06, 0.2, 0.25, 0.9):
        fitting = [(m, t) for t, m, c in result.front if c <= bound]
        assert choose_point(study, wide, bound).number == min(fitting)[1]
        assert metric_of(choose_point(study, wide, bound)) == min(
            metric_of(t)
            for t in study.get_trials(states=(TrialState.COMPLETE,))
            if cost_of(t) <= bound
        )
    with pytest.raises(StudyError, match=r"0\.01, allowed 0\.05 or more") as error:
        choose_point(study, wide, 0.01)
    assert f"{result.front[-1][2]:.4g}" in str(error.value)


def test_a_front_is_resumed_with_fresh_points(tmp_path):
    search(tmp_path, Cheap(), trials=6, presets=(), **WIDE)
    before = [t.params for t in trials_of(tmp_path) if t.state.is_finished()]
    result = search(tmp_path, Cheap(), trials=12, presets=(), **WIDE)
    after = [t.params for t in trials_of(tmp_path)]
    assert result.trials["complete"] == 12
    assert after[:6] == before
    assert not any(p in before for p in after[6:])
    wider = spec(trials=12, presets=(), **{**WIDE, "up_to": 0.6})
    with pytest.raises(StudyError, match=r"up_to \(0\.5 -> 0\.6\)"):
        run_trials(wider, Cheap(), out=tmp_path, study_name="fake/keep0.05-0.5/cosine")


@pytest.mark.parametrize("name", ["nsga2", "random", "qmc", "gp"])
def test_samplers_that_search_a_front(tmp_path, name):
    result = search(tmp_path, Cheap(), sampler=name, trials=12, presets=(), **WIDE)
    assert result.trials["complete"] == 12


# Patience.


def test_a_search_stops_where_nothing_gets_better(tmp_path):
    class Flat(Fake):
        def badness(self, config):
            return 0.1

    result = search(tmp_path / "flat", Flat(), trials=60, patience=7)
    # The first trial is the best. Presets and other starts do not count; seven trials follow them.
    queued = [t for t in trials_of(tmp_path / "flat") if {"preset", "start"} & t.user_attrs.keys()]
    starts = len(queued)
    assert starts == STARTS
    assert all(t.state.is_finished() for t in queued)
    assert result.trials["complete"] == starts + 7
    assert result.stopped == "no better trial in 7"
    assert json.loads(json.dumps(result.to_dict()))["stopped"] == "no better trial in 7"
    # Resumed it stops at once; with more patience, or none, it goes on.
    flat = tmp_path / "flat"
    assert search(flat, Flat(), trials=60, patience=7).trials["complete"] == starts + 7
    assert search(flat, Flat(), trials=60, patience=9).trials["complete"] == starts + 9
    full = search(flat, Flat(), trials=starts + 12)
    assert (full.trials["complete"], full.stopped) == (starts + 12, None)


def test_pruned_trials_count_and_a_better_one_starts_anew(tmp_path):
    improving = iter(range(10_000))

    class Better(Fake):
        def badness(self, config):
            return 1.0 - 0.01 * min(next(improving), 15)

    result = search(tmp_path, Better(), trials=60, patience=5)
    values = [t.value for t in trials_of(tmp_path)]
    # A start that decodes to another one's config is answered from memory.
    assert result.trials["complete"] == values.index(min(values)) + 1 + 5
    assert len({*values}) == 16
    worse = iter(range(10_000))

    class Worse(Fake):
        def badness(self, config):
            return 0.1 + 0.3 * min(next(worse), 1)

    result = search(tmp_path / "pruned", Worse(64), trials=60, patience=5, trial_pruner="wilcoxon")
    assert result.trials["pruned"] >= 1
    assert sum(result.trials.values()) == STARTS + 5


def test_a_front_that_does_not_move_stops_too(tmp_path):
    class Flat(Fake):
        def badness(self, config):
            return 0.1

    result = search(tmp_path, Flat(), trials=200, patience=10, **WIDE)
    assert result.stopped == "no better trial in 10"
    assert sum(result.trials.values()) < 60


# The command line.


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    data = write_set(tmp_path_factory.mktemp("pareto") / "data", calibration=3)
    out = tmp_path_factory.mktemp("pareto") / "run"
    words = ["search", "--data", data, "--out", out, "--threads", 1, "--objective", "pareto"]
    words += ["--keep", "0.1:0.5", "--stages", "1", "--preset", "uniform"]
    done = call(*words, "--trials", 4, "--json")
    assert done.status == 0, done.err
    return out, words, done.json


def test_search_status_and_export_of_a_front(ran, tmp_path):
    out, words, found = ran
    assert found["budget"] == {"keep": [0.1, 0.5]}
    assert found["objectives"] == ["cosine", "mean_retention"]
    shown = call("status", out, "--json").json
    assert shown["front"] == found["front"]
    assert (shown["judged"], shown["tick"]) == (found["judged"], found["tick"])
    assert "front:" in call("status", out).out
    again = call(*words, "--trials", 4)
    assert again.status == 0, again.err
    assert "against the best baseline" in again.out
    bound = found["front"][-1]["mean_retention"]
    made = call("export", out, "--keep", bound, "-o", tmp_path / "a.json", "--json")
    assert made.status == 0, made.err
    assert made.json["trial"] == found["front"][-1]["trial"]
    assert made.json["budget"] == {"keep": pytest.approx(bound)}
    assert (tmp_path / "a.json").read_bytes() == (
        out / "front" / f"trial-{made.json['trial']}.json"
    ).read_bytes()


@pytest.mark.parametrize(
    ("flags", "has"),
    [
        ((), ("--keep", "neither")),
        (("--flops", "0.3"), ("--flops", "--keep")),
        (("--keep", "0.3", "--trial", "1"), ("--keep and --trial",)),
        (("--keep", "0.01"), ("0.01", "0.1", "goes from")),
    ],
)
def test_a_choice_that_is_none(ran, tmp_path, flags, has):
    refused("export", ran[0], "-o", tmp_path / "x.json", *flags, has=has)


def test_patience_and_fronts_hold_across_workers(tmp_path):
    class Flat(Fake):
        def badness(self, config):
            return 0.1

    url = f"sqlite:///{tmp_path}/shared.db"
    wanted = {"patience": 4, "trials": 50}
    first = run_trials(spec(**wanted), Flat(), out=tmp_path, storage=url)
    assert len(first.get_trials(states=(TrialState.COMPLETE,))) == STARTS + 4
    # Another worker sees the same plateau; the twin, without patience, goes on.
    for number, (fields, count) in enumerate(
        [(wanted, STARTS + 4), ({"trials": STARTS + 6}, STARTS + 6)]
    ):
        study = run_trials(
            spec(**fields), Flat(), out=tmp_path, storage=url, worker=number + 1, records=False
        )
        assert len(study.get_trials(states=(TrialState.COMPLETE,))) == count
    for number in range(3):
        study = run_trials(
            spec(trials=4 * (number + 1), presets=(), **WIDE),
            Cheap(),
            out=tmp_path,
            storage=url,
            worker=number,
            records=False,
        )
    finished = study.get_trials(states=(TrialState.COMPLETE,))
    assert len({json.dumps(t.params, sort_keys=True) for t in finished}) == 12
