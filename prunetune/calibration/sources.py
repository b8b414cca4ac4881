"""Calibration sources: the shipped set, folders, JSONL files and Hugging Face data sets."""

from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import Any

from prunetune.calibration.dialogues import is_dialogue
from prunetune.calibration.folders import METADATA, Tree, is_table
from prunetune.calibration.options import read_options, read_options_as_before, refuse_unknown
from prunetune.calibration.pictures import SUFFIXES, Source
from prunetune.calibration.reading import Reading, dialogue_record, picture_beside
from prunetune.calibration.records import Record
from prunetune.calibration.references import Places
from prunetune.calibration.rows import (
    RowError,
    missing,
    plain,
    read_names,
    read_texts,
)
from prunetune.errors import ConfigError, DataError
from prunetune.files import MOST_TABLE, read_plain
from prunetune.models.embedded import NAME, folder_of, is_embedded
from prunetune.models.tensors import POINTER
from prunetune.models.weights import existing
from prunetune.texts import parse_json

DEFAULT_QUESTION = "Describe the image."
_ALLOWED = "allowed: tiny, a folder, a .jsonl, .json, .zip or .parquet file, or hf:ID"
_SPLITS = ("calibration", "held_out")
_TABLES = (".parquet", ".arrow", ".csv", ".tsv")


def read_source(spec: str, reading: Reading | None = None) -> Iterator[Record]:
    """Yield the rows of a source; their pictures are not decoded yet."""
    reading = reading or Reading()
    options_of = read_options_as_before if reading.as_before else read_options
    if is_embedded(spec):
        return _read_folder(_shipped(spec), None, reading)
    hub = spec.startswith("hf:")
    name, options = options_of(spec.removeprefix("hf:"))
    if not name:
        raise DataError(f"calibration source {spec!r} names nothing; {_ALLOWED}")
    path = existing(name)
    if hub or (path is not None and _is_table(path)):
        from prunetune.calibration.hub import read_hub

        return read_hub(name, options, reading)
    refuse_unknown(f"calibration source {spec!r}", options, ("question",))
    question = options.get("question")
    if path is None:
        raise DataError(f"calibration source {name!r} does not exist; {_ALLOWED}{_hint(name)}")
    if path.is_dir() or (path.is_file() and path.suffix.lower() == ".zip"):
        return _read_folder(path, question, reading)
    if path.is_file() and path.suffix in (".jsonl", ".json"):
        rows = Source(str(path), partial(read_plain, path, MOST_TABLE))
        return _read_metadata(Tree.beside(path), path.name, rows, None, question, reading)
    what = "a file, not a folder" if path.is_file() else "a pipe or a device, no plain file"
    raise DataError(f"calibration source {name!r} is {what}; {_ALLOWED}")


def _hint(name: str) -> str:
    if get_close_matches(name, ["tiny"]):
        return "; did you mean 'tiny'?"
    return f"; did you mean 'hf:{name}'?" if name.count("/") == 1 and name[0] not in "./~" else ""


def _is_table(path: Path) -> bool:
    """Tell whether ``datasets`` reads a path although nobody wrote ``hf:``."""
    if path.is_file():
        return path.suffix.lower() in _TABLES
    if not path.is_dir() or any((path / name).is_file() for name in (METADATA, *_SPLITS)):
        return False
    if any((path / f"metadata{suffix}").is_file() for suffix in (".csv", ".parquet")):
        return True
    pictures = (p for p in path.rglob("*") if p.suffix.lower() in (*SUFFIXES, ".zip"))
    return next(pictures, None) is None and is_table(path)


def tiny_folder() -> Path:
    """Return the folder of the shipped set: in the wheel, or beside the package in a checkout."""
    return _shipped(NAME)


def _shipped(name: str) -> Path:
    try:
        return folder_of(name, "data")
    except ConfigError as error:
        raise DataError(str(error)) from error


def _read_folder(folder: Path, question: str | None, reading: Reading) -> Iterator[Record]:
    if all((folder / split).is_dir() for split in _SPLITS):
        for split in _SPLITS:
            yield from _read_tree(Tree.of(folder / split), split, question, reading)
    else:
        yield from _read_tree(Tree.of(folder), None, question, reading)


