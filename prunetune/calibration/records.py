"""Rows of a source, before their pictures are decoded."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field

from prunetune.calibration.dialogues import Turn
from prunetune.calibration.pictures import Source


@dataclass(frozen=True)
class Record:
    """A row of a source whose pictures were not decoded yet.

    Args:
        sources: Its pictures.
        question: What is asked.
        answer: What is expected.
        type: Kind of question.
        image_id: What rows on the same pictures have in common.
        split: ``"calibration"`` or ``"held_out"`` where the source says so, else None.
        problem: Why the row cannot be a sample.
        also: Further right answers.
        turns: All turns of a conversation.
        place: Where the row stands, for messages.
    """

    sources: tuple[Source, ...]
    question: str
    answer: str | None
    type: str | None
    image_id: str
    split: str | None = None
    problem: str | None = None
    also: tuple[str, ...] = ()
    turns: tuple[Turn, ...] = ()
    place: str = field(default="", compare=False)

    def key(self) -> str:
        """Return a digest of what the row says, the same wherever in the file it stands."""
        said = [self.image_id, self.question, self.answer, self.type]
        return sha256([*said, *spoken(self.turns)])


def spoken(turns: Sequence[Turn]) -> list[object]:
    """Return turns as plain data."""
    return [[turn.role, list(turn.parts)] for turn in turns]


def sha256(content: Sequence[object]) -> str:
    """Return the digest of plain data."""
    return hashlib.sha256(
        json.dumps(content, ensure_ascii=False).encode("utf-8", "surrogatepass")
    ).hexdigest()
