"""Models by name: what loads, what is refused and how fast, and the fingerprint."""

import copy
import json
import shutil
import socket
import subprocess
import sys

import huggingface_hub
import pytest
import torch
from huggingface_hub import constants

from prunetune.calibration import answers_match, encode, load_calibration
from prunetune.errors import ConfigError, PrunetuneError, UnsupportedModelError
from prunetune.models import ALIASES, EMBEDDED, load_model, weights
from prunetune.models.fingerprint import fingerprint

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def tiny():
    return load_model("tiny")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty hub cache, and a hub that cannot be reached."""

    def fail(*args, **kwargs):
        raise ConnectionError("name or service not known\nsecond line")

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", fail)
    return tmp_path / "cache"


def refused(name, *parts, kind=ConfigError, **options):
    with pytest.raises(kind) as caught:
        load_model(name, **options)
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message
    return message


def copy_of_tiny(folder, **changes):
    shutil.copytree(EMBEDDED, folder)
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return folder


def test_tiny_loads_ready_to_run(tiny):
    assert tiny.name == "tiny"
    assert tiny.revision is None
    assert tiny.model.dtype == torch.float32
    assert tiny.model.device.type == "cpu"
    assert not tiny.model.training
    assert tiny.processor.tokenizer.padding_side == "left"
    assert tiny.fingerprint == fingerprint(tiny.model.config)


def test_tiny_answers_the_shipped_questions(tiny):
    samples = [s for s in load_calibration("tiny", held_out_samples=32)[1] if s.type != "list"][:24]
    inputs = encode(tiny.processor, samples)
    with torch.no_grad():
        logits = tiny.model(**inputs, logits_to_keep=1).logits[:, -1]
    said = tiny.processor.tokenizer.batch_decode(logits.argmax(-1)[:, None])
    right = sum(answers_match(text, s.answer) for text, s in zip(said, samples, strict=True))
    assert right / len(samples) > 0.6


def test_options_reach_the_model():
    loaded = load_model("tiny", dtype="bfloat16", device="cpu", attn="eager")
    assert loaded.model.dtype == torch.bfloat16
    assert loaded.model.config._attn_implementation == "eager"


def test_progress_bars_stay_out_of_logs_and_come_back(capfd):
    from transformers.utils import logging

    before = logging.is_progress_bar_enabled()
    load_model("tiny")
    assert "Loading" not in capfd.readouterr().err
    assert logging.is_progress_bar_enabled() is before


def test_a_folder_loads(tmp_path, tiny):
    loaded = load_model(str(copy_of_tiny(tmp_path / "m")), dtype="float32")
    assert loaded.name == str(tmp_path / "m")
    assert loaded.fingerprint == tiny.fingerprint
    assert load_model(str(tmp_path / "m")).model.dtype == torch.float16


def test_names_that_are_not_models(tmp_path, cache):
    refused("lava-next", "did you mean 'llava-next'", "tiny")
    refused("zzz", "unknown model 'zzz'", "allowed: tiny")
    refused("", "empty")
    refused(str(tmp_path / "gone"), "does not exist")
    (tmp_path / "empty").mkdir()
    refused(str(tmp_path / "empty"), "no config.json", "save_pretrained")
    refused("tiny", "revision", revision="main")
    refused("../nowhere", "does not exist")


def test_a_file_is_not_a_model(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes.txt").write_text("x")
    refused("notes.txt", "is a file")


def test_planned_aliases_and_other_families_are_refused(tmp_path):
    planned = [alias for alias in ALIASES if not alias.supported]
    for alias in planned:
        assert alias.status.startswith("planned")
        refused(alias.alias, alias.model_type, "supported: tiny", kind=UnsupportedModelError)
    other = copy_of_tiny(tmp_path / "m", model_type="mllama")
    refused(str(other), "'mllama'", "llava_next", kind=UnsupportedModelError)
    names = [alias.alias for alias in ALIASES]
    assert len(set(names)) == len(names)
    supported = {alias.alias for alias in ALIASES if alias.supported}
    assert {"tiny", "llava-1.5", "llava-1.5-13b", "llava-next", "llava-next-vicuna"} <= supported
    assert {alias.status for alias in ALIASES if alias.supported} == {"supported"}


def test_bad_options_are_one_line():
    refused("tiny", "dtype", "'float7'", "bfloat16", dtype="float7")
    refused("tiny", "exclude each other", device="cpu", device_map="auto")
    refused("tiny", "attn is 'nope'", "eager, flash_attention_2", "sdpa;", attn="nope")
    refused("tiny", "attn is 'paged|eager'", "leave it out", attn="paged|eager")
    refused("tiny", "'nope'", "cpu, cuda", device="nope")
    refused("tiny", "CUDA device(s)", "cpu", device="cuda:99")
    refused("tiny", "'spread'", "balanced", device_map="spread")
    refused("tiny", "not JSON", device_map="{")
    refused("tiny", "not JSON", "nested too deeply", device_map='{"a":' * 50_000)


def test_pickled_and_incomplete_weights_are_refused(tmp_path):
    folder = copy_of_tiny(tmp_path / "m")
    index = {"weight_map": {"a": "one.safetensors", "b": "model.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    refused(str(folder), "lacks one.safetensors")
    for bad in ("{", "[1]", "[" * 100_000, '{"weight_map": 5}', '{"weight_map": {"a": []}}'):
        (folder / "model.safetensors.index.json").write_text(bad)
        refused(str(folder), "model.safetensors.index.json")
    (folder / "model.safetensors.index.json").unlink()
    load_model(str(folder))
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    refused(str(folder), "safetensors")


def test_a_damaged_checkpoint_is_one_line(tmp_path):
    folder = copy_of_tiny(tmp_path / "m")
    (folder / "config.json").write_text("{")
    refused(str(folder), "config.json cannot be read")
    (folder / "model.safetensors").write_bytes(b"\x00" * 100)
    refused(str(folder), "model.safetensors is damaged")
    (folder / "config.json").write_text("version https://git-lfs.github.com/spec/v1")
    refused(str(folder), "config.json are pointers of git-lfs")


def test_weights_out_of_reach_name_the_command(cache):
    message = refused("llava-next", "hf download llava-hf/llava-v1.6-mistral-7b-hf", "--model tiny")
    assert "name or service not known" in message
    refused("owner/name", "hf download owner/name --revision abc", revision="abc")


def test_a_hub_that_never_answers_is_not_waited_for(tmp_path, monkeypatch):
    """Nobody ever accepts: without a limit of its own the call would end with pytest's."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(weights, "_PROBE_SECONDS", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        refused("owner/name", "hf download owner/name")


