"""``--engine vllm``: what it refuses before anything is loaded; needs no vLLM."""

from types import SimpleNamespace

import pytest
from cli_runner import refused

from prunetune.cli._vllm import prompts
from prunetune.config import PruningConfig
from prunetune.errors import ConfigError


@pytest.fixture
def later(tmp_path):
    """Return a config with a stage that vLLM cannot run."""
    data = {
        "format": "prunetune.config",
        "version": 1,
        "model": {"model_type": "llava_next", "num_layers": 16, "name": "tiny"},
        "stages": [{"layer": 2, "retention": 0.2, "scorers": [{"name": "coverage"}]}],
    }
    return PruningConfig.parse(data).save(tmp_path / "later.prune.json")


def test_a_config_that_vllm_cannot_run(later):
    for verb in ("verify", "bench"):
        refused(verb, later, "--engine", "vllm", has=("layer 2", "search with --engine vllm"))
        refused(verb, later, "--engine", "vlm", has=("--engine", "'vlm'", "vllm"))


def test_verify_in_vllm_heeds_the_held_out_split_and_measures_no_gap(later):
    has = ("--max-gap", "--engine vllm")
    refused("verify", later, "--engine", "vllm", "--max-gap", "0.1", has=has)
    splits = SimpleNamespace(calibration=[1, 2], held_out=[3])
    assert prompts(splits, held_out=False) == {"calibration": [1, 2]}
    assert prompts(splits, held_out=True) == {"calibration": [1, 2], "held-out": [3]}
    with pytest.raises(ConfigError, match="no held-out split"):
        prompts(SimpleNamespace(calibration=[1], held_out=None), held_out=True)


def test_bench_in_vllm_takes_a_config(later):
    refused("bench", "--preset", "topv", "--keep", "0.1", "--engine", "vllm", has=("CONFIG",))
    refused("bench", later, "--engine", "vllm", "--concurrency", "a", has=("layer 2",))


@pytest.mark.parametrize(
    ("flags", "word"),
    [(("--layers", "3-5"), "--layers"), (("--scorers", "topv"), "topv"), (("--mass", "1"), "mass")],
)
def test_a_search_for_vllm_refuses_what_it_cannot_apply(flags, word, tmp_path):
    refused("search", "--model", "tiny", "--engine", "vllm", *flags, "--out", tmp_path, has=(word,))
