"""What version 2 of the config adds: selectors, exits, mass; and what it leaves alone."""

import json
from pathlib import Path

import jsonschema
import pytest
from cli_runner import refused
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from prunetune.config import PruningConfig, Stage
from prunetune.errors import ConfigError
from prunetune.registry import Tunable
from prunetune.selectors import SELECTORS
from tools import export_schema

FOLDER = Path(__file__).parent / "golden"
DIGESTS = {
    "v1_everything": "2facb1a10816818c7cb4efe13f3e33c216e766730c29b7469a4b4dc3ed5d7447",
    "v2_smallest": "bde6ee5148cc28861bf7c349eeacac377e5c2bd13d4c03639a1e93db8a9d5e69",
    "v2_quota": "c6f0a0463d5db22b3801802fd3b0910baee43e33655c0dae5b955a25acdd6392",
    "v2_everything": "95447c0b5e707af58abf2314e772b484c8dd97adc5a6d76bc53ec45f28ecb7d0",
}
COVER = {"layer": 2, "retention": 0.5, "selector": {"name": "cover"}}
EXIT = {"layer": 5, "retention": 0.0}


def data(*stages, version=2):
    model = {"model_type": "llava_next", "num_layers": 8}
    return {
        "format": "prunetune.config", "version": version, "model": model, "stages": list(stages)
    }  # fmt: skip


def quota(*parts, **stage):
    return {
        "layer": 2,
        "retention": 0.5,
        "selector": {"name": "quota", "parts": list(parts)},
    } | stage


@pytest.mark.parametrize(("name", "digest"), DIGESTS.items())
def test_digests_stay(name, digest):
    assert PruningConfig.load(FOLDER / f"{name}.json").digest() == digest


def test_what_a_golden_file_says_is_what_is_loaded():
    config = PruningConfig.load(FOLDER / "v2_everything.json")
    cover = config.stages[0].selector
    assert (cover.name, cover.scope, cover.tau, cover.text) == ("cover", "view", 0.2, 0.3)
    assert [stage.mass for stage in config.stages] == [0.75, 0.0, 0.0, 0.0]
    assert config.stages[2].selector.alpha == 0.1
    assert config.stages[-1].retention == 0.0
    assert config.prompt_dependent
    parts = PruningConfig.load(FOLDER / "v2_quota.json").stages[0].selector.parts
    assert [part.selector.name for part in parts] == ["top", "dpp", "spread"]
    assert parts[1].scorers[0].weight == -0.5


SCHEMA = jsonschema.Draft202012Validator(export_schema.schema())


@given(st.data())
def test_a_selector_survives_saving_and_loading(tmp_path_factory, data):
    """Every selector with its defaults, and with what the search draws of it."""
    kind = SELECTORS.get(data.draw(st.sampled_from(sorted(SELECTORS))))
    drawn = {
        key: tunable.decode(data.draw(st.floats(0, 1)))
        for key, info in kind.model_fields.items()
        for tunable in info.metadata
        if isinstance(tunable, Tunable)
    }
    stage = {"layer": 2, "retention": 0.5, "selector": {"name": kind(**drawn).name} | drawn}
    config = PruningConfig.parse(_data(stage))
    saved = config.save(tmp_path_factory.mktemp("round") / "a.json")
    again = PruningConfig.load(saved)
    assert (again, again.digest()) == (config, config.digest())
    assert type(again.stages[0].selector) is kind
    SCHEMA.validate(json.loads(saved.read_text()))


_data = data


def test_what_uses_nothing_new_is_written_as_version_1():
    old = Stage(layer=2, retention=0.5, scorers=({"name": "coverage"},))
    model = {"model_type": "llava_next", "num_layers": 8}
    config = PruningConfig(model=model, stages=(old,))
    assert config.version == 1
    assert not {"selector", "mass"} & json.loads(config.to_json())["stages"][0].keys()
    new = Stage(layer=2, retention=0.5, selector={"name": "cover"})
    assert PruningConfig(model=model, stages=(new,)).version == 2


TWO = {"layer": 4, "retention": 0.2}
BAD = [
    (data(COVER, version=1), "version: received 1, but stages.0 has a selector"),
    (
        data(COVER | {"selector": {"name": "cower"}}),
        "stages.0.selector: unknown selector 'cower'",
    ),
    (data(COVER | {"selector": {"name": "cover", "sigma": 1}}), "stages.0.selector.sigma: unknown"),
    (data(COVER | {"selector": {}}), "stages.0.selector: a selector needs a 'name', one of"),
    (data(COVER | {"selector": {"name": "cover", "tau": 0}}), "tau: received 0"),
    (data(COVER | {"selector": {"name": "cover", "tau": "x"}}), "tau: received 'x'"),
    (data(COVER | {"selector": {"name": "dpp", "theta": 1.0}}), "theta: received 1.0"),
    (data(quota({"share": 0.5}, {"share": 0.4})), "received shares 0.5 + 0.4 = 0.9"),
    (data(quota({"share": 1.0, "selector": {"name": "quota"}})), "received 'quota'"),
    (
        data(quota({"share": 1.0, "scorers": [{"name": "topv"}]})),
        "stages.0.selector: quota uses the scorer topv, which the stage does not have",
    ),
    (
        data(
            quota(
                {"share": 1.0, "scorers": [{"name": "topv"}]},
                layer=0,
                scorers=[{"name": "topv"}, {"name": "coverage"}],
            )
        ),
        "stages.0.selector: quota uses the scorer topv, which needs states of a decoder layer",
    ),
    (
        data(COVER | {"restorer": {"name": "uniform_recovery", "every": 16}}),
        "stages.0.restorer: uniform_recovery chooses what is kept by itself",
    ),
    (data(COVER, EXIT, TWO | {"layer": 6}), "stages.1.retention: received 0, but a stage follow"),
    (
        data(COVER, EXIT | {"scorers": [{"name": "coverage"}]}),
        "stages.1.scorers: received a value beside retention 0",
    ),
    (data(EXIT | {"layer": 0}), "stages.0.retention: received 0, allowed above 0 at layer 0"),
    (data(COVER | {"mass": 1.5}), "mass: received 1.5, allowed a number from 0 to 1"),
]


@pytest.mark.parametrize(("content", "message"), BAD, ids=[message[:60] for _, message in BAD])
def test_bad_input_is_one_line(content, message):
    with pytest.raises(ConfigError) as error:
        PruningConfig.parse(content)
    line = str(error.value)
    assert message in line, line
    assert line.isprintable()


@pytest.mark.parametrize("which", [1, 4, 7, 11])
def test_commands_print_it_and_exit_with_2(tmp_path, which):
    content, message = BAD[which]
    path = tmp_path / "bad.json"
    path.write_text(json.dumps(content))
    picture = tmp_path / "a.png"
    Image.new("RGB", (40, 30)).save(picture)
    refused("show", path, picture, has=(message,))
    refused("verify", path, has=(message,))
