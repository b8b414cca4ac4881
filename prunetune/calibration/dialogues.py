"""Rows that are conversations: OpenAI's request bodies, ``messages``, The Cauldron's ``texts``."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from prunetune.calibration.rows import RowError, missing, whole

_TEXT = ("text", "input_text", "output_text")
_PICTURE = ("image", "image_url", "input_image")
_ROLES = {"human": "user", "gpt": "assistant", "developer": "system", "model": "assistant"}
_KNOWN = ("system", "user", "assistant")
_PLACEHOLDER = "<image>"
_TOOLS = ("tools", "tool_choice", "functions", "function_call")


@dataclass(frozen=True)
class Turn:
    """What one side says.

    Args:
        role: ``system``, ``user`` or ``assistant``.
        parts: Texts, and None where a picture stands.
    """

    role: str
    parts: tuple[str | None, ...]

    @property
    def text(self) -> str:
        """Its texts, one a line."""
        return "\n".join(part for part in self.parts if part is not None)


@dataclass(frozen=True)
class Dialogue:
    """A conversation up to where the model is asked.

    Args:
        turns: All turns of it.
        pictures: What the row says about each picture, in the order in which they stand.
        answer: What was answered to it, where the row says that.
        tools: Whether the row has tools, which are left out.
    """

    turns: tuple[Turn, ...]
    pictures: tuple[Any, ...]
    answer: str | None
    tools: bool


def is_dialogue(row: Mapping[str, Any]) -> bool:
    """Tell whether a row is a conversation in one of the forms that are read whole."""
    return isinstance(row.get("question"), str) is False and _turns_of(row) is not None


def read_dialogue(row: Mapping[str, Any], pictures: Sequence[Any] = ()) -> Dialogue:
    """Return a row's conversation.

    Args:
        row: The row.
        pictures: Its pictures, where they stand in another column than the turns.

    Raises:
        RowError: It is none, has no picture, or a part that is neither text nor picture.
    """
    said = _turns_of(row)
    if said is None:
        raise RowError("is no conversation; allowed: messages, or texts of user and assistant")
    body = _body(row)
    given = list(pictures) or _listed(body)
    reader = _Reader(given)
    turns = [turn for message in said if (turn := reader.turn(message)) is not None]
    turns = reader.placed(turns)
    answer = _reply(row)
    while turns and turns[-1].role == "assistant":
        answer = turns.pop().text if answer is None else (turns.pop(), answer)[1]
    if not any(turn.role == "user" for turn in turns):
        raise RowError("has no turn of a user that a model could answer")
    if not reader.found:
        raise RowError("has no picture; text alone has nothing to prune")
    tools = reader.tools or any(body.get(name) for name in _TOOLS)
    return Dialogue(tuple(turns), tuple(reader.found), answer, tools)


def _body(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a request's body, where a log or a batch file wraps it."""
    for name in ("body", "request"):
        inner = row.get(name)
        if isinstance(inner, Mapping):
            return _body(inner)
    return row


def _turns_of(row: Mapping[str, Any]) -> list[Any] | None:
    """Return a row's messages, as they stand in it; None where it has none."""
    body = _body(row)
    for name in ("messages", "prompt"):
        said = body.get(name)
        if isinstance(said, list) and said and all(isinstance(one, Mapping) for one in said):
            more = body.get("completion")
            return [*said, *(more if name == "prompt" and isinstance(more, list) else [])]
    pairs = body.get("texts")
    if isinstance(pairs, list) and pairs and all(isinstance(one, Mapping) for one in pairs):
        return [
            {"role": role, "content": pair[role]}
            for pair in pairs
            for role in ("system", "user", "assistant")
            if not missing(pair.get(role))
        ]
    return None


def _listed(body: Mapping[str, Any]) -> list[Any]:
    cell: Any = next((body[k] for k in ("images", "image") if not missing(body.get(k))), [])
    return list(cell) if isinstance(cell, list | tuple) else [cell]


