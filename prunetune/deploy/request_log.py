"""Keeps what a server is asked, as calibration data: one request body a line."""

import json
import logging
import os
import threading
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any

from prunetune.errors import ConfigError
from prunetune.files import open_plain

PATH = "/v1/chat/completions"
_MOST_BYTES = 64 << 20

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

logger = logging.getLogger(__name__)


class RequestLog:
    """ASGI middleware: appends the bodies of chat requests with pictures that were answered.

    They are what users sent, pictures included: the file is readable by its owner only, and
    nothing of it goes anywhere else.

    Args:
        app: The application.
        path: A ``.jsonl`` file; it is appended to.

    Raises:
        ConfigError: It cannot be written.
    """

    def __init__(self, app: Callable[..., Awaitable[None]], path: Path) -> None:
        self._app, self._path = app, path
        self._lock = threading.Lock()
        self._failed = False

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Pass a request on, and note its body once its answer begins."""
        if scope["type"] != "http" or (scope["method"], scope["path"]) != ("POST", PATH):
            await self._app(scope, receive, send)
            return
        parts: list[bytes] = []
        size = 0

        async def listen() -> Message:
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
            if size <= _MOST_BYTES:
                parts.append(message.get("body", b""))
            return message

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start" and message["status"] < 400:
                self._note(b"".join(parts) if size <= _MOST_BYTES else b"")
            await send(message)

        await self._app(scope, listen, answer)

    def _note(self, body: bytes) -> None:
        try:
            said = json.loads(body)
        except (ValueError, RecursionError):
            return
        if not isinstance(said, dict) or not _has_picture(said):
            return
        line = json.dumps(said, ensure_ascii=True).encode() + b"\n"
        try:
            with self._lock, opened(self._path) as file:
                file.write(line)
        except OSError as error:
            if not self._failed:
                logger.warning("requests are not logged: %s: %s", self._path, error.strerror)
            self._failed = True


def opened(path: Path) -> Any:
    """Open a log for appending; a new one is its owner's alone."""
    return open_plain(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)


def check(path: str) -> Path:
    """Return where requests go.

    Raises:
        ConfigError: The name does not end in ``.jsonl``, or the file cannot be written.
    """
    if Path(path).suffix != ".jsonl":
        raise ConfigError(f"--log: received {path!r}, allowed a file that ends in .jsonl")
    try:
        opened(Path(path)).close()
    except OSError as error:
        raise ConfigError(f"--log: cannot write {path!r}: {error.strerror or error}") from None
    return Path(path)


def _has_picture(body: dict[str, Any]) -> bool:
    messages = body.get("messages")
    if not isinstance(messages, list):
        return False
    contents = [message.get("content") for message in messages if isinstance(message, dict)]
    parts = [part for content in contents if isinstance(content, list) for part in content]
    return any(isinstance(part, dict) and "image" in str(part.get("type")) for part in parts)
