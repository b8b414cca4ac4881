import json
import math
import random
import sqlite3
import subprocess
import sys
import threading
from contextlib import closing
from dataclasses import dataclass, replace

import optuna
import pytest
from optuna.trial import TrialState

from prunetune.budget import ModelFacts, mean_retention
from prunetune.calibration import load_calibration
from prunetune.config import PruningConfig
from prunetune.errors import ConfigError, DataError, StudyError
from prunetune.measure.scores import Scores, accuracy, measure
from prunetune.presets import preset_names
from prunetune.scorers import SCORERS
from prunetune.space.space import Space
from prunetune.spec import SpaceSpec, StudySpec
from prunetune.study.database.connect import _unusable as unusable_text
from prunetune.study.database.connect import open_storage
from prunetune.study.database.urls import redact, storage_url
from prunetune.study.find import find_study
from prunetune.study.outcome.baselines import compare_preset
from prunetune.study.outcome.intervals import bootstrap_ci
from prunetune.study.outcome.selection import count_evaluations, shortlist
from prunetune.study.outcome.summary import Baseline, render_table
from prunetune.study.outcome.verdict import verdict
from prunetune.study.study import run_search, run_trials
from prunetune.study.trials.samplers import make_sampler, sampler_seed
from prunetune.study.trials.trial_log import TrialLog
from prunetune.study.trials.trials import presets_at

FILES = {"study.db", "spec.toml", "config.json", "log.jsonl"}


@dataclass(frozen=True)
class Result:
    gap: float
    kl: float
    agrees: bool
    correct: bool | None


@dataclass(frozen=True)
class Picture:
    image_id: str


class Fake:
    """A model whose gap is least with coverage weighted 1, topv -0.5 and the first stage at 1."""

    order = "abc, in order"

    def __init__(self, count=48, seed=0, digest="abc", answers=True, fail=None):
        noise = random.Random(seed)
        self.noise = [noise.uniform(0.5, 1.5) for _ in range(count)]
        self.samples = [Picture(f"image{i // 4}") for i in range(count)]
        self.unpruned_correct = [True if answers else None] * count
        self.answers, self.digest, self.fail = answers, digest, fail
        self.configs = []
        self.measured = 0
        self.open = 0

    def facts(self):
        return ModelFacts(
            "llava_next", 16, 128, 512, 4, 4, 32, 336, 20, scorers=tuple(SCORERS),
            name="fake", calibration_digest=self.digest, calibration_order=self.order,
            weights_digest="def",
        )  # fmt: skip

    def badness(self, config):
        first = config.stages[0]
        weights = {s.name: s.weight for s in first.scorers}
        bad = abs(weights.get("coverage", 0.0) - 1.0) + abs(weights.get("topv", 0.0) + 0.5)
        bad += sum(abs(w) for n, w in weights.items() if n not in ("coverage", "topv"))
        return 0.02 + 0.05 * bad + 0.1 * abs(first.layer - 1)

    def evaluate(self, config, *, answers=True):
        self.configs.append(config)
        if self.fail is not None:
            self.fail(len(self.configs))
        bad = self.badness(config)
        self.open += 1
        try:
            for first in range(0, len(self.samples), 8):
                batch = []
                for i in range(first, min(first + 8, len(self.samples))):
                    gap = bad * self.noise[i]
                    self.measured += 1
                    correct = gap < 0.2 if self.answers else None
                    batch.append((i, Result(gap, 2 * gap, gap < 0.1, correct)))
                yield batch
        finally:
            self.open -= 1


def spec(**fields):
    return StudySpec(**{"model": "fake", "trials": 12, "trial_pruner": "none", **fields})


def search(tmp_path, evaluator=None, held_out=None, **fields):
    options = {k: fields.pop(k) for k in ("resume", "on_progress", "worker") if k in fields}
    return run_search(
        spec(**fields), evaluator or Fake(), held_out or Fake(seed=1), out=tmp_path, **options
    )


