"""Calibration sources: the shipped set, folders, JSONL files and Hugging Face data sets."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

from prunetune.calibration.dataset import CalibrationSet, Record, build, split_records
from prunetune.calibration.pictures import SUFFIXES, Source
from prunetune.calibration.rows import RowError, read_names, read_texts
from prunetune.errors import DataError
from prunetune.models.weights import existing

HELD_OUT = 0.25
DEFAULT_QUESTION = "Describe the image."
_ALLOWED = "allowed: tiny, a folder, a .jsonl or .json file, or hf:ID"
_SPLITS = ("calibration", "held_out")


def load_calibration(
    spec: str,
    *,
    skip_bad: bool = False,
    seed: int = 0,
    samples: int | None = None,
    held_out: float = HELD_OUT,
    held_out_samples: int | None = None,
) -> tuple[CalibrationSet, CalibrationSet]:
    """Load a calibration set and its held-out counterpart.

    Args:
        spec: ``tiny`` (shipped), a folder of pictures with or without ``metadata.jsonl``, a
            ``.jsonl`` or ``.json`` file whose pictures lie beside it, or ``hf:ID``, a data set of
            the Hugging Face hub or a local folder that ``datasets`` can load. Options follow a
            question mark: ``?question=...`` is asked where a row has no question; ``hf:`` also
            takes split, held_out_split, image, answer, type, image_id, config and revision.
        skip_bad: Leave out bad pictures and rows, named in ``skipped_names`` (rows in those of the
            calibration side), instead of failing.
        seed: Decides the split by image and the order of samples.
        samples: At most so many calibration samples; only their pictures are decoded.
        held_out: Share of the images that is held out, in [0, 1); unused where the source names
            its splits, as folders ``calibration`` and ``held_out`` do.
        held_out_samples: At most so many held-out samples.

    Raises:
        DataError: The source or one of its samples cannot be used, or a side is left empty.
    """
    records: list[Record] = []
    problems: list[str] = []
    for record in read_source(spec):
        if record.problem is None:
            records.append(record)
        elif skip_bad:
            problems.append(record.problem)
        else:
            raise DataError(f"{record.problem}, or skip bad rows with --skip-bad")
    sides = split_records(records, seed=seed, held_out=held_out)
    calibration = build(sides[0], seed=seed, limit=samples, skip_bad=skip_bad)
    calibration = replace(calibration, skipped_names=(*problems, *calibration.skipped_names))
    held = build(sides[1], seed=seed, limit=held_out_samples, skip_bad=skip_bad)
    images = len({record.image_id for record in records})
    about = f"calibration source {spec!r}: {len(records)} usable row(s) on {images} image(s)"
    _refuse_empty(about, "calibration", calibration)
    if held_out > 0 or sides[1]:
        _refuse_empty(about, "held_out", held)
    return calibration, held


def _refuse_empty(about: str, name: str, side: CalibrationSet) -> None:
    if not side.samples:
        raise DataError(
            f"{about} leave no {name} samples ({side.skipped} skipped); add pictures (a held-out "
            f"share needs two good ones), or hold out nothing with held_out=0"
        )


def read_source(spec: str) -> Iterator[Record]:
    """Yield the rows of a source; their pictures are not decoded yet."""
    if spec.startswith("hf:"):
        from prunetune.calibration.hub import read_hub

        name, options = _options(spec.removeprefix("hf:"))
        return read_hub(name, options)
    if spec == "tiny":
        return _read_folder(tiny_folder(), None)
    name, options = _options(spec)
    if unknown := sorted(set(options) - {"question"}):
        raise DataError(
            f"calibration source {spec!r}: unknown option {unknown[0]!r}; allowed: question"
        )
    path = existing(name)
    question = options.get("question")
    if path is None:
        hint = "; did you mean 'tiny'?" if get_close_matches(name, ["tiny"]) else ""
        raise DataError(f"calibration source {name!r} does not exist; {_ALLOWED}{hint}")
    if path.is_dir():
        return _read_folder(path, question)
    if path.is_file() and path.suffix in (".jsonl", ".json"):
        return _read_metadata(path, None, question)
    raise DataError(f"calibration source {name!r} is a file, not a folder; {_ALLOWED}")


def tiny_folder() -> Path:
    """Return the folder of the shipped set: in the wheel, or beside the package in a checkout."""
    package = Path(__file__).resolve().parents[1]
    for root in (package, package.parent):
        if (folder := root / "calibration_data" / "tiny").is_dir():
            return folder
    raise DataError(f"the shipped set 'tiny' is missing beside {package}; reinstall prunetune")


def _options(spec: str) -> tuple[str, dict[str, str]]:
    if spec and existing(spec):
        return spec, {}
    name, _, query = spec.partition("?")
    try:
        pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query))
    except ValueError as error:
        raise DataError(f"options {query!r} of {name!r} are not KEY=VALUE&KEY=VALUE") from error
    options = dict(pairs)
    if len(options) < len(pairs):
        raise DataError(f"options {query!r} of {name!r} name a key twice; allowed: once")
    if not name:
        raise DataError(f"calibration source {spec!r} names nothing; {_ALLOWED}")
    return name, options


def _read_folder(folder: Path, question: str | None) -> Iterator[Record]:
    if all((folder / split).is_dir() for split in _SPLITS):
        for split in _SPLITS:
            yield from _read_flat(folder / split, split, question)
    else:
        yield from _read_flat(folder, None, question)


def _read_flat(folder: Path, split: str | None, question: str | None) -> Iterator[Record]:
    if (metadata := folder / "metadata.jsonl").is_file():
        yield from _read_metadata(metadata, split, question)
        return
    for name in ("metadata.csv", "metadata.parquet"):
        if (folder / name).is_file():
            raise DataError(f"{folder / name} is not read directly; use hf:{folder}")
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    files = [path for path in files if path.is_file() and not path.name.startswith(".")]
    if not files:
        raise DataError(
            f"folder {folder} holds no pictures ({', '.join(sorted(SUFFIXES))}) and no "
            f"metadata.jsonl; add some, or use --data tiny"
        )
    texts = read_texts({}, {}, question if question is not None else DEFAULT_QUESTION)
    for path in files:
        name = path.relative_to(folder).as_posix()
        yield Record((Source(str(path), path.read_bytes),), texts.question, None, None, name, split)


def _read_metadata(path: Path, split: str | None, question: str | None) -> Iterator[Record]:
    rows = 0
    for place, row in _json_rows(path):
        rows += 1
        yield _record(path.parent, place, row, split, question)
    if not rows:
        raise DataError(
            f"{path} has no rows; add one JSON object a line with file_name and question"
        )


def _json_rows(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield each row with its place, for messages."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"{path} cannot be read as UTF-8 text ({error}); convert or restore it"
        ) from error
    if path.suffix == ".json":
        rows = _parse(text, str(path))
        if not isinstance(rows, list):
            raise DataError(f"{path} holds {type(rows).__name__}; allowed: a list of objects")
        places = [(f"{path} row {number}", row) for number, row in enumerate(rows, 1)]
    else:
        lines = ((f"{path} line {n}", line) for n, line in enumerate(text.split("\n"), 1))
        places = [(place, _parse(line, place)) for place, line in lines if line.strip()]
    for place, row in places:
        if not isinstance(row, dict):
            raise DataError(f"{place}: {type(row).__name__} instead of a JSON object; fix the line")
        yield place, row


def _parse(text: str, place: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        shown = text.strip()[:40]
        raise DataError(f"{place}: not JSON ({error}), received {shown!r}; fix it") from error


def _record(
    folder: Path, place: str, row: Mapping[str, Any], split: str | None, question: str | None
) -> Record:
    try:
        names = read_names(row)
        texts = read_texts(row, {}, question)
        for name in names:
            if not existing(str(folder / name)) or not (folder / name).is_file():
                raise RowError(
                    f"names {name!r}, which is not a file in {folder}; add it or fix the row"
                )
    except DataError as error:
        raise DataError(f"{place}: {error}") from error
    except RowError as error:
        return Record((), "", None, None, place, split, f"{place}: {error}")
    image_id = row.get("image_id")
    identity = "+".join(names) if image_id is None else str(image_id)
    sources = tuple(Source(str(folder / name), (folder / name).read_bytes) for name in names)
    return Record(sources, texts.question, texts.answer, texts.type, identity, split)
