"""The application that listens: answers at once what needs no model, and queues the rest."""

import asyncio
import json
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from prunetune.deploy.front.behind import Behind, told
from prunetune.deploy.front.bodies import Bodies, Gone, parse
from prunetune.deploy.front.hosts import Hosts
from prunetune.deploy.front.limits import Limits
from prunetune.deploy.front.metrics import Metrics
from prunetune.deploy.front.pictures import Resolver
from prunetune.deploy.front.replies import (
    Message,
    Receive,
    Refused,
    Send,
    error_object,
    send_bytes,
    send_json,
    send_refusal,
)
from prunetune.deploy.front.requests import ASKED, CHAT, COMPLETIONS, LOAD, Checker
from prunetune.deploy.front.turns import Turn, Turns

logger = logging.getLogger(__name__)

_RESET = "/reset"
_ENDING = Refused(503, "this server is about to end")
_ERROR_EVENT = b'data: {"error": "'
# The last event of OpenAI's streams; those of /v1/responses end without.
_DONE = b"data: [DONE]\n\n"


class Front:
    """ASGI application before the model.

    Args:
        behind: The server that generates.
        checker: Of requests.
        limits: Bounds.
        told: What ``GET /prunetune`` and ``GET /v1/models`` answer, by path.
        visual: Returns the visual tokens of the last forward with pictures, before and after.
    """

    def __init__(
        self,
        behind: Behind,
        checker: Checker,
        limits: Limits,
        told: dict[str, Callable[[], Any]],
        visual: Callable[[], tuple[int, int] | None],
    ) -> None:
        self._behind, self._checker, self._limits = behind, checker, limits
        self._told, self._visual = told, visual
        self._bodies, self._pictures = Bodies(limits), Resolver(limits)
        self.turns = Turns(limits.waiting)
        self.metrics = Metrics(self.turns)
        self._hosts = Hosts("localhost", limits.hosts)
        # What no forward keeps from ending: bodies that come, pictures, places in the queue.
        self._waiting: set[asyncio.Task[Any]] = set()
        self._stopping = False

    def listens_on(self, host: str) -> None:
        """Say under which address clients reach this server."""
        self._hosts = Hosts(host, self._limits.hosts)

    def stop(self) -> None:
        """Refuse what comes and what waits, and end what is generated at its next token."""
        self._stopping = True
        if self.turns.current is not None:
            self.turns.current.cancelled.set()
        self._pictures.close()
        for task in self._waiting:
            task.cancel()

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            return
        path, method = scope["path"], scope["method"]
        headers = dict(scope["headers"])
        known = path in (*ASKED, LOAD, _RESET, "/health", "/metrics", *self._told)
        counted = path if known else "other"

        async def count(message: Message) -> None:
            if message["type"] == "http.response.start":
                self.metrics.answered(counted, message["status"])
            await send(message)

        try:
            self._admit(path, method, headers, known)
            if method in ("GET", "HEAD"):
                # Of an answer to HEAD the listener sends no body.
                await self._tell(path, count)
            elif path == _RESET:
                await send_json(count, 200, {"status": "ok"})
            else:
                await self._ask(path, headers, receive, count)
        except Refused as refused:
            await send_refusal(count, refused)
        except Gone:
            self.metrics.left()
        except asyncio.CancelledError:
            # By `stop`, or by who runs this server when it has waited long enough.
            await send_refusal(count, _ENDING)
        except TimeoutError:
            # The client takes nothing of its answer: the connection ends with this call.
            self.metrics.left()

    def _admit(self, path: str, method: str, headers: dict[bytes, bytes], known: bool) -> None:
        host = headers.get(b"host", b"").decode("latin-1")
        if not self._hosts.allow(host):
            raise Refused(
                403,
                f"Host: received {host[:100]!r}, which is no name of this server; reach it by its "
                "address or as localhost, or start it with --allow-host NAME",
            )
        if not known:
            raise Refused(404, f"there is no {path[:100]!r} here")
        wanted = "POST" if path in (*ASKED, LOAD, _RESET) else "GET"
        if method != wanted and (method, wanted) != ("HEAD", "GET"):
            raise Refused(405, f"{path} takes {wanted}; received {method[:20]}")
        kind = headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
        # A page of another site can send all but this without the browser asking first.
        if wanted == "POST" and path != _RESET and kind != b"application/json":
            raise Refused(415, "Content-Type: allowed application/json")

    async def _tell(self, path: str, send: Send) -> None:
        if path == "/health":
            if self._stopping:
                raise _ENDING
            await send_json(send, 200, {"status": "ok"})
        elif path == "/metrics":
            body, kind = self.metrics.text()
            await send_bytes(send, 200, body, kind)
        else:
            await send_json(send, 200, self._told[path]())

    async def _ask(
        self, path: str, headers: dict[bytes, bytes], receive: Receive, send: Send
    ) -> None:
        with self._ending_early(asyncio.current_task()):
            body = await self._bodies.read(headers, receive)
        begun, size = time.monotonic(), len(body)
        try:
            said = parse(body, self._limits)
            del body
            references = self._checker.check(path, said)
            if self._stopping:
                raise _ENDING
            self.turns.check_room()
            end = _DONE if said.get("stream") and path in (CHAT, COMPLETIONS) else b""
            turn, out = Turn(), asyncio.Queue[Message | Exception | None]()
            work = asyncio.create_task(self._generate(path, said, references, turn, out))
            watch = asyncio.create_task(self._watch(receive, turn, work))
            try:
                await self._relay(out, send, end)
            finally:
                watch.cancel()
                self._abandon(turn, work)
        finally:
            self._bodies.free(size)
            self.metrics.took(time.monotonic() - begun)

    async def _generate(
        self,
        path: str,
        said: dict[str, Any],
        references: Any,
        turn: Turn,
        out: "asyncio.Queue[Message | Exception | None]",
    ) -> None:
        """Wait for the turn and have the request answered; the answer's end is None."""
        streams = bool(said.get("stream"))
        try:
            with self._ending_early(asyncio.current_task()):
                await self._pictures.resolve(references)
                waited = await self.turns.begin(turn)
            # The end of an answer is told when the next may begin; a whole one is all end.
            last: list[Message] = []

            def pass_on(message: Message) -> None:
                (out.put_nowait if streams and _goes_on(message) else last.append)(message)

            try:
                await self._have_turn(path, said, turn, waited, pass_on)
            finally:
                self.turns.end()
            if self._stopping and turn.cancelled.is_set():
                # What was cut short must not look like an answer.
                if not streams:
                    raise _ENDING
                event = _error_event(_ERROR_EVENT + _ENDING.text.encode())
                last = [{"type": "http.response.body", "body": event}]
            for message in (*last, None):
                out.put_nowait(message)
        except Refused as refused:
            out.put_nowait(refused)
        except asyncio.CancelledError:
            out.put_nowait(_ENDING)
            raise
        except Exception as error:
            logger.warning("a request failed: %s", type(error).__name__)
            out.put_nowait(Refused(500, f"the server failed: {type(error).__name__}"))

    async def _have_turn(
        self,
        path: str,
        said: dict[str, Any],
        turn: Turn,
        waited: float,
        pass_on: Callable[[Message], None],
    ) -> None:
        begun, before = time.monotonic(), self._visual()
        turn.stops = _stops(said.pop("stop", None))
        body = json.dumps(said).encode()
        said.clear()
        # Whoever abandons the request waits for no answer; the turn lasts until its end.
        await self._behind.ask(path, body, turn, pass_on)
        after = self._visual()
        visual = after if after is not None and after is not before else (0, 0)
        self.metrics.had(turn, waited, time.monotonic() - begun, visual)

    @contextmanager
    def _ending_early(self, task: "asyncio.Task[Any] | None") -> Iterator[None]:
        """Let ``stop`` cancel a task while the block runs."""
        if self._stopping or task is None:
            raise _ENDING
        self._waiting.add(task)
        try:
            yield
        finally:
            self._waiting.discard(task)

    async def _watch(self, receive: Receive, turn: Turn, work: "asyncio.Task[None]") -> None:
        """Wait for the client to leave, and end its request."""
        while (await receive())["type"] != "http.disconnect":
            continue
        if work.done():
            # Said of every request whose answer was sent, too.
            return
        self.metrics.left()
        self._abandon(turn, work)

    def _abandon(self, turn: Turn, work: "asyncio.Task[None]") -> None:
        turn.cancelled.set()
        if self.turns.current is not turn:
            work.cancel()

    async def _relay(
        self, out: "asyncio.Queue[Message | Exception | None]", send: Send, end: bytes
    ) -> None:
        """Send an answer as it comes; one of an error becomes OpenAI's error object."""
        failed: int | None = None
        detail = b""
        while (message := await out.get()) is not None:
            if isinstance(message, Exception):
                raise message
            if message["type"] == "http.response.start" and message["status"] >= 400:
                failed = 400 if message["status"] == 422 else message["status"]
            elif failed is not None:
                detail += message.get("body", b"")
            else:
                part = message.get("body", b"")
                if part.startswith(_ERROR_EVENT):
                    message = {**message, "body": _error_event(part)}
                elif not _goes_on(message):
                    message = {**message, "body": part + end}
                await asyncio.wait_for(send(message), self._limits.write_seconds)
        if failed is not None:
            raise Refused(failed, told(detail))


def _goes_on(message: Message) -> bool:
    return message["type"] != "http.response.body" or bool(message.get("more_body"))


def _stops(said: str | list[str] | None) -> tuple[str, ...]:
    return (said,) if isinstance(said, str) else tuple(said or ())


def _error_event(part: bytes) -> bytes:
    text = part[len(_ERROR_EVENT) :].decode("utf-8", "replace").strip().removesuffix('"}')
    return f"data: {json.dumps(error_object(500, f'the model failed: {text}'))}\n\n".encode()
