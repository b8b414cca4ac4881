"""A request's body: bounded while it comes, and read as JSON that can be said again."""

import asyncio
import json
import math
from typing import Any, NoReturn

from prunetune.deploy.front.limits import Limits
from prunetune.deploy.front.replies import Receive, Refused

_READ_ON = 8


class Gone(Exception):
    """The client has left."""


class Bodies:
    """Reads bodies, and counts what all those that are here take."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self.held = 0

    async def read(self, headers: dict[bytes, bytes], receive: Receive) -> bytes:
        """Return a body; whoever is done with it calls ``free`` with its length.

        Raises:
            Refused: It is too large, too slow, or there is no room.
            Gone: The client left.
        """
        declared = headers.get(b"content-length", b"0")
        refused: Refused | None = None
        if declared.isdigit() and int(declared) > self._limits.body:
            refused = self._too_large()
        parts: list[bytes] = []
        size = seen = 0
        try:
            async with asyncio.timeout(self._limits.body_seconds):
                more = True
                # What is refused is read to its end all the same, where that is near: who is still
                # sending would see a broken connection, and no answer.
                while more and seen <= _READ_ON * self._limits.body:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise Gone
                    part = message.get("body", b"")
                    more, seen = message.get("more_body", False), seen + len(part)
                    if refused is None:
                        parts.append(part)
                        size += len(part)
                        self.held += len(part)
                        refused = self._wrong(size)
        except TimeoutError:
            refused = refused or Refused(
                408, f"the body was not here after {self._limits.body_seconds:g} seconds"
            )
        except BaseException:
            self.free(size)
            raise
        if refused is not None:
            self.free(size)
            raise refused
        return b"".join(parts)

    def free(self, size: int) -> None:
        """Count a body no longer."""
        self.held -= size

    def _wrong(self, size: int) -> Refused | None:
        if size > self._limits.body:
            return self._too_large()
        if self.held > self._limits.bodies:
            return Refused(429, "this server holds as many requests as it has room for; try again")
        return None

    def _too_large(self) -> Refused:
        return Refused(
            413,
            f"the body is larger than {self._limits.body >> 20} MiB, which is all that a request "
            "may have; send smaller pictures",
        )


def parse(body: bytes, limits: Limits) -> dict[str, Any]:
    """Return a body's object.

    Raises:
        Refused: It is no JSON object, or holds what JSON has not, or is nested too deep.
    """
    try:
        found = json.loads(body, parse_constant=_not_json)
    except RecursionError:
        raise Refused(400, f"the body is nested more than {limits.depth} levels deep") from None
    except ValueError as error:
        # A decoder's message may repeat all of the body; one of JSON says where.
        reason = str(error)[:120] if isinstance(error, json.JSONDecodeError) else "malformed"
        raise Refused(400, f"the body is not JSON in UTF-8: {reason}") from None
    if not isinstance(found, dict):
        raise Refused(400, f"the body: received {type(found).__name__}, allowed a JSON object")
    _look(found, limits)
    return found


def _not_json(constant: str) -> NoReturn:
    raise Refused(400, f"the body holds {constant}, which JSON has not")


def _look(said: dict[str, Any], limits: Limits) -> None:
    level: list[Any] = [said]
    for _ in range(limits.depth):
        inner: list[Any] = []
        for value in level:
            if isinstance(value, dict):
                inner += [*value, *value.values()]
            elif isinstance(value, list):
                inner += value
            elif isinstance(value, str):
                _check_text(value)
            elif isinstance(value, float) and not math.isfinite(value):
                raise Refused(400, "the body holds a number that is too large")
        level = inner
        if not level:
            return
    raise Refused(400, f"the body is nested more than {limits.depth} levels deep")


def _check_text(text: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise Refused(
            400,
            f"the body holds half of a surrogate pair ({text[error.start]!r}), which is no "
            "character; send whole ones",
        ) from None