def trials_of(tmp_path):
    study = optuna.load_study(study_name=None, storage=open_storage(storage_url(tmp_path, None)))
    return study.trials


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
        "baselines", "verdict", "config", "report",
    ]  # fmt: skip
    assert list(data["best"]) == [
        "trial", "gap", "held_out_gap", "held_out_ci", "top1_agreement", "accuracy",
        "mean_retention", "flops_ratio", "kv_ratio",
    ]  # fmt: skip
    assert set(data["trials"]) == {"complete", "pruned", "failed"}
    assert {row["name"] for row in data["baselines"]} == set(preset_names())
    assert all(row["mean_retention"] == pytest.approx(0.25) for row in data["baselines"])
    low, high = data["best"]["held_out_ci"]
    assert low < data["best"]["held_out_gap"] < high
    assert data["unpruned"]["accuracy"] == 1.0
    text = render_table(result)
    assert all(name in text for name in (*preset_names(), "tuned", "unpruned", result.verdict))


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


def test_presets_are_the_first_trials_and_are_measured_as_they_are(tmp_path):
    evaluator = Fake()
    search(tmp_path, evaluator, presets=("fastervlm", "fastv", "random"), trials=6)
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


@pytest.mark.parametrize(("metric", "factor"), [("cosine", 1.0), ("kl", 2.0), ("cosine+kl", 3.0)])
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


def test_a_config_that_comes_again_is_answered_from_memory(tmp_path):
    # One layer and one scorer leave a handful of configs.
    small = SpaceSpec(
        max_stages=1,
        scorers=("coverage",),
        layers=(0, 1),
        restorers=("none",),
        separators=("drop",),
    )
    evaluator = Fake()
    result = search(tmp_path, evaluator, space=small, trials=12, presets=())
    assert result.trials["complete"] == 12
    trials = trials_of(tmp_path)
    different = {t.user_attrs["config_digest"] for t in trials}
    assert len(different) <= 4
    repeats = [t for t in trials if "repeats" in t.user_attrs]
    assert len(repeats) == 12 - len(different)
    for trial in repeats:
        original = trials[trial.user_attrs["repeats"]]
        assert trial.value == original.value
        assert trial.intermediate_values == original.intermediate_values
    # Searched configs, the winner once more, nothing else.
    assert len(evaluator.configs) == len(different) + 1
    assert result.sample_evaluations == evaluator.measured


def test_what_failed_halfway_and_twins_were_measured_too(tmp_path):
    class Breaks(Fake):
        def evaluate(self, config, *, answers=True):
            for k, batch in enumerate(super().evaluate(config, answers=answers)):
                if k == 2 and len(self.configs) == 2:
                    raise RuntimeError("out of memory")
                if k == 5 and len(self.configs) == 3:
                    self.twin(config)
                yield batch

        def twin(self, config):
            study = optuna.load_study(study_name=None, storage=open_storage(storage_url(out, None)))
            attrs = {"config_digest": config.digest(), "samples_used": 48, "evaluations": 48}
            made = {"value": 1.0, "user_attrs": attrs, "intermediate_values": {0: 1.0}}
            study.add_trial(optuna.trial.create_trial(**made))
            self.measured += 48

    out, evaluator = tmp_path, Breaks()
    result = search(tmp_path, evaluator, trials=6)
    trials = trials_of(tmp_path)
    assert result.trials["failed"] == 1
    assert [t.user_attrs["evaluations"] for t in trials if t.state is TrialState.FAIL] == [16]
    assert [t.user_attrs["evaluations"] for t in trials if "repeats" in t.user_attrs] == [48]
    assert result.sample_evaluations == evaluator.measured - 8
    # The twin: studies of old, which do not say it, are counted as they were.
    old = [
        optuna.trial.create_trial(value=1.0, user_attrs=a)
        for a in ({"samples_used": 16}, {"samples_used": 48, "repeats": 0})
    ]
    assert count_evaluations(old) == 16


# Resuming.