def test_a_missing_repository_names_the_login(cache, monkeypatch):
    def missing(*args, **kwargs):
        raise huggingface_hub.errors.GatedRepoError.__new__(huggingface_hub.errors.GatedRepoError)

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", missing)
    refused("owner/name", "hf auth login", "hf download owner/name")


def cached_tiny(cache, commit="c0ffee"):
    repository = cache / "models--owner--name"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    return copy_of_tiny(repository / "snapshots" / commit)


def test_cached_weights_need_no_hub_and_tell_their_commit(cache, tiny):
    cached_tiny(cache)
    loaded = load_model("owner/name")
    assert (loaded.name, loaded.revision) == ("owner/name", "c0ffee")
    assert loaded.fingerprint == tiny.fingerprint


def test_an_interrupted_download_is_not_taken_for_whole(cache):
    (cached_tiny(cache) / "model.safetensors").unlink()
    refused("owner/name", "hf download owner/name")


# --- fingerprint


@pytest.mark.parametrize(
    ("part", "field", "value"),
    [
        ("text_config", "num_hidden_layers", 17),
        ("text_config", "hidden_size", 64),
        ("text_config", "vocab_size", 97),
        ("text_config", "num_key_value_heads", 2),
        ("text_config", "rope_parameters", {"rope_theta": 5.0, "rope_type": "default"}),
        ("vision_config", "patch_size", 16),
        ("vision_config", "image_size", 128),
        ("vision_config", "num_hidden_layers", 6),
        (None, "image_grid_pinpoints", [[64, 64]]),
        (None, "vision_feature_layer", -1),
        (None, "image_token_id", 5),
    ],
)
def test_fingerprint_changes_with_the_architecture(tiny, part, field, value):
    config = copy.deepcopy(tiny.model.config)
    assert getattr(getattr(config, part) if part else config, field) is not None
    setattr(getattr(config, part) if part else config, field, value)
    assert fingerprint(config) != tiny.fingerprint


def test_fingerprint_ignores_what_a_fine_tune_or_a_release_changes(tiny):
    config = copy.deepcopy(tiny.model.config)
    config.dtype = torch.bfloat16
    config.text_config.dtype = torch.bfloat16
    config._name_or_path = "elsewhere"
    config.transformers_version = "9.9"
    config.text_config.use_cache = False
    config._attn_implementation = "eager"
    assert fingerprint(config) == tiny.fingerprint
    assert len(tiny.fingerprint) == 64


def test_errors_are_all_ours(tmp_path, cache):
    for name in ("", "a b", "a/b", "~nobody/x", "\0", "x" * 5000, str(tmp_path)):
        with pytest.raises(PrunetuneError):
            load_model(name)


@pytest.mark.parametrize(("also", "clean"), [("", True), ("import huggingface_hub; ", False)])
def test_importing_models_imports_nothing_heavy(also, clean):
    code = (
        f"import sys, prunetune.models; {also}"
        "print(not {'torch', 'transformers', 'huggingface_hub'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(clean)
