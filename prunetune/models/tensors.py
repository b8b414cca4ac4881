"""Whether a checkpoint's tensors are all there and fit the model: by name, shape and length."""

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prunetune.errors import ConfigError

_SHOWN = 3
POINTER = b"version https://git-lfs.github.com/spec/"
_POINTER_BYTES = 1024
_MOST_HEADER = 100_000_000  # of safetensors itself


def refuse_unfit(folder: Path, found: Mapping[str, Any]) -> None:
    """Refuse a model of which transformers has drawn tensors at random.

    Args:
        folder: Of the checkpoint.
        found: What ``from_pretrained`` says of the loading.

    Raises:
        ConfigError: Tensors are missing, or have other shapes; the first are named.
    """
    missing, unexpected = sorted(found["missing_keys"]), sorted(found["unexpected_keys"])
    if missing:
        more = f", and holds {len(unexpected)} of other names: {_first(unexpected)}"
        raise ConfigError(
            f"model folder {folder} lacks {len(missing)} tensor(s) of the model: {_first(missing)}"
            f"{more if unexpected else ''}; they would be random: convert the checkpoint to "
            "transformers' names, or download it again"
        )
    if other := sorted(found["mismatched_keys"], key=str):
        name, held, wanted = other[0]
        raise ConfigError(
            f"model folder {folder}: {len(other)} tensor(s) have other shapes than config.json "
            f"says: {name} is {list(held)}, the model's is {list(wanted)}; use the config.json of "
            "this checkpoint"
        )


def _first(names: list[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")


def refuse_pointers(folder: Path) -> None:
    """Refuse a folder that was cloned without its large files.

    Raises:
        ConfigError: A file is a pointer of git-lfs, or safetensors are shorter than they say.
    """
    small = [p for p in sorted(folder.iterdir()) if p.is_file() and p.stat().st_size < 1 << 20]
    pointers = [p.name for p in small if is_pointer(p)]
    if pointers:
        raise ConfigError(
            f"model folder {folder}: {_first(pointers)} are pointers of git-lfs, not the files; "
            "run git lfs pull there, or hf download ID --local-dir FOLDER"
        )
    for path in sorted(folder.glob("*.safetensors")):
        whole, size = _stated_size(path), path.stat().st_size
        if whole is None or whole > size:
            stated = "no readable header" if whole is None else f"{size} of {whole} bytes"
            raise ConfigError(
                f"model folder {folder}: {path.name} is damaged or not whole ({stated}); download "
                "it again"
            )


def is_pointer(path: Path) -> bool:
    """Tell whether git-lfs would have to fetch a file."""
    if path.stat().st_size > _POINTER_BYTES:
        return False
    with path.open("rb") as file:
        return file.read(len(POINTER)) == POINTER


def _stated_size(path: Path) -> int | None:
    """Return how long a safetensors file says it is; None where it does not say so."""
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > min(path.stat().st_size, _MOST_HEADER):
                return None
            header = json.loads(file.read(length))
        ends = [v["data_offsets"][1] for k, v in header.items() if k != "__metadata__"]
        return 8 + int(length) + max(ends, default=0)
    except (OSError, ValueError, struct.error, KeyError, TypeError, AttributeError, RecursionError):
        return None
