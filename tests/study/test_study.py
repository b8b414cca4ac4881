"""A search from its first trial to its config."""

import json
import subprocess
import sys
from pathlib import Path

import optuna
import pytest
from fakes import FILES, SUMS, Fake, search, spec, trials_of
from optuna.trial import TrialState

from prunetune.budget import mean_retention
from prunetune.config import PruningConfig
from prunetune.errors import DataError, StudyError
from prunetune.presets import preset_names
from prunetune.spec import SpaceSpec, StudySpec
from prunetune.study.outcome.summary import table_rows
from prunetune.study.trials.counts import count_trials


def test_a_search_from_end_to_end(tmp_path):
    seen = []
    result = search(tmp_path, trials=8, on_progress=seen.append)
    assert {p.name for p in tmp_path.iterdir()} - {"study.db-wal", "study.db-shm"} == FILES
    config = PruningConfig.load(tmp_path / "config.json")
    assert config == result.best
    assert abs(mean_retention(config.stages, 16) - 0.25) < 1e-9
    fake = Fake()
    gap = fake.badness(config) * sum(fake.noise) / len(fake.noise)
    assert config.provenance.gap == pytest.approx(gap, abs=1e-9)
    assert config.provenance.gap_ci[0] < gap < config.provenance.gap_ci[1]
    assert config.provenance.calibration_digest == "abc"
    assert config.provenance.weights_digest == "def"
    assert (config.provenance.trial, config.provenance.study) == (
        result.trial,
        "fake/keep0.25/cosine",
    )
    assert [p.finished for p in seen] == list(range(1, 9))
    assert seen[-1].best == pytest.approx(gap, abs=1e-9)
    assert StudySpec.load(tmp_path / "spec.toml").trials == 8


def test_the_json_of_a_search(tmp_path):
    result = search(tmp_path, trials=5)
    data = json.loads(json.dumps(result.to_dict()))
    assert list(data) == [
        "study", "budget", "trials", "stopped", "seconds", "sample_evaluations", "best", "unpruned",
        "baselines", "judged", "tick", "verdict", "config", "saving", "report",
    ]  # fmt: skip
    assert list(data["best"]) == [
        "trial", "gap", "held_out_gap", "held_out_ci", "top1_agreement", "accuracy",
        "mean_retention", "flops_ratio", "flops", "kv_ratio",
    ]  # fmt: skip
    assert set(data["trials"]) == {"complete", "pruned", "failed"}
    assert {row["name"] for row in data["baselines"]} == {*preset_names(), "resize"}
    rows = {row["name"]: row for row in data["baselines"]}
    assert "whatever its size" in rows.pop("resize")["notes"], "the fake's pictures have no levels"
    assert all(row["mean_retention"] == pytest.approx(0.25) for row in rows.values())
    low, high = data["best"]["held_out_ci"]
    assert low < data["best"]["held_out_gap"] < high
    assert data["unpruned"]["accuracy"] == 1.0
    shown = {row[0] for row in table_rows(result)[1:]}
    assert shown == {*preset_names(), "resize", "tuned", "unpruned"}


def test_baselines_that_had_to_move_or_cannot_run_say_so(tmp_path):
    rows = {row.name: row for row in search(tmp_path, keep=0.1, trials=2).baselines}
    assert rows["fastv"].note == "moved from layer 2 to 1"
    assert rows["fastv"].scores is not None
    rows = {row.name: row for row in search(tmp_path / "low", keep=0.05, trials=2).baselines}
    assert rows["fastv"].scores is None
    assert "0.0719" in rows["fastv"].note
    assert rows["uniform"].scores is not None


def test_the_same_seed_gives_the_same_trials(tmp_path):
    runs = {}
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        search(tmp_path / name, seed=seed, trials=12 if seed == 0 else 6)
        runs[name] = [(t.params, t.value) for t in trials_of(tmp_path / name)]
    assert runs["a"] == runs["b"]
    assert runs["a"][:6] != runs["c"]
    assert runs["a"][:4] == runs["c"][:4]  # the presets


SUMMED = SpaceSpec(**SUMS)


def test_covering_sets_are_tried_before_presets(tmp_path):
    search(tmp_path, presets=("fastv",), trials=4)
    found = [t.user_attrs for t in trials_of(tmp_path)]
    assert "in three steps" in found[0]["start"]
    assert next(a.get("preset") for a in found if "start" not in a) == "fastv"
    stage = PruningConfig.parse(found[0]["config"]).stages[0]
    assert (stage.selector.name, stage.mass) == ("cover", 1.0)
    # The twin is the test below: without the selector presets are first.


def test_presets_are_the_first_trials_and_are_measured_as_they_are(tmp_path):
    evaluator = Fake()
    search(tmp_path, evaluator, presets=("fastervlm", "fastv", "random"), trials=6, space=SUMMED)
    first, second, third = trials_of(tmp_path)[:3]
    assert [t.user_attrs.get("preset") for t in (first, second, third)] == [
        "fastervlm",
        "fastv",
        None,
    ]
    assert evaluator.configs[0].positions == "packed"
    assert evaluator.configs[0].stages[0].scorers[0].per_crop
    assert PruningConfig.parse(first.user_attrs["config"]) == evaluator.configs[0]


