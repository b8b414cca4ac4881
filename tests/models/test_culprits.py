"""Checkpoints and processors that cannot be used are refused with the names of what is wrong."""

import json
import os
import shutil

import pytest
from safetensors.torch import load_file, save_file

from prunetune.errors import ConfigError
from prunetune.models import EMBEDDED, load_model

POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 8624608\n"


@pytest.fixture
def folder(tmp_path):
    copy = tmp_path / "m"
    shutil.copytree(EMBEDDED, copy)
    for path in (copy, *copy.iterdir()):
        os.chmod(path, 0o755 if path.is_dir() else 0o644)
    return copy


def refused(folder, *parts):
    with pytest.raises(ConfigError) as caught:
        load_model(str(folder))
    line = str(caught.value)
    assert "\n" not in line
    for part in parts:
        assert part in line, line


def test_tensors_that_are_missing_or_of_another_shape(folder):
    assert load_model(str(folder)).model, "the twin: as it is, it loads"
    weights = folder / "model.safetensors"
    whole = load_file(weights)
    renamed = {k.replace("language_model.model.", "model."): v for k, v in whole.items()}
    save_file(renamed, weights, metadata={"format": "pt"})
    refused(folder, "lacks", "layers.0.input_layernorm", "of other names")
    name = next(k for k in whole if k.endswith("linear_1.weight"))
    save_file(whole | {name: whole[name][:-1].clone()}, weights, metadata={"format": "pt"})
    refused(folder, "other shapes", "linear_1.weight", str(list(whole[name].shape)))


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "config.json"])
def test_pointers_of_git_lfs(folder, name):
    (folder / name).write_text(POINTER)
    refused(folder, name, "git lfs pull")


def test_weights_that_are_cut_off(folder):
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[: len(data) // 2])
    refused(folder, "model.safetensors", f"{len(data) // 2} of {len(data)} bytes")
    (folder / "model.safetensors").write_bytes(b"<html>")
    refused(folder, "model.safetensors", "no readable header")


def test_processors_without_what_they_need(folder):
    found = next(p for p in folder.iterdir() if p.name == "processor_config.json")
    settings = json.loads(found.read_text())
    found.write_text(json.dumps({k: v for k, v in settings.items() if k != "patch_size"}))
    refused(folder, "patch_size", "processor_config.json")
    found.unlink()
    for path in folder.glob("*preprocessor_config.json"):
        path.unlink()
    refused(folder, "image")
