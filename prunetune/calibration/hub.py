"""Hugging Face data sets as calibration sources: from the hub, or from a local folder."""

import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from prunetune.calibration.columns import records_of
from prunetune.calibration.options import refuse_unknown
from prunetune.calibration.reading import Reading
from prunetune.calibration.records import Record
from prunetune.calibration.references import Places
from prunetune.errors import DataError
from prunetune.hub.reasons import cause_of, reason_of
from prunetune.models.tensors import is_pointer
from prunetune.models.weights import existing

OPTIONS = (
    "split",
    "held_out_split",
    "image",
    "question",
    "answer",
    "type",
    "image_id",
    "config",
    "revision",
    "default_question",
)
_PROBE_SECONDS = 5.0
_KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    ".parquet": ("parquet", {}),
    ".arrow": ("arrow", {}),
    ".csv": ("csv", {}),
    ".tsv": ("csv", {"sep": "\t"}),
}


def read_hub(name: str, options: Mapping[str, str], reading: Reading) -> Iterator[Record]:
    """Yield the rows of a data set; see ``load_calibration`` for the options.

    Raises:
        DataError: It cannot be reached or loaded, or lacks a column or split.
    """
    refuse_unknown(f"hf:{name}", options, OPTIONS)
    sides: dict[str | None, str | None] = {None: options.get("split")}
    if "held_out_split" in options:
        sides = {"calibration": options.get("split"), "held_out": options["held_out_split"]}
    path = existing(name)
    folder = path.parent if path is not None and path.is_file() else path
    places = Places(folder, outside=folder is not None, remote=reading.remote)
    for side, split in sides.items():
        table = _load(name, split, options)
        yield from records_of(table, f"hf:{name}", options, side, places, reading)


def _load(name: str, split: str | None, options: Mapping[str, str]) -> Any:
    try:
        import datasets
    except ImportError as error:
        raise DataError(
            f"hf:{name} needs the package datasets; install it: pip install 'prunetune[search]'"
        ) from cause_of(error)
    folder, file = _folder(name), _file(name)
    if folder is None and file is None:
        _reach(name, options.get("revision"))
    quiet = not sys.stderr.isatty() and not datasets.are_progress_bars_disabled()
    if quiet:
        datasets.disable_progress_bars()
    try:
        if folder and any(
            (folder / mark).is_file() for mark in ("state.json", "dataset_dict.json")
        ):
            loaded = datasets.load_from_disk(str(folder))
            return _pick(loaded, split, name) if isinstance(loaded, dict) else loaded
        if file is not None:
            kind, more = _KINDS[file.suffix.lower()]
            tables = datasets.load_dataset(kind, data_files=str(file), **more)
            return _pick(tables, split, name)
        source = str(folder) if folder else name
        wanted = {"name": options.get("config"), "revision": options.get("revision")}
        if split is None:
            names = datasets.get_dataset_split_names(
                source, wanted["name"], revision=wanted["revision"]
            )
            split = _only(names, name)
        return datasets.load_dataset(source, split=split, **wanted)
    except DataError:
        raise
    except Exception as error:  # datasets raises errors of a dozen packages, none of them ours
        _refuse_pointers(name, [file] if file else [*folder.rglob("*.*")] if folder else [])
        raise DataError(
            f"hf:{name} cannot be loaded: {reason_of(error)}; {_download(name)}"
        ) from cause_of(error)
    finally:
        if quiet:
            datasets.enable_progress_bars()


def _refuse_pointers(name: str, files: Sequence[Path]) -> None:
    if found := next((path for path in files if path.is_file() and is_pointer(path)), None):
        raise DataError(
            f"hf:{name}: {found.name} is a pointer of git-lfs, not the file; run git lfs pull "
            "there, or hf download --repo-type dataset"
        )


def _file(name: str) -> Path | None:
    path = existing(name)
    return path if path and path.is_file() and path.suffix.lower() in _KINDS else None


def _folder(name: str) -> Path | None:
    path = existing(name)
    return path if path is not None and path.is_dir() else None


def _reach(name: str, revision: str | None) -> None:
    """Fail in seconds where the hub cannot be reached; ``datasets`` alone would retry for 30."""
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import (
        GatedRepoError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name) or ".." in name:
        raise DataError(f"hf:{name} is neither a folder nor a hub id like owner/name")
    if constants.HF_HUB_OFFLINE or os.environ.get("HF_DATASETS_OFFLINE", "0") not in ("", "0"):
        return
    try:
        HfApi().dataset_info(name, revision=revision, timeout=_PROBE_SECONDS)
    except (GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError) as error:
        raise DataError(
            f"hf:{name}: the hub has no such data set or revision, or it needs a login; check the "
            f"id and revision, or run: hf auth login"
        ) from cause_of(error)
    except Exception as error:  # the HTTP library beneath huggingface_hub changes between releases
        raise DataError(
            f"hf:{name}: the hub cannot be reached ({reason_of(error)}); {_download(name)}"
        ) from cause_of(error)


def _download(name: str) -> str:
    if _folder(name):
        return "check the folder"
    return (
        f"on a machine with network run: hf download --repo-type dataset {name} --local-dir DIR, "
        f"and use hf:DIR (HF_HUB_OFFLINE=1 uses what is cached); --data tiny works now"
    )


def _only(splits: list[str], name: str) -> str:
    if len(splits) != 1:
        raise DataError(f"hf:{name} has the splits {', '.join(splits)}; choose one with ?split=...")
    return splits[0]


def _pick(tables: Mapping[str, Any], split: str | None, name: str) -> Any:
    """Return a split, or what an expression such as ``a+b`` or ``a[:10%]`` names."""
    import datasets

    chosen = split if split is not None else _only(list(tables), name)
    if chosen in tables:
        return tables[chosen]
    lengths = {key: len(table) for key, table in tables.items()}
    try:
        parts = datasets.ReadInstruction.from_spec(chosen).to_absolute(lengths)
        found = [tables[p.splitname].select(range(p.from_ or 0, p.to)) for p in parts]
    except (ValueError, AssertionError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"hf:{name} has no split {chosen!r}; allowed: {', '.join(tables)}"
        ) from cause_of(error)
    return datasets.concatenate_datasets(found)