def test_a_resumed_study_goes_on_with_fresh_points_up_to_the_total(tmp_path):
    search(tmp_path, trials=4, presets=())
    before = [t.params for t in trials_of(tmp_path)]
    result = search(tmp_path, trials=8, presets=())
    after = [t.params for t in trials_of(tmp_path)]
    assert after[:4] == before
    assert len(after) == 8 == result.trials["complete"]
    assert not any(p in before for p in after[4:])
    # The study says what it is now: status and report read it from there.
    assert find_study(str(tmp_path)).spec.trials == 8
    assert sampler_seed(0, 0, 0) != sampler_seed(0, 0, 8) != sampler_seed(0, 1, 8)
    evaluator = Fake()
    search(tmp_path, evaluator, trials=8, presets=())
    assert len(evaluator.configs) == 1  # the winner's proof only
    numbers = [json.loads(x)["trial"] for x in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert numbers == list(range(8))


def test_another_spec_is_refused_with_the_fields_that_differ(tmp_path):
    search(tmp_path, trials=3)
    same_name = {"study_name": "fake/keep0.25/cosine", "out": tmp_path}
    with pytest.raises(StudyError) as error:
        run_trials(spec(trials=4, keep=0.3, seed=1), Fake(), **same_name)
    assert "keep (0.25 -> 0.3), seed (0 -> 1)" in str(error.value)
    with pytest.raises(StudyError, match="calibration data"):
        run_trials(spec(trials=4), Fake(digest="other"), **same_name)
    with pytest.raises(StudyError, match="exists already"):
        search(tmp_path, trials=4, resume=False)
    assert search(tmp_path, trials=4, timeout=60).trials["complete"] == 4


def test_samples_in_another_order_are_refused(tmp_path):
    search(tmp_path, trials=3)
    renamed = Fake()
    renamed.order = "abc, in another order"
    same_name = {"study_name": "fake/keep0.25/cosine", "out": tmp_path}
    with pytest.raises(StudyError, match="the order of the calibration samples"):
        run_trials(spec(trials=4), renamed, **same_name)
    # The twin: a study of a release that did not keep the order goes on.
    study = find_study(str(tmp_path)).study
    study.set_user_attr("order", None)
    run_trials(spec(trials=4), renamed, **same_name)
    assert sum(trial.state.is_finished() for trial in trials_of(tmp_path)) == 4


def test_the_order_of_samples_has_a_digest(tmp_path):
    samples = load_calibration("tiny", samples=4)[0]
    turned = replace(samples, samples=samples.samples[::-1])
    assert turned.digest() == samples.digest()
    assert turned.order_digest() != samples.order_digest()


def test_a_study_of_someone_else_is_left_alone(tmp_path):
    storage = open_storage(storage_url(tmp_path, None))
    study = optuna.create_study(storage=storage, study_name="fake/keep0.25/cosine")
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=1)
    with pytest.raises(StudyError, match="not made by prunetune"):
        search(tmp_path)


def test_a_study_resumed_with_other_weights_says_so(tmp_path, caplog):
    class Tuned(Fake):
        weights = "one"

        def facts(self):
            return replace(super().facts(), weights_digest=self.weights)

    for _ in range(2):
        search(tmp_path, Tuned(), trials=3)
    assert "weights" not in caplog.text
    Tuned.weights = "two"
    search(tmp_path, Tuned(), trials=4)
    assert "other weights of the model" in caplog.text


def test_a_study_resumed_under_other_releases_says_so(tmp_path, caplog):
    study = run_trials(spec(trials=1), Fake(), out=tmp_path)
    run_trials(spec(trials=1), Fake(), out=tmp_path)
    assert not caplog.records
    study.set_user_attr("versions", study.user_attrs["versions"] | {"torch": "1.0", "optuna": "1"})
    run_trials(spec(trials=1), Fake(), out=tmp_path)
    (said,) = [record.getMessage() for record in caplog.records]
    assert "was made with torch 1.0 (now " in said


