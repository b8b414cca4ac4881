"""The conversation of a request: roles and parts that the server behind reads, and no others.

It would leave out silently what it does not know, a picture too.
"""

import json
from typing import Any

from prunetune.deploy.front.limits import Limits
from prunetune.deploy.front.pictures import Reference
from prunetune.deploy.front.replies import Refused

_ROLES = ("system", "developer", "user", "assistant", "tool")
_TEXTS = ("text", "input_text", "output_text")
_PICTURES = ("image_url", "input_image")
_MOST = 4096


class Content:
    """Checks messages, and finds their pictures.

    Args:
        limits: Bounds.

    Attributes:
        references: Where pictures are named.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self.references: list[Reference] = []

    def messages(self, said: Any, where: str = "messages") -> None:
        """Check the messages of a chat request.

        Raises:
            Refused: They are none.
        """
        if not isinstance(said, list) or not said:
            raise Refused(400, f"{where}: allowed a list of one message or more", where)
        if len(said) > _MOST:
            raise Refused(400, f"{where}: received {len(said)}, allowed {_MOST}", where)
        for k, message in enumerate(said):
            self._message(message, f"{where}[{k}]")

    def input(self, said: Any) -> None:
        """Check the input of a response request: a text, parts, or items of a conversation.

        Raises:
            Refused: It is none of these.
        """
        if isinstance(said, str) and said:
            return
        if not isinstance(said, list) or not said or len(said) > _MOST:
            raise Refused(400, "input: allowed a text or a list", "input")
        flat = isinstance(said[0], dict) and "role" not in said[0]
        if flat and said[0].get("type") in (*_TEXTS, *_PICTURES):
            self._parts(said, "input")
            return
        for k, item in enumerate(said):
            where = f"input[{k}]"
            kind = _object(item, where).get("type")
            if kind in ("function_call", "function_call_output"):
                names = ("call_id", "output") if kind.endswith("output") else ("call_id", "name")
                for name in names:
                    _text(item, name, where)
                if kind == "function_call":
                    _arguments(item, where)
            elif kind == "reasoning":
                self._parts(item.get("content") or [], f"{where}.content", pictures=False)
            else:
                self._message(item, where)

    def _message(self, message: Any, where: str) -> None:
        role = _object(message, where).get("role")
        if role not in _ROLES:
            shown = repr(role)[:60]
            raise Refused(
                400, f"{where}.role: received {shown}, allowed {', '.join(_ROLES)}", where
            )
        calls = message.get("tool_calls")
        for k, call in enumerate(_listed(calls, f"{where}.tool_calls")):
            place = f"{where}.tool_calls[{k}]"
            function = _object(call, place).get("function") or call
            _text(_object(function, place), "name", place)
            _arguments(function, place)
        content = message.get("content")
        if content is None and (calls or (role == "assistant" and "content" in message)):
            return
        if isinstance(content, str):
            return
        if not isinstance(content, list) or not content:
            raise Refused(400, f"{where}.content: allowed a text or a list of parts", where)
        self._parts(content, f"{where}.content")

    def _parts(self, parts: Any, where: str, *, pictures: bool = True) -> None:
        for k, part in enumerate(_listed(parts, where)):
            place = f"{where}[{k}]"
            kind = _object(part, place).get("type")
            if kind in _TEXTS or (not pictures and kind == "reasoning_text"):
                _text(part, "text", place)
            elif kind in _PICTURES and pictures:
                self._picture(part, place)
            else:
                allowed = (*_TEXTS, *(_PICTURES if pictures else ()))
                raise Refused(
                    400,
                    f"{place}.type: received {repr(kind)[:60]}, allowed {', '.join(allowed)}",
                    place,
                )

    def _picture(self, part: dict[str, Any], where: str) -> None:
        holder, key = part, "image_url"
        if isinstance(part.get(key), dict):
            holder, key = part[key], "url"
        _text(holder, key, where)
        self.references.append((holder, key))


def _object(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise Refused(400, f"{where}: received {type(value).__name__}, allowed an object", where)
    return value


def _listed(value: Any, where: str) -> list[Any]:
    if value is None:
        return []
    if not isinstance(value, list) or len(value) > _MOST:
        raise Refused(400, f"{where}: allowed a list of at most {_MOST}", where)
    return value


def _text(holder: dict[str, Any], key: str, where: str) -> None:
    if not isinstance(holder.get(key), str):
        received = type(holder[key]).__name__ if key in holder else "nothing"
        raise Refused(400, f"{where}.{key}: received {received}, allowed a text", where)


def _arguments(function: dict[str, Any], where: str) -> None:
    found = function.get("arguments")
    if isinstance(found, str):
        try:
            found = json.loads(found)
        except (ValueError, RecursionError):
            found = None
    if not isinstance(found, dict):
        raise Refused(400, f"{where}.arguments: allowed a JSON object, as text", where)
