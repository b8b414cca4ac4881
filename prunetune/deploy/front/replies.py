"""Answers that are no model's: JSON, and OpenAI's error object."""

import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

_MOST_LETTERS = 500
_CODES = {429: "queue_full", 503: "stopping", 413: "too_large", 404: "not_found"}


class Refused(Exception):
    """A request that is not passed on to the model.

    Args:
        status: Of the answer.
        text: What is wrong, what was received, what is allowed.
        param: The field it is about.
    """

    def __init__(self, status: int, text: str, param: str | None = None) -> None:
        super().__init__(text)
        self.status, self.text, self.param = status, text, param


def error_object(status: int, text: str, param: str | None = None) -> dict[str, Any]:
    """Return OpenAI's error object."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    kind = "rate_limit_error" if status == 429 else kind
    shown = _printable(text)
    return {"error": {"message": shown, "type": kind, "param": param, "code": _CODES.get(status)}}


def _printable(text: str) -> str:
    plain = "".join(c if c.isprintable() else " " for c in text)
    plain = " ".join(plain.encode("utf-8", "replace").decode().split())
    return plain if len(plain) <= _MOST_LETTERS else f"{plain[: _MOST_LETTERS - 3]}..."


async def send_json(send: Send, status: int, content: Any, **headers: str) -> None:
    """Answer with JSON."""
    await send_bytes(send, status, json.dumps(content).encode(), "application/json", **headers)


async def send_bytes(send: Send, status: int, body: bytes, kind: str, **headers: str) -> None:
    """Answer with a whole body; ``retry_after`` becomes the header ``retry-after``."""
    lines = {"content-type": kind, "content-length": str(len(body)), **headers}
    listed = [(k.replace("_", "-").encode(), v.encode("latin-1")) for k, v in lines.items()]
    await send({"type": "http.response.start", "status": status, "headers": listed})
    await send({"type": "http.response.body", "body": body})


async def send_refusal(send: Send, refused: Refused) -> None:
    """Answer with an error object; whoever was too many is told when to come again."""
    more = {"retry_after": "1"} if refused.status in (429, 503) else {}
    if refused.status in (408, 413):
        # What else the client sends is not read.
        more["connection"] = "close"
    content = error_object(refused.status, refused.text, refused.param)
    await send_json(send, refused.status, content, **more)