def test_an_exported_config_names_the_releases_that_measured_it(tmp_path):
    study = run_trials(spec(trials=2), Fake(), out=tmp_path)
    now = study.user_attrs["versions"]
    study.set_user_attr("versions", now | {"torch": "1.0"})
    assert search(tmp_path, trials=2).best.provenance.versions == now


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
    assert (result.trials["complete"], result.trials["failed"]) == (8, 1)


def test_a_killed_process_loses_no_finished_trial(tmp_path):
    code = f"""
import os, sys
sys.path.insert(0, {str(sys.path[0])!r}); sys.path.insert(0, "tests")
from test_study import *
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


def test_the_timeout_ends_the_run(tmp_path):
    result = search(tmp_path, timeout=0.5, trials=10_000)
    assert 1 <= result.trials["complete"] < 10_000
    with pytest.raises(StudyError, match="no finished trial"):
        search(tmp_path / "none", timeout=1e-9)


def test_reports_are_written_many_at_a_time_and_never_lost(tmp_path, monkeypatch):
    storage = open_storage(storage_url(tmp_path, None))
    study = optuna.create_study(storage=storage)
    trial = study.ask()

    def stored():
        with sqlite3.connect(tmp_path / "study.db") as connection:
            return connection.execute("select count(*) from trial_intermediate_values").fetchone()[
                0
            ]

    for step in range(10):
        trial.report(step / 7, step)
    assert stored() == 0
    monkeypatch.setattr("prunetune.study.database.storage._REPORT_SECONDS", -1)
    trial.report(0.5, 10)
    assert stored() == 11
    monkeypatch.undo()
    trial.report(0.1, 11)
    study.tell(trial, 0.3)
    expected = {step: step / 7 for step in range(10)} | {10: 0.5, 11: 0.1}
    assert trials_of(tmp_path)[0].intermediate_values == expected


# Failures.


def test_a_failing_trial_is_logged_and_the_search_goes_on(tmp_path, caplog):
    def fail(call):
        if call in (2, 3):
            raise RuntimeError("out of memory\nsecond line")

    result = search(tmp_path, Fake(fail=fail), trials=6)
    assert (result.trials["complete"], result.trials["failed"]) == (6, 2)
    assert "out of memory second line" in caplog.text
    failed = [json.loads(x) for x in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [x["failure"] for x in failed if x["state"] == "FAIL"] == [
        "RuntimeError: out of memory second line"
    ] * 2


def test_five_failures_in_a_row_end_the_search_with_the_reason(tmp_path):
    def fail(call):
        if call > 3:
            raise RuntimeError("no such kernel")

    evaluator = Fake(fail=fail)
    with pytest.raises(StudyError, match="RuntimeError: no such kernel") as error:
        search(tmp_path, evaluator, trials=50)
    assert "\n" not in str(error.value)
    assert len(evaluator.configs) == 8


def test_a_gap_that_is_no_number_fails_the_trial(tmp_path):
    class Broken(Fake):
        def badness(self, config):
            return math.nan if len(self.configs) == 2 else super().badness(config)

    result = search(tmp_path, Broken(), trials=4)
    assert (result.trials["complete"], result.trials["failed"]) == (4, 1)


def test_no_finished_trial_is_nothing_to_export(tmp_path):
    study = optuna.create_study()
    from prunetune.study.outcome.selection import choose

    with pytest.raises(StudyError, match="no finished trial"):
        choose(study, spec(), Fake())


def test_unusable_databases_and_folders(tmp_path):
    bad = tmp_path / "bad"
    bad.mkdir()
    (bad / "study.db").write_bytes(b"not a database at all" * 100)
    file = tmp_path / "file"
    file.write_text("")
    other = tmp_path / "other"
    other.mkdir()
    with sqlite3.connect(other / "study.db") as connection:
        connection.execute("create table studies (name text)")
    for out in (bad, file / "deep", other):
        with pytest.raises(StudyError) as error:
            search(out)
        assert "\n" not in str(error.value)
        assert len(str(error.value)) < 500
    with pytest.raises(ConfigError, match=r"0\.0719"):
        search(tmp_path / "low", keep=0.05, space=SpaceSpec(scorers=("topv",)))
    assert not (tmp_path / "low").exists()


def test_a_database_of_another_program_is_left_as_it_is(tmp_path):
    file = tmp_path / "photos.db"
    with closing(sqlite3.connect(file)) as connection, connection:
        connection.execute("create table photos (name text)")
    before = file.read_bytes()
    with pytest.raises(StudyError, match="another program's database"):
        find_study(str(file))
    assert file.read_bytes() == before
    # The twin: an empty file is what a killed search leaves, and a study is found.
    (tmp_path / "study.db").touch()
    with pytest.raises(StudyError, match="holds no study yet"):
        find_study(str(tmp_path))


@pytest.mark.parametrize("name", ["a?b", "c%20d", "e#f", "g & h", "ü"])
def test_a_run_lies_in_its_folder_whatever_that_is_called(tmp_path, name):
    out = tmp_path / name
    run_trials(spec(trials=1), Fake(), out=out)
    assert (out / "study.db").is_file()
    assert len(find_study(str(out)).study.trials) >= 1
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_storage_urls_and_their_passwords(tmp_path):
    assert storage_url(tmp_path, None) == f"sqlite:///{tmp_path}/study.db"
    url = storage_url(tmp_path, "postgresql://me:se:cret@host/db?password=hidden")
    assert url.startswith("postgresql+psycopg://")
    assert redact(url) == "postgresql+psycopg://me:***@host/db?password=***"
    assert redact(f"cannot reach {url}!").count("***") == 2
    assert redact("sqlite:////tmp/study.db") == "sqlite:////tmp/study.db"
    for bad, why in (
        ("no url", "allowed: sqlite:///FILE or postgresql://"),
        ("mysql+pymysql://me:secret@127.0.0.1:1/db", "allowed: sqlite:///FILE or postgresql://"),
        ("postgresql://me:secret@127.0.0.1:1/db", "check the URL, the server"),
        (f"sqlite:///{tmp_path}/none/study.db", "check that its folder exists"),
    ):
        with pytest.raises(StudyError, match=why) as error:
            open_storage(storage_url(tmp_path, bad))
        assert "secret" not in str(error.value)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["tpe", "tpe-uni", "gp", "cmaes", "nsga2", "qmc", "random"])
def test_every_sampler_searches_the_space(tmp_path, name):
    trials = 11 if name in ("gp", "tpe", "cmaes") else 3
    assert search(tmp_path, sampler=name, trials=trials, presets=()).trials["complete"] == trials


def test_a_sampler_without_its_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "cmaes", None)
    with pytest.raises(StudyError, match=r"cmaes: pip install 'prunetune\[search\]'"):
        make_sampler("cmaes", 0)


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


# Choosing and judging.


def add_trial(study, values, state, digest):
    study.add_trial(
        optuna.trial.create_trial(
            state=state,
            value=sum(values) / len(values),
            intermediate_values=dict(enumerate(values)),
            user_attrs={"config_digest": digest},
        )
    )


def test_a_pruned_trial_is_not_flattered_by_easy_samples():
    study = optuna.create_study()
    add_trial(study, [0.1, 0.1, 0.5, 0.5], TrialState.COMPLETE, "best")
    add_trial(study, [0.2, 0.2], TrialState.PRUNED, "worse, on the easy half")
    add_trial(study, [0.05, 0.1], TrialState.PRUNED, "better")
    add_trial(study, [0.1, 0.1, 0.5, 0.5], TrialState.COMPLETE, "best")
    assert [t.number for t in shortlist(study, 5)] == [2, 0, 1]
    assert len(shortlist(study, 2)) == 2


def test_estimates_never_push_out_the_best_complete_trial():
    study = optuna.create_study()
    add_trial(study, [0.1, 0.1, 0.5, 0.5], TrialState.COMPLETE, "best")
    add_trial(study, [0.05, 0.1], TrialState.PRUNED, "perhaps better")
    add_trial(study, [0.05, 0.09], TrialState.PRUNED, "perhaps better still")
    assert [t.number for t in shortlist(study, 1)] == [2, 0]
    assert [t.number for t in shortlist(study, 2)] == [2, 1, 0]
    assert [t.number for t in shortlist(study, 3)] == [2, 1, 0]


@pytest.mark.parametrize("off", ["answers", "always"])
def test_the_winner_is_measured_again_as_its_trial_was(tmp_path, caplog, off):
    class SixteenBits(Fake):
        """Its numbers depend on what runs beside a sample: here, on answers or on the time."""

        def badness(self, config):
            late = off == "always" and len(self.configs) > 4
            return super().badness(config) * (1.001 if self.asked or late else 1.0)

        def evaluate(self, config, *, answers=True):
            self.asked = answers
            return super().evaluate(config, answers=answers)

    search(tmp_path, SixteenBits(), trials=4)
    # The twin: what cannot be measured again is said.
    assert ("in the study and is" in caplog.text) == (off == "always")


def test_what_gives_no_usable_state_on_held_out_data_is_said_and_never_wins(tmp_path):
    class Broken(Fake):
        def badness(self, config):
            random = any(s.name == "random" for stage in config.stages for s in stage.scorers)
            return math.nan if random else super().badness(config)

    result = search(tmp_path, held_out=Broken(seed=1), trials=4)
    rows = {row.name: row for row in result.baselines}
    assert rows["random"].scores is None
    assert "no usable state on 48 of 48 samples" in rows["random"].note
    assert rows["uniform"].scores is not None
    assert "nan" not in result.verdict

    class Worse(Fake):
        def badness(self, config):
            return math.nan

    with pytest.raises(StudyError, match="no usable state on 48 of 48 samples"):
        search(tmp_path, held_out=Worse(), trials=4)


def test_the_bootstrap_interval_holds_the_mean_and_knows_groups():
    values = [random.Random(i).random() for i in range(200)]
    low, high = bootstrap_ci(values)
    assert low < sum(values) / 200 < high
    assert bootstrap_ci(values) == (low, high)
    # The same value four times an image is no new knowledge.
    fourfold, images = [v for v in values[:50] for _ in range(4)], [str(i // 4) for i in range(200)]
    alone, together = bootstrap_ci(fourfold), bootstrap_ci(fourfold, images)
    assert 1.7 < (together[1] - together[0]) / (alone[1] - alone[0]) < 2.4


def test_a_question_asked_four_times_is_no_new_evidence():
    def p_value(times, images):
        held_out = Fake(count=8 * times)
        held_out.noise = [1.0 + 0.1 * (i // times) for i in range(8 * times)]
        held_out.samples = [
            Picture(str(i // times) if images else str(i)) for i in range(8 * times)
        ]
        preset = presets_at(["uniform"], Space.of(spec(), held_out.facts()))[0]
        theirs = measure(held_out, preset.config)
        # Two of eight pictures lose.
        signs = [1 if i // times < 2 else -1 for i in range(8 * times)]
        ours = [replace(r, gap=r.gap * (1 + 0.1 * s)) for r, s in zip(theirs, signs, strict=True)]
        return compare_preset(preset, {"tuned": ours}, held_out, held_out.facts(), 0).p_value

    once = p_value(1, images=True)
    assert 0.005 < once < 0.2
    assert p_value(4, images=True) == once
    # The twin: as many pictures would be evidence.
    assert p_value(4, images=False) < once / 3


def scores(gap, accuracy=None):
    return Scores(gap=gap, kl=gap, top1_agreement=0.9, accuracy=accuracy, samples=10)


def row(name, gap, accuracy=None, interval=(-0.2, -0.1)):
    return Baseline(name, scores(gap, accuracy), gap_difference=interval)


def test_the_verdict_is_honest():
    tuned = scores(0.1, 0.8)
    good = verdict(tuned, [row("fastv", 0.2, 0.8), row("random", 0.3, 0.5)])
    assert good.startswith("The tuned config beats every baseline")
    assert "0.1000 against 0.2000 (fastv)" in good
    assert "within noise" in verdict(tuned, [row("fastv", 0.2, 0.8, (-0.2, 0.01))])
    for rows in ([row("fastv", 0.1, 0.5)], [row("fastv", 0.2, 0.81)]):
        assert "does not beat every baseline" in verdict(tuned, rows)
    assert "accuracy" not in verdict(scores(0.1), [row("fastv", 0.2)])
    assert "nothing is known" in verdict(tuned, [Baseline("fastv", None)])


def test_few_held_out_pictures_tell_nothing(tmp_path):
    tuned, rows = scores(0.1, 0.8), [row("fastv", 0.2, 0.8)]
    assert verdict(tuned, rows, pictures=1) == (
        "1 held-out picture is too few to tell whether the tuned config beats every baseline: gap "
        "0.1000 against 0.2000 (fastv); accuracy 80.0% against 80.0% (fastv)."
    )
    assert "does not beat" not in verdict(tuned, [row("fastv", 0.05)], pictures=4)
    itself = replace(row("topv", 0.1, 0.8), is_tuned=True)
    assert "how it compares" in verdict(tuned, [itself, *rows], pictures=4)
    # The twin: as many as say something.
    assert verdict(tuned, rows, pictures=5) == verdict(tuned, rows)
    few = "are too few to tell"
    for folder, fields in (
        ("one", {}),
        ("front", {"objective": "pareto", "keep": 0.05, "up_to": 0.5}),
    ):
        said = search(tmp_path / folder, held_out=Fake(count=16), trials=10, **fields).verdict
        assert f"4 held-out pictures {few}" in said
        said = search(tmp_path / folder, held_out=Fake(count=20), trials=10, **fields).verdict
        assert few not in said


def test_a_preset_that_wins_is_not_compared_with_itself(tmp_path):
    class LikesUniform(Fake):
        def badness(self, config):
            used = [s.name for stage in config.stages for s in stage.scorers]
            return 0.02 if used == ["coverage"] else 0.1

    result = search(tmp_path, LikesUniform(), LikesUniform(), trials=8)
    itself = [row.name for row in result.baselines if row.is_tuned]
    assert itself == ["uniform"]
    assert f"is the preset {itself[0]} itself: nothing better than it was found" in result.verdict
    assert "does not beat every baseline" not in result.verdict
    assert f"({itself[0]}" not in result.verdict
    rows = {row["name"]: row for row in result.to_dict()["baselines"]}
    assert rows[itself[0]]["is_tuned"]
    assert rows[itself[0]]["held_out_gap"] == result.held_out.gap
    assert "the tuned config itself" in render_table(result)
    # The twin: where something better is found, no preset is it.
    found = search(tmp_path / "more", trials=40)
    assert not any(row.is_tuned for row in found.baselines)
    assert "itself" not in found.verdict
    assert "itself" not in render_table(found)


def test_a_preset_that_wins_is_compared_with_the_others():
    itself = replace(row("topv", 0.1, 0.8), is_tuned=True)
    said = verdict(scores(0.1, 0.8), [itself, row("fastv", 0.2, 0.8), row("random", 0.3, 0.5)])
    assert said == (
        "The best config found is the preset topv itself: nothing better than it was found; on "
        "held-out data it beats every other: gap 0.1000 against 0.2000 (fastv); accuracy 80.0% "
        "against 80.0% (fastv)."
    )
    said = verdict(scores(0.1, 0.8), [itself, row("fastv", 0.05, 0.9)])
    assert "does not beat every other (fastv: no higher gap; fastv: higher accuracy)" in said
    assert verdict(scores(0.1), [itself]).endswith("nothing better than it was found.")


def test_accuracy_counts_answered_samples_only(tmp_path):
    assert accuracy([True, None, False]) == 0.5
    assert accuracy([None]) is None
    result = search(tmp_path, Fake(answers=False), Fake(answers=False), trials=3)
    assert result.to_dict()["best"]["accuracy"] is None
    assert "accuracy" not in result.verdict


def test_a_pruned_trial_is_ranked_by_its_estimated_mean_not_by_one_sample():
    from optuna.trial import TrialState, create_trial

    from prunetune.study.trials.trials import estimated_mean

    def complete(values):
        mean = sum(values) / len(values)
        return create_trial(
            state=TrialState.COMPLETE, value=mean, intermediate_values=dict(enumerate(values))
        )

    best = complete([0.1, 0.1, 0.9, 0.9])
    # 0.05 worse on the two samples seen, both easy: 0.05 worse than the best mean, 0.5.
    assert estimated_mean({0: 0.15, 1: 0.15}, best) == pytest.approx(0.55)
    # The twin: without a best trial the easy samples do flatter.
    assert estimated_mean({0: 0.15, 1: 0.15}, None) == pytest.approx(0.15)


def test_a_trial_is_stopped_only_if_its_mean_is_worse_too():
    from optuna.pruners import WilcoxonPruner

    from prunetune.study.trials.stopping import MeanWilcoxonPruner

    def stops(kind, values):
        study = optuna.create_study(pruner=kind(p_threshold=0.1, n_startup_steps=8))
        best = study.ask()
        for step, value in enumerate([0.01] * 14 + [1.0] * 2):
            best.report(value, step)
        study.tell(best, 2.14 / 16)
        trial = study.ask()
        for step, value in enumerate(values):
            trial.report(value, step)
        return trial.should_prune()

    # A little worse on most samples; the mean hangs on two, far better and far worse.
    open_still = [0.02] * 14 + [0.5, 1.6]
    assert not stops(MeanWilcoxonPruner, open_still)
    # The twin: ranks alone would stop it; and what is worse in the mean is stopped.
    assert stops(WilcoxonPruner, open_still)
    assert stops(MeanWilcoxonPruner, [0.3] * 14 + [1.0] * 2)


def test_the_log_holds_the_trials_of_a_second_study_in_the_folder(tmp_path):
    for name in ("one", "two", "two"):
        run_trials(spec(trials=3), Fake(), out=tmp_path, study_name=name)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["trial"] for line in lines] == [0, 1, 2] * 2


def logged(tmp_path):
    lines = (tmp_path / "log.jsonl").read_text().splitlines()
    return sorted(json.loads(line)["trial"] for line in lines)


def test_two_commands_in_one_folder_log_each_trial_once(tmp_path):
    study = run_trials(spec(trials=2), Fake(), out=tmp_path)
    both = [TrialLog(tmp_path / "log.jsonl") for _ in range(2)]
    for log in both:
        log(study)
    run_trials(spec(trials=5), Fake(), out=tmp_path, records=False)
    for log in both:
        log(study)
    assert logged(tmp_path) == [0, 1, 2, 3, 4]
    # The twin: whoever begins anew in an empty file logs everything.
    (tmp_path / "log.jsonl").unlink()
    TrialLog(tmp_path / "log.jsonl")(study)
    assert logged(tmp_path) == [0, 1, 2, 3, 4]


def test_commands_that_log_at_once_wait_for_each_other(tmp_path):
    study = run_trials(spec(trials=40, presets=[]), Fake(), out=tmp_path, records=False)
    path = tmp_path / "log.jsonl"
    threads = [threading.Thread(target=TrialLog(path), args=(study,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert logged(tmp_path) == list(range(40))


@pytest.mark.parametrize(
    ("reason", "advice"),
    [
        ("database or disk is full", "check the disk's space"),
        ("disk I/O error", "check the disk's space"),
        ("database disk image is malformed", "move it away"),
    ],
)
def test_a_full_disk_is_no_reason_to_move_a_study_away(reason, advice):
    assert advice in unusable_text("sqlite:///a.db", sqlite3.OperationalError(reason))