def _read_tree(
    tree: Tree, split: str | None, question: str | None, reading: Reading
) -> Iterator[Record]:
    metadata = tree.metadata()
    if reading.as_before:
        metadata = [name for name in metadata if name == METADATA]
    reading.notes += tree.warn_passed_over(metadata)
    for name in metadata:
        yield from _read_metadata(tree, name, tree.files[name], split, question, reading)
    below = tuple(name[: -len(METADATA)] for name in metadata)
    pictures = {n: s for n, s in tree.pictures().items() if not n.startswith(below)}
    if not pictures and not metadata:
        raise DataError(
            f"folder {tree.root} holds no pictures ({', '.join(sorted(SUFFIXES))}) and no "
            f"metadata.jsonl; add some, or use --data tiny"
        )
    texts = read_texts({}, {}, question if question is not None else DEFAULT_QUESTION)
    for name, source in pictures.items():
        yield Record((source,), texts.question, None, None, name, split, place=source.name)


def _read_metadata(
    tree: Tree,
    name: str,
    file: Source,
    split: str | None,
    question: str | None,
    reading: Reading,
) -> Iterator[Record]:
    """Yield the rows of a metadata file, whose pictures lie beside it."""
    before = name[: -len(Path(name).name)]
    beside = Tree(tree.root / before if before else tree.root, _below(tree, before))
    rows = 0
    for place, row in _json_rows(file):
        rows += 1
        yield _record(beside, place, row, split, question, reading)
    if not rows:
        raise DataError(
            f"{file.name} has no rows; add one JSON object a line with file_name and question"
        )


def _below(tree: Tree, before: str) -> dict[str, Source]:
    return {n[len(before) :]: s for n, s in tree.files.items() if n.startswith(before)}


def _json_rows(file: Source) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield each row with its place, for messages."""
    try:
        data = file.read()
        if data.startswith(POINTER):
            raise DataError(
                f"{file.name} is a pointer of git-lfs, not the file; run git lfs pull there"
            )
        text = data.decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"{file.name} cannot be read as UTF-8 text ({error}); convert or restore it"
        ) from error
    if Path(file.name).suffix == ".json":
        rows = _parse(text, file.name)
        if not isinstance(rows, list):
            raise DataError(f"{file.name} holds {type(rows).__name__}; allowed: a list of objects")
        places = [(f"{file.name} row {number}", row) for number, row in enumerate(rows, 1)]
    else:
        lines = ((f"{file.name} line {n}", line) for n, line in enumerate(text.split("\n"), 1))
        places = [(place, _parse(line, place)) for place, line in lines if line.strip()]
    for place, row in places:
        if not isinstance(row, dict):
            raise DataError(f"{place}: {type(row).__name__} instead of a JSON object; fix the line")
        yield place, row


def _parse(text: str, place: str) -> Any:
    try:
        # Half of a character is one row's fault, not the file's: what reads the row says so.
        return parse_json(text, halves=True)
    except ValueError as error:
        shown = text.strip()[:40]
        raise DataError(f"{place}: not JSON ({error}), received {shown!r}; fix it") from error


def _record(
    beside: Tree,
    place: str,
    row: Mapping[str, Any],
    split: str | None,
    question: str | None,
    reading: Reading,
) -> Record:
    places = Places(beside.root, remote=reading.remote)
    columns = {"answer": "answer"} if reading.as_before else {}
    try:
        if is_dialogue(row):
            return dialogue_record(row, (), place, split, places, reading, beside)
        names = read_names(row)
        sources = tuple(picture_beside(name, place, places, beside) for name in names)
        texts = read_texts(row, columns, question)
        image_id = row.get("image_id")
        identity = "+".join(names) if missing(image_id) else plain(image_id)
    except DataError as error:
        raise DataError(f"{place}: {error}") from error
    except RowError as error:
        return Record((), "", None, None, place, split, f"{place}: {error}")
    said = texts.question, texts.answer, texts.type
    return Record(sources, *said, identity, split, also=texts.also, place=place)