def test_what_people_read_is_stored_decoded(tmp_path):
    search(tmp_path, trials=6)
    # What is enqueued beyond the last trial still waits.
    attrs = [t for t in trials_of(tmp_path) if t.state.is_finished()][-1].user_attrs
    assert {"schedule", "weights", "mean_retention", "samples_used", "gap", "kl"} <= set(attrs)
    assert attrs["samples_used"] == 48
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["trial"] for line in lines] == list(range(6))
    assert lines[-1]["gap"] == attrs["gap"]


@pytest.mark.parametrize(
    ("metric", "factor"), [("cosine", 1.0), ("kl", 2.0), ("cosine+kl", 3.0), ("kl-answer", 4.0)]
)
def test_the_metric_decides_what_is_minimised(tmp_path, metric, factor):
    result = search(tmp_path, metric=metric, trials=5)
    best = trials_of(tmp_path)[result.trial]
    assert best.value == pytest.approx(factor * result.calibration.gap)
    assert result.study == f"fake/keep0.25/{metric}"


def test_the_trial_pruner_saves_samples_and_the_winner_is_scored_on_all(tmp_path):
    full, saving = Fake(count=128), Fake(count=128)
    search(tmp_path / "a", full, trials=30)
    result = search(tmp_path / "b", saving, trials=30, trial_pruner="wilcoxon")
    assert result.trials["pruned"] > 0
    assert saving.measured < 0.8 * full.measured
    assert result.calibration.samples == 128
    assert saving.open == 0
    pruned = next(t for t in trials_of(tmp_path / "b") if t.state is TrialState.PRUNED)
    assert 16 <= pruned.user_attrs["samples_used"] < 128
    # Its samples, then the estimate of its mean that samplers rank it by.
    assert list(pruned.intermediate_values) == [*range(pruned.user_attrs["samples_used"]), 128]
    assert result.sample_evaluations <= saving.measured


# Resuming.


def test_an_interrupt_leaves_a_study_that_the_same_call_resumes(tmp_path):
    def interrupt(call):
        if call == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        search(tmp_path, Fake(fail=interrupt), trials=8)
    states = [t.state for t in trials_of(tmp_path)]
    assert states[3] is TrialState.FAIL
    assert TrialState.RUNNING not in states
    result = search(tmp_path, trials=8)
    # What is queued again has not failed.
    assert (result.trials["complete"], result.trials["failed"]) == (8, 0)


@pytest.mark.parametrize("often", [1, 2, 3])
def test_a_trial_interrupted_again_and_again_has_not_failed(tmp_path, often):
    fields = {"presets": (), "space": SpaceSpec(**SUMS)}
    search(tmp_path, trials=8, **fields)

    def end(error):
        def fail(call):
            if call == 1:
                raise error

        return Fake(fail=fail)

    for _ in range(often):
        with pytest.raises(KeyboardInterrupt):
            search(tmp_path, end(KeyboardInterrupt), trials=9, **fields)
    ended = [t for t in trials_of(tmp_path) if t.state is TrialState.FAIL]
    assert [t.system_attrs.get("failed_trial", 8) for t in ended] == [8] * often
    assert count_trials(trials_of(tmp_path))["failed"] == 0
    # The twin: what ends in a failure counts, once, however often it was queued again.
    result = search(tmp_path, end(RuntimeError("out of memory")), trials=9, **fields)
    assert (result.trials["complete"], result.trials["failed"]) == (9, 1)


def test_a_killed_process_loses_no_finished_trial(tmp_path):
    code = f"""
import os, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from fakes import *
def die(call):
    if call == 5:
        os.kill(os.getpid(), 9)
from pathlib import Path
search(Path({str(tmp_path)!r}), Fake(fail=die), trials=8)
"""
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True)
    assert done.returncode == -9, done.stderr.decode()
    before = trials_of(tmp_path)
    assert sum(t.state is TrialState.COMPLETE for t in before) == 4
    (tmp_path / "log.jsonl").write_text('{"trial": 0}\n{"tri')
    result = search(tmp_path, trials=8)
    assert result.trials["complete"] == 8
    lines = (tmp_path / "log.jsonl").read_text().splitlines()
    assert lines.pop(1) == '{"tri'
    assert {json.loads(line)["trial"] for line in lines} >= set(range(8))
    assert [t.value for t in trials_of(tmp_path)[:4]] == [t.value for t in before[:4]]


def test_no_finished_trial_is_nothing_to_export(tmp_path):
    study = optuna.create_study()
    from prunetune.study.outcome.selection import choose

    with pytest.raises(StudyError, match="no finished trial"):
        choose(study, spec(), Fake())


# Data.


def test_held_out_samples_show_no_picture_that_the_search_sees(caplog):
    from prunetune.study.prepare import load_data

    with pytest.raises(DataError, match="held_out: all 160 samples show pictures of the calibr"):
        load_data(spec(data="tiny", held_out="tiny"))
    calibration, held_out = load_data(spec(data="tiny", held_out="tiny", samples=8))
    seen = {picture for sample in calibration for picture in sample.pixels()}
    assert 100 < len(held_out) < 160
    assert not any(seen & set(sample.pixels()) for sample in held_out)
    assert "held-out samples show pictures of the calibration data" in caplog.text
    # The twin: other pictures are all taken.
    caplog.clear()
    assert len(load_data(spec(data="tiny"))[1]) == 480
    assert not caplog.records
