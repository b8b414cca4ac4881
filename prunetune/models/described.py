"""What a checkpoint's folder says of itself: bounded reads, errors that name the file."""

import stat
from pathlib import Path
from typing import Any

from prunetune.errors import ConfigError
from prunetune.files import MOST_BYTES, read_plain
from prunetune.messages import one_line, plain
from prunetune.texts import parse_json

CONFIG = "config.json"
INDEX = "model.safetensors.index.json"
_MOST_CONFIG = 16 << 20
_OBJECTS = (
    CONFIG,
    INDEX,
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "tokenizer_config.json",
    "video_preprocessor_config.json",
)
_TEXTS = {".json", ".jinja", ".txt", ".model"}
_WEIGHTS = ".safetensors"


def described(path: Path) -> dict[str, Any]:
    """Return the object of one of a checkpoint's JSON files.

    Raises:
        ConfigError: It cannot be read, is a pipe, a device, too large, or no JSON object.
    """
    try:
        # Keys that are there twice pass, as in transformers: the last one counts.
        said = parse_json(read_plain(path, _MOST_CONFIG).decode("utf-8-sig"), dict, halves=True)
        if not isinstance(said, dict):
            raise ValueError(f"received {type(said).__name__}, allowed a JSON object")
    except UnicodeDecodeError:
        raise _unreadable(path, "it is not UTF-8 text") from None
    except OSError as error:
        raise _unreadable(path, error.strerror or str(error)) from None
    except ValueError as error:
        raise _unreadable(path, str(error)) from None
    return said


def model_type_of(folder: Path) -> str:
    """Return what a folder's ``config.json`` says that its model is.

    Raises:
        ConfigError: As ``described``.
    """
    return str(described(folder / CONFIG).get("model_type"))


def config_of(folder: Path) -> Any:
    """Return the config of a folder, as transformers makes it of ``config.json``.

    Raises:
        ConfigError: It cannot be read, or transformers makes none of it.
    """
    from transformers import AutoConfig

    described(folder / CONFIG)
    try:
        # The folder's own code is neither run nor offered to be.
        return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # transformers raises errors of many kinds for a bad config
        raise _unreadable(folder / CONFIG, one_line(error)) from error


def refuse_endless(folder: Path) -> None:
    """Refuse files that would keep transformers reading: pipes, devices and huge texts.

    Raises:
        ConfigError: There is one.
    """
    for path in sorted(folder.iterdir()):
        if path.suffix not in _TEXTS | {_WEIGHTS}:
            continue
        try:
            found = path.stat()
        except FileNotFoundError:  # a link to nothing, which is not there for transformers either
            continue
        if not (stat.S_ISREG(found.st_mode) or stat.S_ISDIR(found.st_mode)):
            raise _unreadable(path, "not a plain file")
        if path.suffix in _TEXTS and found.st_size > MOST_BYTES:
            raise _unreadable(path, f"larger than {MOST_BYTES >> 20} MiB")


def refuse_unreadable(folder: Path) -> None:
    """Refuse a folder whose JSON files of settings hold no object.

    Raises:
        ConfigError: There is one.
    """
    for name in _OBJECTS:
        if (folder / name).exists():
            described(folder / name)


def _unreadable(path: Path, reason: str) -> ConfigError:
    return ConfigError(
        f"model folder {path.parent}: {path.name} cannot be read: {plain(reason)}; download it "
        "again, or write it with save_pretrained"
    )
