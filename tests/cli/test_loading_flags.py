"""Every verb that loads a model takes the same flags, and they reach the loader."""

import re
from pathlib import Path

import optuna
import pytest
from cli_runner import call, refused

import prunetune
from prunetune import models
from prunetune.cli._loading import FLAGS
from prunetune.errors import ConfigError
from prunetune.presets import load_preset
from prunetune.spec import StudySpec
from prunetune.study.database.connect import open_storage
from prunetune.study.database.storage import quiet
from prunetune.study.database.urls import storage_url

VERBS = ("export", "verify", "bench", "serve", "show", "search", "report", "diff", "dashboard")


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_that_loads_has_the_flags(verb):
    shown = call(verb, "--help").out
    assert [f"--{name.replace('_', '-')}" in shown for name in FLAGS] == [True] * len(FLAGS)


def test_no_verb_that_loads_is_forgotten():
    """Its pair: whoever calls ``load_model`` or takes a device is in the list above."""
    folder = Path(prunetune.__file__).parent / "cli"
    loads = re.compile(r"load_model\(|load_for\(|loaded_subject\(|prepare\(spec|measured_config\(")
    found = {path.stem for path in folder.glob("*.py") if loads.search(path.read_text("utf-8"))}
    # What a verb does elsewhere is handed the verb's own options.
    assert found - {"_vllm"} == set(VERBS)
    assert "loading" not in call("verify", "--help").out.lower().split()


@pytest.fixture
def seen(monkeypatch):
    """Options the loader was given; it then refuses."""
    given = {}

    def load(name, **options):
        given.update(options, name=name)
        raise ConfigError("seen")

    monkeypatch.setattr(models, "load_model", load)
    return given


WORDS = ("--dtype", "bfloat16", "--device-map", "auto", "--attn", "eager", "--revision", "v2",
         "--max-pixels", "9", "--processor", "do_rescale=false")  # fmt: skip
TOLD = {
    "name": "owner/name",
    "dtype": "bfloat16",
    "device": None,
    "device_map": "auto",
    "attn": "eager",
    "revision": "v2",
    "processor": {"max_pixels": 9, "do_rescale": False},
}


@pytest.mark.parametrize("verb", ["verify", "bench", "serve", "search"])
def test_the_flags_reach_the_loader(verb, seen, tmp_path):
    config, _ = load_preset("uniform", model_type="llava_next", num_layers=16, keep=0.4)
    named = config.model.model_copy(update={"name": "owner/name", "revision": "v1"})
    # Other options than the config's own are said in a line of their own.
    made = config.provenance.model_copy(update={"processor": TOLD["processor"]})
    path = config.model_copy(update={"model": named, "provenance": made}).save(tmp_path / "c.json")
    words = {
        "verify": (path,),
        "bench": (path,),
        "serve": (path,),
        "search": ("--model", "owner/name", "--data", "tiny", "--out", tmp_path / "s"),
    }[verb]
    refused(verb, *words, *WORDS, has=("seen",))
    assert seen == TOLD
    if verb != "search":
        refused(verb, *words, has=("seen",))
        assert (seen["revision"], seen["processor"]) == ("v1", TOLD["processor"])


def test_the_flags_of_export_reach_the_loader(seen, tmp_path):
    told = StudySpec(model="owner/name", revision="v1", data="tiny", trials=1)
    with quiet():
        storage = open_storage(storage_url(tmp_path, None))
        study = optuna.create_study(study_name=told.study_name, storage=storage)
    study.set_user_attr("spec", told.model_dump(mode="json"))
    study.add_trial(optuna.trial.create_trial(value=0.1, user_attrs={"config": {}}))
    words = ("export", tmp_path, "-o", tmp_path / "c.json")
    refused(*words, *WORDS, has=("seen",))
    assert seen == TOLD
    refused(*words, has=("seen",))
    assert seen["revision"] == "v1"


def test_flags_that_cannot_be(tmp_path):
    words = ("bench", "--preset", "uniform", "--keep", "0.5", "--model", "tiny")
    refused(*words, "--device-map", "everywhere", has=("'everywhere'", "balanced"))
    refused(*words, "--device-map", "auto", "--device", "cpu", has=("exclude each other",))
    for where in (words, (*words[:5], "--shape", "mid")):
        line = refused(*where, "--attn", "flash", has=("attn is 'flash'", "sdpa", "leave it out"))
        assert len(line) < 200
    refused(*words, "--revision", "v1", has=("'tiny' is embedded",))
