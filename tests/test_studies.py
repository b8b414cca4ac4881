"""Study specs that ship: each loads, fits its model, and names data that can be fetched."""

from pathlib import Path

import pytest
from cli_runner import refused
from huggingface_hub import constants

from prunetune.calibration import load_calibration
from prunetune.errors import ConfigError, DataError
from prunetune.models.aliases import ALIASES, Alias
from prunetune.spec import StudySpec

FOLDER = Path(__file__).resolve().parents[1] / "studies"
SPECS = {path.stem: path for path in sorted(FOLDER.glob("*.toml"))}
BY_NAME = {alias.alias: alias for alias in ALIASES}
ASKED = (
    "llava-1.5",
    "llava-next",
    "llava-next-vicuna",
    "llava-onevision",
    "qwen2-vl",
    "qwen2.5-vl",
    "qwen3-vl",
    "internvl3",
    "video-llava",
)


@pytest.mark.parametrize("name", SPECS)
def test_every_spec_loads_and_fits_its_model(name):
    spec = StudySpec.load(SPECS[name])
    alias = BY_NAME[spec.model]
    assert alias.supported, f"{name}: {alias.status}"
    rotary = alias.model_type.startswith("qwen")
    assert not (rotary and "packed" in spec.space.positions)


def test_a_spec_with_a_mistake_would_be_noticed(tmp_path):
    text = SPECS["qwen2-vl"].read_text("utf-8")
    (tmp_path / "a.toml").write_text(text.replace('"topv"', '"topw"'))
    with pytest.raises(ConfigError, match="topw"):
        StudySpec.load(tmp_path / "a.toml")


def test_every_model_that_was_asked_for_has_one():
    assert set(ASKED) <= set(SPECS)
    named = {alias.study for alias in ALIASES if alias.study}
    assert set(ASKED) <= named <= set(SPECS)
    for alias in ALIASES:
        if alias.study:
            assert StudySpec.load(SPECS[alias.study]).model == alias.alias


@pytest.fixture
def away(tmp_path, monkeypatch):
    """Nothing cached, and a hub that cannot be reached (no test has a network)."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    return tmp_path


@pytest.mark.parametrize("name", ASKED)
def test_its_data_is_read_by_hub_id(name, away):
    """Its options are understood: what is refused is the missing network alone."""
    spec = StudySpec.load(SPECS[name])
    assert spec.data.startswith("hf:")
    with pytest.raises(DataError, match=r"cannot be reached.*hf download --repo-type dataset"):
        load_calibration(spec.data)
    with pytest.raises(DataError, match="unknown option"):
        load_calibration(f"{spec.data}&quest=x")


def test_aliases_say_what_a_model_needs():
    names = [alias.alias for alias in ALIASES]
    hubs = [alias.hub_id for alias in ALIASES]
    assert len(set(names)) == len(names) == len(set(hubs))
    for alias in ALIASES:
        assert alias.hub_id.count("/") == 1 or alias.embedded
        assert alias.memory_gb > alias.weights_gb == 2 * alias.parameters
        assert alias.proof
    planned = Alias("x", "owner/x", "no_such_family", 1.0)
    assert planned.proof == "no results recorded"
    assert planned.status.startswith("planned")


def test_missing_weights_are_one_line_with_the_command(away):
    words = ("hf download Qwen/Qwen2-VL-7B-Instruct", "--model tiny")
    refused("bench", "--preset", "topv", "--keep", "0.2", "--model", "qwen2-vl", has=words)
    out = ("--out", away / "s")
    refused("search", "--model", "qwen2-vl", "--data", "tiny", *out, has=words)
