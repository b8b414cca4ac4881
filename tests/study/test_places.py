"""One study wherever the folders of model and data lie, and never one of two models."""

import os
import shutil
from dataclasses import replace

import optuna
import pytest
from cli_runner import plain_set
from fakes import SUMS, Fake, spec
from safetensors.torch import load_file, save_file

import prunetune
from prunetune.errors import StudyError
from prunetune.review.report.report_file import found_search
from prunetune.spec import SpaceSpec, StudySpec
from prunetune.study.database.connect import open_storage
from prunetune.study.prepare import prepare
from prunetune.study.study import run_trials

SPACE = SpaceSpec(**SUMS)
TINY = os.path.join(os.path.dirname(prunetune.__file__), "embedded", "tiny")


class Loaded(Fake):
    """The fake, of a model and of data that are really there."""

    def __init__(self, prepared):
        super().__init__(count=8, digest=prepared.calibration.digest())
        self.order, self.loaded = prepared.calibration.order_digest(), prepared.loaded

    def facts(self):
        from prunetune.models.fingerprint import weights_digest

        digest = weights_digest(self.loaded.model)
        return replace(super().facts(), name=self.loaded.name, weights_digest=digest)


class At(Fake):
    """The fake with weights of some digest."""

    def __init__(self, weights="def"):
        super().__init__(count=8)
        self.weights = weights

    def facts(self):
        return replace(super().facts(), weights_digest=self.weights)


def names(url):
    return sorted(optuna.get_all_study_names(open_storage(url)))


def run(folder, url, model, trials=2, weights="def", **how):
    asked = spec(model=model, trials=trials, presets=(), space=SPACE)
    return run_trials(asked, At(weights), out=folder, storage=url, **how)


def test_the_same_command_in_another_folder_joins_the_study(tmp_path, monkeypatch):
    url = f"sqlite:///{tmp_path}/shared.db"

    def begin(home, trials):
        monkeypatch.chdir(tmp_path / home)
        asked = StudySpec(
            model="./llava", data="pictures", trials=trials, trial_pruner="none", presets=(),
            space=SPACE,
        )  # fmt: skip
        prepared = prepare(asked, out="out", storage=url)
        study = run_trials(prepared.spec, Loaded(prepared), out=prepared.out, storage=url)
        return prepared, study

    for home in ("a", "b", "c"):
        plain_set(tmp_path / home / "pictures", range(6))
        shutil.copytree(TINY, tmp_path / home / "llava")
    begin("a", 2)
    prepared, study = begin("b", 4)
    assert prepared.done == 2
    assert names(url) == ["llava/keep0.25/cosine"]
    assert found_search(prepared, url, None).study.study_name == "llava/keep0.25/cosine"
    # What is here is read; the study keeps the names that it was made with, so do its configs.
    assert prepared.spec.model == str(tmp_path / "b" / "llava")
    assert study.user_attrs["spec"]["data"] == str(tmp_path / "a" / "pictures")
    configs = [t.user_attrs["config"] for t in study.trials if t.state.is_finished()]
    assert {c["model"]["name"] for c in configs} == {str(tmp_path / "a" / "llava")}
    # The twin: another model whose folder is called the same.
    weights = tmp_path / "c" / "llava" / "model.safetensors"
    save_file({k: v * 1.5 for k, v in load_file(weights).items()}, weights, {"format": "pt"})
    with pytest.raises(StudyError, match=r"a/llava.*c/llava' are others.*--study") as error:
        begin("c", 6)
    assert "\n" not in str(error.value)


def test_two_models_whose_folders_are_called_alike_are_not_mixed(tmp_path, caplog):
    url = f"sqlite:///{tmp_path}/shared.db"
    run(tmp_path, url, "/a/checkpoint", 2)
    with pytest.raises(StudyError, match="are others"):
        run(tmp_path, url, "/b/checkpoint", 4, "other")
    with pytest.raises(StudyError, match="are not known to be the same"):
        run(tmp_path, url, "/b/checkpoint", 4, None)
    with pytest.raises(StudyError, match="model \\('/a/checkpoint' -> '/b/check'\\)"):
        run(tmp_path, url, "/b/check", 4, study_name="checkpoint/keep0.25/cosine")
    run(tmp_path, url, "/b/checkpoint", 4, "other", study_name="mine")
    # The twins: the same weights, wherever they are; and other ones in the same place are told.
    assert len(run(tmp_path, url, "/b/checkpoint", 4).trials) >= 4
    assert not caplog.records
    run(tmp_path, url, "/a/checkpoint", 4, "other")
    assert "other weights of the model" in caplog.text
    assert names(url) == ["checkpoint/keep0.25/cosine", "mine"]
    # A folder's own study is told apart by the whole path, before anything is loaded.
    run(tmp_path / "own", None, "/a/checkpoint", 2)
    with pytest.raises(StudyError, match="model \\('/a/checkpoint' -> '/b/checkpoint'\\)"):
        run(tmp_path / "own", None, "/b/checkpoint", 2)


@pytest.mark.parametrize("shared", [True, False])
def test_a_study_that_an_earlier_release_named_after_the_path_goes_on(tmp_path, shared):
    url = f"sqlite:///{tmp_path}/study.db"
    before = "/a/checkpoint/keep0.25/cosine"
    storage = url if shared else None
    run(tmp_path, storage, "/a/checkpoint", 2, study_name=before)
    study = run(tmp_path, storage, "/a/checkpoint", 4)
    assert study.study_name == before
    assert names(url) == [before]
    # The twin: a model elsewhere has another study, although its folder is called the same.
    if shared:
        assert run(tmp_path, url, "/b/checkpoint", 2).study_name == "checkpoint/keep0.25/cosine"
