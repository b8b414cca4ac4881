"""How a source is read, and what its rows have in common wherever they stand."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prunetune.calibration.dialogues import read_dialogue
from prunetune.calibration.folders import Tree
from prunetune.calibration.pictures import Source
from prunetune.calibration.records import Record
from prunetune.calibration.references import Places, reference_id, source_of, within
from prunetune.calibration.rows import missing, plain, read_labels, whole


@dataclass
class Reading:
    """How a source is read, and what is worth saying about it.

    Args:
        remote: Whether pictures are fetched from the network.
        as_before: Read as releases up to 0.1 did.
        notes: What a person should know, a line each.
        tools: Rows with tools, which are left out.
    """

    remote: bool = False
    as_before: bool = False
    notes: list[str] = field(default_factory=list)
    tools: int = 0


def picture_beside(reference: Any, place: str, places: Places, beside: Tree) -> Source:
    """Return a picture beside a metadata file, also one that is zipped there."""
    plainly = isinstance(reference, str) and not reference.startswith("data:")
    zipped = beside.find(reference) if plainly and "://" not in reference else None
    if zipped is not None:
        within(Path(reference), reference, places)
        return zipped
    return source_of(reference, f"{place} picture", places)


def dialogue_record(
    row: Mapping[str, Any],
    pictures: tuple[Any, ...],
    place: str,
    split: str | None,
    places: Places,
    reading: Reading,
    beside: Tree,
    columns: Mapping[str, str] | None = None,
) -> Record:
    """Return the row of a conversation.

    Raises:
        RowError: It cannot be used.
        DataError: A picture's name leaves the folder.
    """
    read = read_dialogue(row, pictures)
    reading.tools += read.tools
    sources = tuple(
        picture_beside(reference, f"{place} picture {k}", places, beside)
        for k, reference in enumerate(read.pictures, 1)
    )
    named = row.get((columns or {}).get("image_id", "image_id"))
    answer, kind, also = read_labels(row, columns or {}, read.answer)
    # Names in a log may be somebody's: a digest tells the same pictures as well.
    digests = "+".join(reference_id(one) for one in read.pictures)
    return Record(
        sources,
        whole(next(turn.text for turn in reversed(read.turns) if turn.role == "user")),
        answer,
        kind,
        digests if missing(named) else plain(named),
        split,
        also=also,
        turns=read.turns,
        place=place,
    )
