"""What a study may be resumed with, and what is said where it is another one."""

import json
from dataclasses import replace

import optuna
import pytest
from fakes import SUMS, Fake, search, spec, trials_of

import prunetune
from prunetune.calibration import load_calibration
from prunetune.errors import ConfigError, StudyError
from prunetune.spec import SpaceSpec, StudySpec
from prunetune.study.database.connect import open_storage
from prunetune.study.database.urls import storage_url
from prunetune.study.find import find_study
from prunetune.study.resumed import as_stored, refuse_other
from prunetune.study.study import run_trials
from prunetune.study.trials.samplers import sampler_seed

SUMMED = SpaceSpec(**SUMS)


def test_a_resumed_study_goes_on_with_fresh_points_up_to_the_total(tmp_path):
    search(tmp_path, trials=4, presets=(), space=SUMMED)
    before = [t.params for t in trials_of(tmp_path)]
    result = search(tmp_path, trials=8, presets=(), space=SUMMED)
    after = [t.params for t in trials_of(tmp_path)]
    assert after[:4] == before
    assert len(after) == 8 == result.trials["complete"]
    assert not any(p in before for p in after[4:])
    # The study says what it is now: status and report read it from there.
    assert find_study(str(tmp_path)).spec.trials == 8
    assert sampler_seed(0, 0, 0) != sampler_seed(0, 0, 8) != sampler_seed(0, 1, 8)
    evaluator = Fake()
    search(tmp_path, evaluator, trials=8, presets=(), space=SUMMED)
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


def test_only_a_new_study_is_refused_for_ranges_that_do_nothing(tmp_path):
    """Earlier releases took them, and gave some themselves (--engine vllm)."""
    idle = SUMMED.model_copy(update={"ranges": {"mmr.relevance": (0.1, 0.2)}})
    with pytest.raises(ConfigError, match=r"space\.ranges: received mmr\.relevance"):
        search(tmp_path, trials=3, space=idle)
    storage = open_storage(storage_url(tmp_path, None))
    assert optuna.get_all_study_names(storage) == []
    # The twins: one that is there goes on, by the same command as by one that gives them no more.
    search(tmp_path, trials=3, space=SUMMED)
    study = optuna.load_study(study_name=None, storage=storage)
    before = spec(trials=3, space=idle)
    study.set_user_attr("spec", before.model_dump(mode="json"))
    before.save(tmp_path / "spec.toml")
    for trials, asked in ((4, idle), (5, SUMMED)):
        now = as_stored(spec(trials=trials, space=asked), before)
        refuse_other(tmp_path, now)
        assert search(tmp_path, trials=trials, space=now.space).trials["complete"] == trials
    assert find_study(str(tmp_path)).spec.space.ranges == idle.ranges
    # What is searched is not added.
    open_too = SUMMED.model_copy(update={"ranges": {"top.scope": ("view",)}})
    assert as_stored(spec(), spec(space=open_too)) == spec()


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


@pytest.mark.parametrize(
    ("loading", "words"),
    [
        ({"attn": "nope"}, "attn is 'nope'"),
        ({"dtype": "nope"}, "dtype is 'nope'"),
        ({"device": "cpu", "device_map": "auto"}, "exclude each other"),
    ],
)
def test_a_search_hands_on_how_its_model_is_loaded(loading, words, tmp_path):
    with pytest.raises(ConfigError, match=words):
        prunetune.search(StudySpec(model="tiny", keep=0.25), out=tmp_path, **loading)
