"""The rows of a table of ``datasets``: which column holds the pictures, and in what form."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from prunetune.calibration.dialogues import is_dialogue
from prunetune.calibration.folders import Tree
from prunetune.calibration.pictures import Source
from prunetune.calibration.reading import Reading, dialogue_record
from prunetune.calibration.records import Record
from prunetune.calibration.references import (
    Places,
    looks_like_picture,
    reference_id,
    source_of,
)
from prunetune.calibration.rows import RowError, missing, plain, read_texts
from prunetune.errors import DataError

_USUAL = ("image", "images", "picture", "pictures", "img", "file_name", "image_path", "path", "url")
_TEXTS = ("question", "answer", "type", "image_id")
_LOOKED_AT = 20


def records_of(
    table: Any,
    name: str,
    options: Mapping[str, str],
    side: str | None,
    places: Places,
    reading: Reading,
) -> Iterator[Record]:
    """Yield the rows of a table.

    Args:
        table: Of ``datasets``.
        name: What messages call it.
        options: Names of columns, and ``default_question``.
        side: ``calibration`` or ``held_out`` where the source says so.
        places: What names of pictures may mean.
        reading: How it is read.

    Raises:
        DataError: It has no such column, or none with pictures.
    """
    table, column = picture_column(table, name, options)
    for key in _TEXTS:
        if key in options and options[key] not in table.column_names:
            raise DataError(
                f"{name} has no column {options[key]!r} for {key}; "
                f"allowed: {', '.join(table.column_names)}"
            )
    if column is not None and _is_image(table.features[column]):
        # `datasets` itself says where these are, such as in its cache.
        places = replace(places, outside=True)
    columns = (
        {**options, "answer": options.get("answer", "answer")} if reading.as_before else options
    )
    left = [c for c in table.column_names if c == column or _is_image(table.features[c])]
    texts = table.remove_columns(left)
    for index, row in enumerate(texts if texts.column_names else [{}] * len(table)):
        place = f"{name} row {index}"
        try:
            yield _record(table, column, index, row, columns, place, side, places, reading)
        except RowError as error:
            yield Record((), "", None, None, place, side, f"{place}: {error}")


def _record(
    table: Any,
    column: str | None,
    index: int,
    row: Mapping[str, Any],
    columns: Mapping[str, str],
    place: str,
    side: str | None,
    places: Places,
    reading: Reading,
) -> Record:
    if "question" not in columns and is_dialogue(row):
        given = () if column is None else tuple(_cells(table[index][column]))
        beside = Tree(places.folder or Path(), {})
        return dialogue_record(row, given, place, side, places, reading, beside, columns)
    said = read_texts(row, columns, columns.get("default_question"), "default_question")
    cells = [] if column is None else _cells(table[index][column])
    if not cells or any(missing(cell) for cell in cells):
        raise RowError(f"has no picture in column {column!r}; remove the row")
    sources = []
    for k, cell in enumerate(cells):
        source = source_of(cell, f"{place} picture {k + 1}", places)
        if not isinstance(cell, str):
            # Held in the table, not in memory.
            source = Source(source.name, Cell(table, str(column), index, k, places))
        sources.append(source)
    identity = row.get(columns.get("image_id", "image_id"))
    image_id = _content_id(sources, cells) if missing(identity) else plain(identity)
    texts = said.question, said.answer, said.type
    return Record(tuple(sources), *texts, image_id, side, also=said.also, place=place)


def _cells(cell: Any) -> list[Any]:
    return list(cell) if isinstance(cell, list) else [cell]


def _is_image(feature: Any) -> bool:
    import datasets

    return isinstance(getattr(feature, "feature", feature), datasets.Image)


def picture_column(table: Any, name: str, options: Mapping[str, str]) -> tuple[Any, str | None]:
    """Return the table with pictures left encoded, to name a bad one, and their column.

    It is the one that is typed so, the one that is named so, or any other that holds pictures:
    encoded bytes, structs of bytes and path as pandas writes them, paths or URLs.

    Returns:
        The column is None where conversations hold the pictures themselves.
    """
    import datasets

    typed = [column for column in table.column_names if _is_image(table.features[column])]
    usual = [c for c in _USUAL if c in table.column_names]
    others = [c for c in dict.fromkeys((*usual, *table.column_names)) if c not in typed]
    pictures = [*typed, *(c for c in others if _holds_pictures(table, c))]
    column = options.get("image", pictures[0] if pictures else "image")
    if column not in pictures:
        if "image" not in options and len(table) and is_dialogue(table[0]):
            return table, None
        raise DataError(
            f"{name} has no picture column {column!r}; picture columns: "
            f"{', '.join(pictures) or 'none'}; all columns: {', '.join(table.column_names)}"
        )
    if column not in typed:
        return table, column
    raw = datasets.Image(decode=False)
    feature = table.features[column]
    nested = not isinstance(feature, datasets.Image)
    return table.cast_column(column, datasets.List(raw) if nested else raw), column


def _holds_pictures(table: Any, column: str) -> bool:
    if column not in table.column_names or not len(table):
        return False
    if column in ("messages", "texts", "conversations", "prompt", "completion"):
        return False
    some = table.select_columns([column])[: min(_LOOKED_AT, len(table))][column]
    first = next((cell for cell in some if not missing(cell) and cell != []), None)
    return looks_like_picture(first)


@dataclass(frozen=True)
class Cell:
    """Reads a picture of a memory-mapped table; a class, not a closure, so that it pickles."""

    table: Any
    column: str
    row: int
    position: int
    places: Places

    def __call__(self) -> bytes:
        """Return the encoded picture."""
        cell = _cells(self.table[self.row][self.column])[self.position]
        try:
            return source_of(cell, "picture", self.places).read()
        except RowError as error:
            raise OSError(str(error)) from error


def _content_id(sources: list[Source], cells: list[Any]) -> str:
    """Identify pictures by their encoded bytes, since hub rows often repeat one under no name."""
    import hashlib

    digest = hashlib.sha256()
    for source, cell in zip(sources, cells, strict=True):
        try:
            digest.update(source.read())
        except (OSError, DataError):
            digest.update(reference_id(cell).encode())
    return digest.hexdigest()[:16]
