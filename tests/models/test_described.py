"""What a checkpoint's folder holds is read within bounds, whichever verb comes first."""

import json
import os
import signal
from pathlib import Path

import pytest
from transformers import AutoConfig

from prunetune.errors import ConfigError
from prunetune.models import EMBEDDED, described
from prunetune.models.anatomy import on_meta
from prunetune.models.load import find_model, load_model, processor_of

DOORS = {"find_model": find_model, "load_model": load_model, "processor_of": processor_of}
SETTINGS = ("config.json", "generation_config.json", "processor_config.json")
READ = (*SETTINGS, "tokenizer.json", "chat_template.jinja", "model.safetensors")

BROKEN = {
    "text": b"hello",
    "no UTF-8": b"\xff\xfe{}",
    "a list": b"[1, 2]",
    "nested": b'{"a":' * 50_000,
    "digits": b'{"model_type": ' + b"9" * 5000 + b"}",
}


def folder_with(where: Path, name: str) -> Path:
    """Return the place of a file in a folder that has all the others of tiny."""
    where.mkdir()
    for file in EMBEDDED.iterdir():
        if file.name != name:
            (where / file.name).symlink_to(file)
    return where / name


def pipe(path):
    os.mkfifo(path)


def device(path):
    path.symlink_to("/dev/zero")


def endless(path):
    with path.open("wb") as file:
        file.truncate(64 << 30)


@pytest.fixture(autouse=True)
def bound():
    """Nothing here may wait for what never comes."""
    signal.alarm(60)
    yield
    signal.alarm(0)


def refused(door, folder, name):
    with pytest.raises(ConfigError, match=rf"\A[^\n]+{name} cannot be read: [^\n]+\Z") as caught:
        door(str(folder))
    assert len(str(caught.value)) < 500 + len(str(folder))


@pytest.mark.parametrize("put", [pipe, device, endless])
@pytest.mark.parametrize("name", READ)
def test_what_never_ends_is_refused(tmp_path, name, put):
    path = folder_with(tmp_path / "m", name)
    put(path)
    if name.endswith(".safetensors") and path.is_file():
        return  # weights may be large: the last test but one
    for door in DOORS.values():
        refused(door, path.parent, name)


@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN)
def test_broken_settings_are_named(tmp_path, content):
    for name in SETTINGS:
        path = folder_with(tmp_path / name, name)
        path.write_bytes(content)
        for door in DOORS.values():
            refused(door, path.parent, name)
        if name == "config.json":
            refused(on_meta, path.parent, name)


def test_a_config_that_transformers_refuses_is_named(tmp_path):
    path = folder_with(tmp_path / "m", "config.json")
    said = json.loads((EMBEDDED / "config.json").read_text())
    path.write_text(json.dumps(said | {"text_config": {"model_type": "nobody's"}}))
    refused(lambda folder: described.config_of(Path(folder)), path.parent, "config.json")
    # Its pair: what is right is read as transformers reads it, doubled keys and all.
    path.write_text('{"model_type": "bert",' + json.dumps(said)[1:])
    assert find_model(str(path.parent))[1] == "llava_next"
    assert (
        described.config_of(path.parent).to_dict()
        == AutoConfig.from_pretrained(path.parent).to_dict()
    )


def test_a_header_longer_than_any_is_not_read(tmp_path):
    path = folder_with(tmp_path / "m", "model.safetensors")
    endless(path)
    with path.open("r+b") as file:
        file.write((32 << 30).to_bytes(8, "little"))
    with pytest.raises(ConfigError, match="no readable header"):
        find_model(str(path.parent))


def test_without_the_check_transformers_fails_its_own_way(tmp_path, monkeypatch):
    """The pair of the tests above."""
    path = folder_with(tmp_path / "m", "generation_config.json")
    path.write_bytes(BROKEN["a list"])
    monkeypatch.setattr("prunetune.models.weights.refuse_unreadable", lambda folder: None)
    with pytest.raises(ConfigError, match="cannot be loaded"):
        load_model(str(path.parent))