def _reply(row: Mapping[str, Any]) -> str | None:
    """Return what a log says was answered."""
    response = row.get("response")
    if isinstance(response, Mapping) and isinstance(response.get("body"), Mapping):
        response = response["body"]
    choices = response.get("choices") if isinstance(response, Mapping) else None
    if isinstance(choices, list) and choices and isinstance(choices[0], Mapping):
        message = choices[0].get("message")
        content = message.get("content") if isinstance(message, Mapping) else None
        return whole(content) if isinstance(content, str) and content.strip() else None
    return None


class _Reader:
    """Reads turns one after the other, and collects the pictures on the way.

    Args:
        given: Pictures of another column: placeholders stand for them, in their order.
    """

    def __init__(self, given: list[Any]) -> None:
        self._given, self._next = given, 0
        self.found: list[Any] = []
        self.tools = False

    def turn(self, message: Mapping[str, Any]) -> Turn | None:
        role = str(message.get("role", message.get("from")))
        role = _ROLES.get(role, role)
        content = message.get("content", message.get("value"))
        if role in ("tool", "function") or (missing(content) and role == "assistant"):
            self.tools = True
            return None
        if role not in _KNOWN:
            raise RowError(f"has a turn of {role!r}; allowed: {', '.join(_KNOWN)}")
        self.tools |= bool(message.get("tool_calls"))
        if isinstance(content, str):
            return Turn(role, self._split(whole(content)))
        if not isinstance(content, list):
            raise RowError(
                f"has a content that is {type(content).__name__}; allowed: text or a list of parts"
            )
        return Turn(role, tuple(self._part(part) for part in content))

    def _split(self, text: str) -> tuple[str | None, ...]:
        """Return a text with pictures where placeholders stand."""
        if not self._given or _PLACEHOLDER not in text:
            return (text,)
        parts: list[str | None] = []
        for k, piece in enumerate(text.split(_PLACEHOLDER)):
            if k:
                self._take()
                parts.append(None)
            if piece.strip():
                parts.append(piece.strip("\n"))
        return tuple(parts)

    def _take(self, index: Any = None) -> None:
        """Let the next picture of the other column stand here."""
        place = index if isinstance(index, int) and not isinstance(index, bool) else self._next
        if not 0 <= place < len(self._given):
            raise RowError(
                f"has a place for picture {place + 1}, and {len(self._given)} pictures; fix it"
            )
        self._next = place + 1
        self.found.append(self._given[place])

    def _part(self, part: Any) -> str | None:
        if isinstance(part, str):
            return whole(part)
        kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
        if kind in _TEXT and isinstance(part.get("text"), str):
            return whole(part["text"])
        if kind in _PICTURE:
            reference = _reference(part)
            if reference is None:
                self._take(part.get("index"))
            else:
                self.found.append(reference)
            return None
        raise RowError(f"has a part of type {kind!r}; allowed: text and image_url")

    def placed(self, turns: list[Turn]) -> list[Turn]:
        """Put pictures that no place was given to before the first user's text."""
        left = self._given[self._next :]
        if not left:
            return turns
        if self._next:
            raise RowError(f"has {len(self._given)} pictures, and places for {self._next}; fix it")
        first = next((k for k, turn in enumerate(turns) if turn.role == "user"), None)
        if first is None:
            return turns
        self.found = [*left, *self.found]
        before = (None,) * len(left)
        turns[first] = Turn("user", (*before, *turns[first].parts))
        return turns


def _reference(part: Mapping[str, Any]) -> Any:
    """Return what a part says about its picture; None where it only marks the place."""
    value = part.get("image_url", None)
    if isinstance(value, Mapping):
        value = value.get("url")
    if missing(value):
        value = next(
            (part[k] for k in ("image", "url", "path", "base64") if not missing(part.get(k))), None
        )
    source = part.get("source")
    if missing(value) and isinstance(source, Mapping):
        value = source.get("data", source.get("url"))
    return None if missing(value) else value
