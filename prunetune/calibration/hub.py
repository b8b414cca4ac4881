"""Hugging Face data sets as calibration sources: from the hub, or from a local folder."""

import hashlib
import os
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prunetune.calibration.dataset import Record
from prunetune.calibration.pictures import Source
from prunetune.calibration.rows import RowError, read_texts
from prunetune.errors import DataError
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


def read_hub(name: str, options: Mapping[str, str]) -> Iterator[Record]:
    """Yield the rows of a data set; see ``load_calibration`` for the options.

    Raises:
        DataError: It cannot be reached or loaded, or lacks a column or split.
    """
    if unknown := sorted(set(options) - set(OPTIONS)):
        raise DataError(f"hf:{name}: unknown option {unknown[0]!r}; allowed: {', '.join(OPTIONS)}")
    sides: dict[str | None, str | None] = {None: options.get("split")}
    if "held_out_split" in options:
        sides = {"calibration": options.get("split"), "held_out": options["held_out_split"]}
    for side, split in sides.items():
        table = _load(name, split, options)
        yield from _records(table, f"hf:{name}", options, side)


def _load(name: str, split: str | None, options: Mapping[str, str]) -> Any:
    try:
        import datasets
    except ImportError as error:
        raise DataError(
            f"hf:{name} needs the package datasets; install it: pip install 'prunetune[search]'"
        ) from error
    folder = _folder(name)
    if folder is None:
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
        raise DataError(
            f"hf:{name} cannot be loaded: {_first_line(error)}; {_download(name)}"
        ) from error
    finally:
        if quiet:
            datasets.enable_progress_bars()


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
        ) from error
    except Exception as error:  # the HTTP library beneath huggingface_hub changes between releases
        raise DataError(
            f"hf:{name}: the hub cannot be reached ({_first_line(error)}); {_download(name)}"
        ) from error


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
    chosen = split if split is not None else _only(list(tables), name)
    if chosen not in tables:
        raise DataError(f"hf:{name} has no split {chosen!r}; allowed: {', '.join(tables)}")
    return tables[chosen]


def _records(
    table: Any, name: str, options: Mapping[str, str], side: str | None
) -> Iterator[Record]:
    table, column = _undecoded(table, name, options)
    for key in ("question", "answer", "type", "image_id"):
        if key in options and options[key] not in table.column_names:
            raise DataError(
                f"{name} has no column {options[key]!r} for {key}; "
                f"allowed: {', '.join(table.column_names)}"
            )
    texts = table.remove_columns([c for c in table.column_names if _is_image(table.features[c])])
    for index, row in enumerate(texts if texts.column_names else [{}] * len(table)):
        place = f"{name} row {index}"
        try:
            said = read_texts(row, options, options.get("default_question"), "default_question")
            cell = table[index][column]
            cells = cell if isinstance(cell, list) else [cell]
            if not cells or None in cells:
                raise RowError(f"has no picture in column {column!r}; remove the row")
        except RowError as error:
            yield Record((), "", None, None, place, side, f"{place}: {error}")
            continue
        sources = tuple(
            Source(f"{place} picture {i + 1}", _Cell(table, column, index, i))
            for i in range(len(cells))
        )
        identity = row.get(options.get("image_id", "image_id"))
        image_id = _content_id(cells) if identity is None else str(identity)
        yield Record(sources, said.question, said.answer, said.type, image_id, side)


def _is_image(feature: Any) -> bool:
    import datasets

    return isinstance(getattr(feature, "feature", feature), datasets.Image)


def _undecoded(table: Any, name: str, options: Mapping[str, str]) -> tuple[Any, str]:
    """Return the table with pictures left encoded, to name a bad one, and their column."""
    import datasets

    pictures = [column for column in table.column_names if _is_image(table.features[column])]
    column = options.get("image", pictures[0] if pictures else "image")
    if column not in pictures:
        raise DataError(
            f"{name} has no picture column {column!r}; picture columns: "
            f"{', '.join(pictures) or 'none'}; all columns: {', '.join(table.column_names)}"
        )
    raw = datasets.Image(decode=False)
    feature = table.features[column]
    nested = not isinstance(feature, datasets.Image)
    return table.cast_column(column, datasets.List(raw) if nested else raw), column


@dataclass(frozen=True)
class _Cell:
    """Reads a picture of a memory-mapped table; a class, not a closure, so that it pickles."""

    table: Any
    column: str
    row: int
    position: int

    def __call__(self) -> bytes:
        """Return the encoded picture."""
        cell = self.table[self.row][self.column]
        return _encoded(cell[self.position] if isinstance(cell, list) else cell)


def _encoded(cell: Mapping[str, Any]) -> bytes:
    if cell["bytes"] is not None:
        return bytes(cell["bytes"])
    return Path(cell["path"]).read_bytes()


def _content_id(cells: list[Mapping[str, Any]]) -> str:
    """Identify pictures by their encoded bytes, since hub rows often repeat one under no name."""
    digest = hashlib.sha256()
    for cell in cells:
        try:
            digest.update(_encoded(cell))
        except OSError:
            digest.update(str(cell["path"]).encode())
    return digest.hexdigest()[:16]


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
