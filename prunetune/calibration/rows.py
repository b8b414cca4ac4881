"""What a row of metadata says: texts and picture names, or why it cannot be used."""

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PureWindowsPath
from typing import Any

from prunetune.errors import DataError

PICTURE_KEYS = ("file_name", "file_names", "image", "images")
_PLACEHOLDER = re.compile(r"<(?:image|video)>|<\|?image_pad\|?>")


class RowError(Exception):
    """A row cannot be a sample; the message goes on where the row's place ends."""


@dataclass(frozen=True)
class Texts:
    """The texts of a row."""

    question: str
    answer: str | None
    type: str | None


def read_texts(
    row: Mapping[str, Any],
    columns: Mapping[str, str],
    default: str | None,
    option: str = "question",
) -> Texts:
    """Read question, answer and type, also from the turns of a LLaVA conversation.

    Args:
        row: The row.
        columns: Names of the columns that are not called ``question``, ``answer`` or ``type``.
        default: Question of rows that have none.
        option: Name of the option that gives the default, for messages.

    Raises:
        RowError: There is no question, or a value has the wrong type.
    """
    column = columns.get("question", "question")
    question = row.get(column)
    answer = row.get(columns.get("answer", "answer"))
    if question is None and row.get("conversations") is not None:
        question, answer = _first_turns(row["conversations"], answer)
    if question is None:
        question = default
    if not isinstance(question, str | None):
        raise RowError(f"question is {type(question).__name__}; allowed: text")
    text = _PLACEHOLDER.sub(" ", question or "").replace("\r\n", "\n")
    text = re.sub(r"[ \t]+", " ", text).strip()
    if not text:
        raise RowError(
            f"has no question in {column!r}; add it, or ask all such rows ?{option}=TEXT"
        )
    kind = row.get(columns.get("type", "type"))
    return Texts(text, _answer(answer), None if kind is None else str(kind))


def _first_turns(turns: Any, answer: Any) -> tuple[Any, Any]:
    """Return the first human turn, and the reply to it unless the row has an answer."""
    if not isinstance(turns, list) or not all(isinstance(turn, Mapping) for turn in turns):
        raise RowError('conversations is not a list of {"from": ..., "value": ...} turns')
    roles = [turn.get("from", turn.get("role")) for turn in turns]
    values = [turn.get("value", turn.get("content")) for turn in turns]
    human = next((i for i, role in enumerate(roles) if role in ("human", "user")), None)
    if human is None:
        raise RowError('conversations has no turn {"from": "human", ...}')
    if answer is None and roles[human + 1 : human + 2] in (["gpt"], ["assistant"]):
        answer = values[human + 1]
    return values[human], answer


def _answer(value: Any) -> str | None:
    """Return one answer; of several people's answers the most frequent, the first among equals."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, bool | int | float):
        return str(value)
    if isinstance(value, list) and value and all(isinstance(item, str) for item in value):
        return Counter[str](value).most_common(1)[0][0]
    raise RowError(f"answer is {type(value).__name__}; allowed: text, a number or a list of texts")


def read_names(row: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the file names of a row's pictures.

    Raises:
        RowError: There is none, or one is not text.
        DataError: A name leaves the folder; never skipped, since the data may be hostile.
    """
    value = next((row[key] for key in PICTURE_KEYS if row.get(key)), None)
    names = [value] if isinstance(value, str) else value
    if names is None:
        raise RowError('has no picture; add "file_name"')
    if not isinstance(names, list) or not all(isinstance(name, str) and name for name in names):
        raise RowError("file_name is not text; allowed: a name, or a list of names")
    for name in names:
        _refuse_escape(name)
    return tuple(names)


def _refuse_escape(name: str) -> None:
    windows = PureWindowsPath(name)  # also splits at "/", so it refuses what either system would
    if "://" in name:
        raise RowError(f"names {name!r}; pictures are not fetched: download it into the folder")
    if windows.anchor or ".." in windows.parts:
        raise DataError(
            f"file_name {name!r} leaves the folder of the metadata; allowed: a path inside it"
        )
