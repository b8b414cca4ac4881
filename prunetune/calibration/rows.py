"""What a row of metadata says: texts and picture names, or why it cannot be used."""

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from prunetune.calibration.matching import normalise_answer

PICTURE_KEYS = ("file_name", "file_names", "image", "images")
_ANSWER_KEYS = ("answer", "answers", "multiple_choice_answer")
_AGREED = 3
_PLACEHOLDER = re.compile(r"<(?:image|video)>|<\|?image_pad\|?>")
_SURROGATE = re.compile("[\ud800-\udfff]")


class RowError(Exception):
    """A row cannot be a sample; the message goes on where the row's place ends."""


@dataclass(frozen=True)
class Texts:
    """The texts of a row.

    Args:
        question: What is asked.
        answer: The expected answer.
        type: Kind of question.
        also: Other answers that are right.
    """

    question: str
    answer: str | None
    type: str | None
    also: tuple[str, ...] = ()


def missing(value: Any) -> bool:
    """Tell whether a cell is empty: none, or not a number, as pandas writes it."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def plain(value: Any) -> str:
    """Return a cell as text; whole numbers as such, also where a gap made their column floats."""
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return str(int(value))
    return whole(str(value))


def whole(text: str) -> str:
    """Return a text that can be written.

    Raises:
        RowError: It holds half a surrogate pair, which no encoding has.
    """
    if found := _SURROGATE.search(text):
        raise RowError(
            f"holds half a character ({found.group()!r}), which cannot be written as UTF-8; fix it"
        )
    return text


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
    answer = answer_cell(row, columns)
    if missing(question) and not missing(row.get("conversations")):
        question, answer = _first_turns(row["conversations"], answer)
    if missing(question):
        question = default
    if not isinstance(question, str | None):
        raise RowError(f"question is {type(question).__name__}; allowed: text")
    text = _PLACEHOLDER.sub(" ", whole(question or "")).replace("\r\n", "\n")
    text = re.sub(r"[ \t]+", " ", text).strip()
    if not text:
        raise RowError(
            f"has no question in {column!r}; add it, or ask all such rows ?{option}=TEXT"
        )
    return Texts(text, *_labels(row, columns, answer))


def read_labels(
    row: Mapping[str, Any], columns: Mapping[str, str], answer: Any
) -> tuple[str | None, str | None, tuple[str, ...]]:
    """Return a row's answer (``answer`` where it has none), its type, and further right answers."""
    own = answer_cell(row, columns)
    return _labels(row, columns, answer if missing(own) else own)


def _labels(
    row: Mapping[str, Any], columns: Mapping[str, str], answer: Any
) -> tuple[str | None, str | None, tuple[str, ...]]:
    kind = row.get(columns.get("type", "type"))
    right = _answers(answer)
    return next(iter(right), None), None if missing(kind) else plain(kind), tuple(right[1:])


def answer_cell(row: Mapping[str, Any], columns: Mapping[str, str]) -> Any:
    """Return what a row says its answer is."""
    names = [columns["answer"]] if "answer" in columns else _ANSWER_KEYS
    return next((row[name] for name in names if not missing(row.get(name))), None)


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


def _answers(value: Any) -> list[str]:
    """Return the right answers, first the most frequent one as it is spelled most; none for none.

    Of several people's answers those are right that three or more gave, as VQA's accuracy has it;
    where there is none, the most frequent ones. Spelling does not make another answer.
    """
    if missing(value):
        return []
    if isinstance(value, str | bool | int | float):
        text = plain(value)
        return [text] if text.strip() else []
    given = _given(value)
    if not given:
        return []
    votes = Counter(normalise_answer(text) for text in given)
    spellings = Counter(given)
    most = max(given, key=lambda text: (votes[normalise_answer(text)], spellings[text]))
    enough = min(_AGREED, max(votes.values()))
    right = dict.fromkeys(t for t in given if votes[normalise_answer(t)] >= enough)
    return [most, *(text for text in right if text != most)]


def _given(value: Any) -> list[str]:
    """Return what several people answered: texts, numbers, or VQAv2's ``{"answer": ...}``."""
    if not isinstance(value, Sequence) and hasattr(value, "tolist"):
        value = value.tolist()
    if not isinstance(value, list | tuple):
        raise RowError(
            f"answer is {type(value).__name__}; allowed: text, a number or a list of texts"
        )
    found: list[str] = []
    for item in value:
        said = item.get("answer", item.get("text")) if isinstance(item, Mapping) else item
        if missing(said):
            continue
        if not isinstance(said, str | bool | int | float):
            raise RowError(
                f"answer is a list of {type(said).__name__}; allowed: text, a number or a list "
                "of texts"
            )
        if (text := plain(said)).strip():
            found.append(text)
    return found


def read_names(row: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the file names of a row's pictures.

    Raises:
        RowError: There is none, or one is not text.
    """
    cells = [row.get(key) for key in PICTURE_KEYS]
    value = next((cell for cell in cells if cell and not missing(cell)), None)
    names = [value] if isinstance(value, str) else value
    if names is None:
        raise RowError('has no picture; add "file_name"')
    if not isinstance(names, list) or not all(isinstance(name, str) and name for name in names):
        raise RowError("file_name is not text; allowed: a name, or a list of names")
    return tuple(whole(name) for name in names)
