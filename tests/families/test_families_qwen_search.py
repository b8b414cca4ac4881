"""Qwen-VL from a folder: processor, search, verify, show and deployment, as if downloaded."""

import pytest
import torch
from cli_runner import picture, search_folder, verify_and_show
from family_models import each, family
from family_models._folders import save_qwen
from reference_models import make_config
from test_families_qwen import QWEN
from transformers import AutoProcessor
from transformers.utils import is_torchvision_available

import prunetune
from prunetune.calibration import Sample, encode
from prunetune.config import PruningConfig
from prunetune.models import load_model
from prunetune.presets import load_preset


@pytest.fixture(scope="module", params=each(*QWEN))
def folder(request, tmp_path_factory):
    return save_qwen(family(request.param), tmp_path_factory.mktemp("models") / request.param)


@pytest.mark.skipif(is_torchvision_available(), reason="torchvision is installed: nothing to mend")
def test_the_stock_processor_needs_torchvision(folder):
    with pytest.raises((ImportError, AttributeError)):
        AutoProcessor.from_pretrained(folder)


@pytest.mark.script
def test_search_verify_and_show(folder, tmp_path):
    pytest.importorskip("optuna", reason="without the extra `search` there is nothing to run")
    ran, path = search_folder(folder, tmp_path)
    notes = {one["name"]: one["notes"] for one in ran.json["baselines"]}
    assert "positions stay original" in notes["fastervlm"]
    assert PruningConfig.load(path).positions == "original"
    verify_and_show(folder, path, tmp_path)


@torch.no_grad()
def test_a_deployment_from_the_folder(folder):
    loaded = load_model(str(folder))
    samples = [Sample((picture(1),), "what ?"), Sample((picture(2, (64, 90)), picture(3)), "and ?")]
    inputs = encode(loaded.processor, samples)
    config = make_config(loaded.model, "0+1+3")
    with prunetune.apply(loaded.model, config) as handle:
        loaded.model.generate(**inputs, max_new_tokens=3)
    [trace] = handle.trace
    assert list(map(len, trace.lengths)) == [1, 2]
    assert trace.stages[-1].after == [
        sum(int(config.stages[-1].retention * n + 0.5) for n in lengths)
        for lengths in trace.lengths
    ]


def test_a_preset_keeps_positions_that_are_rows_and_columns():
    kept, note = load_preset("vflowopt", model_type="qwen2_vl", num_layers=28, keep=0.25)
    packed, other = load_preset("vflowopt", model_type="llava_next", num_layers=28, keep=0.25)
    assert (kept.positions, packed.positions) == ("original", "packed")
    assert "qwen2_vl" in note
    assert "positions" not in other
    assert load_preset("topv", model_type="qwen2_vl", num_layers=28)[1] == ""
